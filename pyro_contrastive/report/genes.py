"""The tables of genes of a fitted model: which respond, in which cells, in which donors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_contrastive.analysis.means.donors import TooFewDonorsError
from pyro_contrastive.report.study import FittedModel

__all__ = ["NULL_FILE", "TABLES", "GeneRequest", "GeneTables", "make_tables", "write_tables"]

TABLES = {
    "genes": "genes.csv",
    "by_label": "genes_by_label.csv",
    "effects": "effects.csv",
}
"""The file of each table."""
NULL_FILE = "null_check.csv"
_MOST_ROWS = 2_000_000
"""Rows of a table by label, or by label and donor, beyond which it is not made."""


@dataclass(frozen=True, kw_only=True)
class GeneRequest:
    """What is compared, and how.

    Parameters
    ----------
    labels
        Column of labels, such as cell types, for the tables by label. Default: none.
    sample_key
        Column of donors. Default: the one that the model was set up with, if any; ``False``: cells
        are the replicates.
    strata
        Number of clusters of the background latent, or a column: within these, cells are compared.
    lfc_threshold, fdr_target
        Smallest log2 fold change of interest, and rate of false discoveries.
    seed
        Seed of the clusters and of posterior draws.
    """

    labels: str | None = None
    sample_key: Any = None
    strata: str | int = 8
    lfc_threshold: float = 0.0
    fdr_target: float = 0.05
    seed: int = 0

    def test(self) -> dict[str, Any]:
        """Return arguments of ``differential_expression``."""
        return {
            "mode": "means",
            "lfc_threshold": self.lfc_threshold,
            "fdr_target": self.fdr_target,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class GeneTables:
    """Tables of genes.

    Parameters
    ----------
    request
        What was asked for.
    genes, by_label, effects
        Tests of all cells, and of the cells of every label; effects by label and donor. ``None``:
        not made, for a reason in `reasons`.
    sample_key
        Column of the donors, if they were the replicates.
    reasons
        Why a table was not made, by its name; ``"donors"``: why donors were not the replicates.
    """

    request: GeneRequest
    genes: pd.DataFrame | None = None
    by_label: pd.DataFrame | None = None
    effects: pd.DataFrame | None = None
    sample_key: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def tagged(self) -> str:
        """Name of the column that says whether a gene was found."""
        return f"is_de_fdr_{self.request.fdr_target}"


def make_tables(model: FittedModel, request: GeneRequest) -> GeneTables:
    """Make the tables of genes.

    Parameters
    ----------
    model
        A fitted model with its data.
    request
        What to compare.

    Returns
    -------
    GeneTables
        If there are too few donors to be the replicates, cells are, and the reason is kept.
    """
    reasons: dict[str, str] = {}
    key, genes = _first(model, request, reasons)
    if genes is None:
        return GeneTables(request=request, reasons=reasons)
    by_label = _by_label(model, request, key, genes, reasons)
    effects = _effects(model, request, key, genes, reasons)
    return GeneTables(
        request=request,
        genes=genes,
        by_label=by_label,
        effects=effects,
        sample_key=key,
        reasons=reasons,
    )


def write_tables(tables: GeneTables, folder: Path) -> list[str]:
    """Write the tables that were made; return the names of their files."""
    made = []
    for name, file in TABLES.items():
        table = getattr(tables, name)
        if table is not None:
            try:
                table.to_csv(folder / file)
            except BaseException:  # no file is better than half a file
                with suppress(OSError):
                    (folder / file).unlink(missing_ok=True)
                raise
            made.append(file)
    return made


def _first(
    model: FittedModel, request: GeneRequest, reasons: dict[str, str]
) -> tuple[str | None, pd.DataFrame | None]:
    """Test all cells, with donors as the unit if that is possible; return their column too."""
    key = model.setup.sample_key if request.sample_key is None else request.sample_key
    key = key or None
    common = request.test() | {"strata": request.strata}
    if key is not None:
        try:
            return key, model.differential_expression(sample_key=key, **common)
        except TooFewDonorsError as error:
            reasons["donors"] = str(error)
        except ValueError as error:
            reasons["genes"] = str(error)
            return None, None
    try:
        return None, model.differential_expression(sample_key=False, **common)
    except ValueError as error:
        reasons["genes"] = str(error)
        return None, None


def _by_label(
    model: FittedModel,
    request: GeneRequest,
    key: str | None,
    genes: pd.DataFrame,
    reasons: dict[str, str],
) -> pd.DataFrame | None:
    if request.labels is None:
        return None
    if not _fits(model, request, len(genes), None):
        reasons["by_label"] = "there would be too many rows; name one treatment in Python"
        return None
    try:
        return model.differential_expression(
            strata=request.labels, by_stratum=True, sample_key=key or False, **request.test()
        )
    except ValueError as error:
        reasons["by_label"] = str(error)
        return None


def _effects(
    model: FittedModel,
    request: GeneRequest,
    key: str | None,
    genes: pd.DataFrame,
    reasons: dict[str, str],
) -> pd.DataFrame | None:
    if not _fits(model, request, len(genes), key):
        reasons["effects"] = "there would be too many rows; name one treatment in Python"
        return None
    try:
        return model.get_group_effects(
            groupby=request.labels,
            sample_key=key,
            strata=request.strata,
            seed=request.seed,
            silent=True,
        )
    except ValueError as error:
        reasons["effects"] = str(error)
        return None


def _fits(model: FittedModel, request: GeneRequest, n_rows: int, key: str | None) -> bool:
    """Whether a table by label (and donor) is of a size that can be written and read."""
    obs = model.adata.obs
    n_groups = 1 if request.labels is None else obs[request.labels].nunique()
    n_donors = 1 if key is None else obs[key].nunique() + 1
    return bool(n_rows * n_groups * n_donors <= _MOST_ROWS)
