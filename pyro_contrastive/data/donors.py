"""Checks at setup of donors: which cells are from the same person, animal or sample."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData

__all__ = ["donor_like_column", "warn_of_donors"]

_INDIVIDUALS = (
    "donor",
    "patient",
    "subject",
    "individual",
    "participant",
    "animal",
    "mouse",
    "mice",
)
_SAMPLES = ("sample", "specimen", "orig ident")
"""Words in the names of columns; a column of individuals is preferred to one of samples."""
_ENDINGS = {"", "id", "ids", "name", "names", "no", "nr", "number", "label", "key", "code", "s"}
"""What may stand beside such a word: "patient_id", but not "patient_age" or "sample_quality"."""
CELLS_PER_DONOR = 5
"""A column with fewer cells per level names something else, such as cells."""


def warn_of_donors(
    data: CellData, obs: pd.DataFrame, sample_key: str | None, others: tuple[str | None, ...]
) -> None:
    """Warn of donors that are not named, or of which a side has only one.

    Two calls below `setup_anndata`.

    Parameters
    ----------
    data
        The cells.
    obs
        Its columns.
    sample_key
        The column of donors, if named.
    others
        Columns that have another role.
    """
    if data.condition is None:
        return
    is_target = data.condition != BACKGROUND
    if sample_key is not None:
        _warn_of_single_donor(obs, sample_key, is_target)
        return
    found = donor_like_column(obs, is_target, others)
    if found is None:
        return
    warnings.warn(
        f"adata.obs[{found!r}] looks like the donor or sample of each cell. Cells of one donor are "
        "alike for reasons other than the treatment, and are not replicates: unless the column is "
        f"named, setup_anndata(..., sample_key={found!r}), tests take them for such, and find "
        "differences between donors as if they were between conditions.",
        UserWarning,
        stacklevel=4,
    )


def donor_like_column(
    obs: pd.DataFrame, is_target: NDArray[np.bool_], others: tuple[str | None, ...]
) -> str | None:
    """Return the column that probably holds donors, if there is one.

    Parameters
    ----------
    obs
        A row per cell.
    is_target
        Which cells are target cells. A column that says just this holds no donors.
    others
        Columns with other roles: neither they count, nor columns with the same groups of cells,
        by themselves or within conditions.
    """
    condition = is_target.astype(np.int64)
    taken = [_codes(obs[key]) for key in others if key is not None and key in obs]
    taken += [condition, *(2 * codes + condition for codes in taken)]
    for words in (_INDIVIDUALS, _SAMPLES):
        for name in obs.columns:
            if not (isinstance(name, str) and _is_called(name, words)):
                continue
            if name not in others and _may_be_donors(obs[name], taken):
                return name
    return None


def _is_called(name: str, words: tuple[str, ...]) -> bool:
    """Tell whether a name is one of the words, with nothing beside it but "id" or a number."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    parts = re.sub(r"[^a-z]+", " ", spaced.lower()).split()
    text = " ".join(parts)
    for word in words:
        for form in (word, f"{word}s"):
            rest = f" {text} ".partition(f" {form} ")
            if rest[1] and set(rest[0].split() + rest[2].split()) <= _ENDINGS:
                return True
    return text in {word + ending for word in words for ending in ("id", "ids")}


def _may_be_donors(values: object, taken: list[NDArray[np.int64]]) -> bool:
    """Tell whether a column has several levels of several cells, and groups of its own."""
    if not isinstance(values, pd.Series):  # several columns of one name
        return False
    codes = _codes(values)
    n_levels = len(np.unique(codes[codes >= 0]))
    if n_levels < 2 or n_levels * CELLS_PER_DONOR > len(codes):  # noqa: PLR2004  # several
        return False
    return not any(_same_groups(codes, other) for other in taken)


def _codes(values: pd.Series) -> NDArray[np.int64]:
    return np.asarray(pd.factorize(values)[0], dtype=np.int64)


def _same_groups(codes: NDArray[np.int64], others: NDArray[np.int64]) -> bool:
    """Tell whether two columns divide the cells in the same way."""
    pairs = len(np.unique(np.stack([codes, others]), axis=1).T)
    return pairs == len(np.unique(codes)) == len(np.unique(others))


def _warn_of_single_donor(obs: pd.DataFrame, sample_key: str, is_target: NDArray[np.bool_]) -> None:
    """Warn where a population has a single donor."""
    values = obs[sample_key].astype(str).to_numpy()
    names = {
        name: np.unique(values[cells])
        for name, cells in (("background", ~is_target), ("target", is_target))
    }
    single = [f"all {name} cells are from {v[0]}" for name, v in names.items() if len(v) == 1]
    if not single:
        return
    warnings.warn(
        f"By adata.obs[{sample_key!r}], {' and '.join(single)}. What the treatment does cannot be "
        "told from what distinguishes one donor, because nothing says how much donors differ: "
        "differences between the conditions are about these very donors. Statements about others "
        "need at least two of each condition.",
        UserWarning,
        stacklevel=5,
    )
