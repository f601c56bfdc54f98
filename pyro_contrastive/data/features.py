"""Features that are not genes, such as guides or antibodies counted along with them."""

from __future__ import annotations

import warnings

import pandas as pd

from pyro_contrastive.data.spelling import spelling

_COLUMNS = ("featuretype", "modality", "modalities", "assaytype", "librarytype")
"""Names of columns of ``var``, or parts of them, that hold the types of features."""
_GENES = {"geneexpression", "gene", "genes", "expression", "gex", "transcript", "transcriptome"}
_BIOTYPES = {
    *(
        "proteincoding",
        "noncoding",
        "tec",
        "ribozyme",
        "artifact",
        "antisense",
        "processedtranscript",
    ),
    *("senseintronic", "senseoverlapping", "retainedintron", "nonsensemediateddecay"),
    *("transposableelement", "nonstopdecay", "nuclear", "mitochondrial", "macrolncrna"),
}
_BIOTYPE_ENDS = ("rna", "pseudogene", "gene")
_GUIDES = ("guide", "crispr", "sgrna", "grna")
_NO_GENES = {
    "antibodycapture",
    "antigencapture",
    "crisprguidecapture",
    "multiplexingcapture",
    "proteinexpression",
}
"""Cell Ranger's words for other features, which are recognised in any column."""
_LARGEST_N_TYPES = 50
_LISTED = 3


def warn_of_other_features(var: pd.DataFrame) -> None:
    """Warn if some features are genes and others are not.

    Two calls below `setup_anndata`. Data with a single type of feature cause no warning: they may
    be peaks, meant for a likelihood of binary data.

    Parameters
    ----------
    var
        The features, a row each. Columns are recognised by their name or values.
    """
    for key in var.columns:
        types = _types(var, key)
        others = [kind for kind in types if not _is_gene(kind)]
        if len(types) < 2 or not others:  # noqa: PLR2004  # it needs genes and something else
            continue
        if len(others) == len(types):  # no genes at all: the most frequent type is meant
            others.remove(max(types, key=lambda kind: types[kind]))
        column = var[key].astype(str)
        shown = ", ".join(
            f"{types[kind]} of type {kind!r} "
            f"({', '.join(map(str, var.index[(column == kind).to_numpy()][:_LISTED]))}"
            f"{', ...' if types[kind] > _LISTED else ''})"
            for kind in others
        )
        kept = [kind for kind in types if kind not in others]
        chosen = f"== {kept[0]!r}" if len(kept) == 1 else f".isin({others})"
        tilde = "" if len(kept) == 1 else "~"
        warnings.warn(
            f"Not all features are genes: by adata.var[{key!r}] there are {shown}. The model "
            "treats them like genes. Counts of guides or hashtags reveal the treatment or sample "
            "of a cell, so that the salient latent may hold nothing else; counts of antibodies "
            "differ from those of genes in scale and background. To keep only the genes: "
            f"adata = adata[:, {tilde}adata.var[{key!r}]"
            f"{' ' if len(kept) == 1 else ''}{chosen}].copy()",
            UserWarning,
            stacklevel=4,
        )
        return


def _types(var: pd.DataFrame, key: object) -> dict[str, int]:
    """Return the number of features of each type; empty if the column does not hold types."""
    column = var[key]
    if isinstance(column, pd.DataFrame) or not _is_text(column):
        return {}
    counts = column.dropna().astype(str).value_counts()
    types = {str(kind): int(n) for kind, n in counts.items() if n}
    if len(types) > _LARGEST_N_TYPES:
        return {}
    by_name = any(name in spelling(str(key)) for name in _COLUMNS)
    return types if by_name or any(spelling(kind) in _NO_GENES for kind in types) else {}


def _is_text(column: pd.Series) -> bool:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    return bool(pd.api.types.is_string_dtype(dtype) or pd.api.types.is_object_dtype(dtype))


def _is_gene(kind: str) -> bool:
    """Tell whether this is a word for genes, or a biotype such as lncRNA."""
    word = spelling(kind)
    if any(guide in word for guide in _GUIDES) or word == "crrna":
        return False
    return word in _GENES | _BIOTYPES or word.endswith(_BIOTYPE_ENDS)
