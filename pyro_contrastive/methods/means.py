"""Differential expression by tests of means: the cells, sizes and strata of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.differential_groups import GroupPair, Selection, group_pairs
from pyro_contrastive.analysis.means.clusters import clusters
from pyro_contrastive.analysis.means.compare import compare_means
from pyro_contrastive.analysis.means.donors import Donors
from pyro_contrastive.analysis.means.results import with_notes
from pyro_contrastive.analysis.means.settings import DEFAULT_DONOR_TEST, MeansSettings
from pyro_contrastive.analysis.posterior import latent_representation
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.columns import check_key, column, texts
from pyro_contrastive.methods.base import ModelBase

__all__ = [
    "SampleKey",
    "cells_with_counts",
    "check_counts",
    "differential_means",
    "means_pairs",
    "means_settings",
    "strata_of",
    "within_batches",
]

SampleKey = str | Literal[False] | None
"""A column of donors; ``None``: the one set up; ``False``: none."""
Codes = NDArray[np.int64]
USUAL = {
    "delta": 0.25,
    "all_stats": True,
    "batch_correction": False,
    "batchid1": None,
    "batchid2": None,
    "target_idx": None,
    "n_samples": 1,
}
"""Arguments of ``differential_expression`` that a test of means does not use: their defaults."""


def means_settings(unused: Mapping[str, Any], given: Mapping[str, Any]) -> MeansSettings:
    """Return the settings of a test of means, refusing arguments that would be ignored.

    Raises
    ------
    TypeError
        If there is no such setting.
    ValueError
        If an argument has no effect.
    """
    ignored = [name for name, value in unused.items() if not _is_usual(value, USUAL[name])]
    if ignored:
        hint = " (use lfc_threshold= for a smallest change)" if ignored == ["delta"] else ""
        msg = f'{", ".join(ignored)} has no effect with mode="means"{hint}.'
        raise ValueError(msg)
    known = {field.name for field in fields(MeansSettings)}
    unknown = [name for name in given if name not in known]
    if unknown:
        msg = (
            f'differential_expression(mode="means") takes no {", ".join(unknown)}. Beside its own '
            f"arguments it takes those of MeansSettings: {', '.join(sorted(known))}."
        )
        raise TypeError(msg)
    return MeansSettings(**given)


def _is_usual(value: Any, usual: Any) -> bool:
    return value is usual or (isinstance(value, bool | float | int) and value == usual)


def means_pairs(
    model: ModelBase,
    obs: pd.DataFrame,
    groupby: str | None,
    group1: Any,
    group2: Any,
    idx1: Selection | None,
    idx2: Selection | None,
) -> list[GroupPair]:
    """Return what to compare: by default every treatment with the background.

    Raises
    ------
    KeyError, ValueError
        As :func:`~pyro_contrastive.analysis.differential_groups.group_pairs`.
    """
    setup = model.setup
    if groupby is None and idx1 is None and idx2 is None and setup.condition_key is not None:
        groupby = setup.condition_key
        group2 = setup.conditions[0] if group2 is None else group2
    return group_pairs(obs, groupby=groupby, group1=group1, group2=group2, idx1=idx1, idx2=idx2)


def differential_means(
    model: ModelBase,
    adata: AnnData | None,
    pairs: Sequence[GroupPair],
    settings: MeansSettings,
    *,
    sample_key: SampleKey = None,
    batch_size: int | None = None,
    refine: bool | int = False,
    seed: int | None = None,
) -> pd.DataFrame:
    """Compare the means of pairs of groups; see ``differential_expression(mode="means")``.

    Raises
    ------
    KeyError, TypeError
        If `sample_key` is not the name of a column.
    ValueError
        If the likelihood is not one of counts with a library size, a group has no cells with
        counts, or there are too few donors.
    """
    check_counts(model, 'mode="means"')
    obs = model._adata(adata).obs
    if isinstance(settings.strata, str):
        check_key("strata", settings.strata, obs)
    donor_key = _donor_key(model, obs, sample_key, settings)
    query = model._query(adata, None, batch_size, need_condition=False, refine=refine)
    tables = [_compared(model, obs, query, pair, settings, donor_key, seed or 0) for pair in pairs]
    return pd.concat(tables)


def _donor_key(
    model: ModelBase, obs: pd.DataFrame, sample_key: SampleKey, settings: MeansSettings
) -> str | None:
    """Return the column of donors, if they are the unit."""
    given: Any = sample_key  # untyped callers may give anything
    if given is True:
        msg = (
            "sample_key must be the name of a column of adata.obs; False: cells are replicates; "
            "None: the one set up."
        )
        raise TypeError(msg)
    key: str | None = model.setup.sample_key if given is None else None if given is False else given
    if key is not None:
        check_key("sample_key", key, obs)
        column(obs, key)
    elif settings.donor_test != DEFAULT_DONOR_TEST:
        msg = f"donor_test={settings.donor_test!r} compares donors: say which, sample_key=."
        raise ValueError(msg)
    return key


def _compared(
    model: ModelBase,
    obs: pd.DataFrame,
    query: Query,
    pair: GroupPair,
    settings: MeansSettings,
    donor_key: str | None,
    seed: int,
) -> pd.DataFrame:
    query, sizes = cells_with_counts(query.of(np.concatenate([pair.cells1, pair.cells2])))
    cells = query.cells
    side = np.isin(cells, pair.cells1)
    if side.all() or not side.any():
        msg = "One of the groups has no cell with counts: there is nothing to compare."
        raise ValueError(msg)
    donors = None
    if donor_key is not None:
        named, of_cell = np.unique(texts(obs.iloc[cells], donor_key), return_inverse=True)
        donors = Donors(of_cell.astype(np.int64), pd.Index(named), donor_key)
    codes, names = strata_of(model, obs, query, settings, seed, donors)
    table = compare_means(query.data.chosen(cells), sizes, codes, side, names, settings, donors)
    if pair.name1 is not None:
        table.insert(0, "comparison", f"{pair.name1} vs {pair.name2}")
        table.insert(1, "group1", pair.name1)
        table.insert(2, "group2", pair.name2)
    n_blocks = len(table) // len(model.genes)
    table.index = pd.Index(np.tile(np.asarray(model.genes), n_blocks), name="gene")
    table = with_notes(table, settings)
    return table.sort_values("p_value", kind="stable", na_position="last")


def check_counts(model: ModelBase, what: str) -> None:
    """Refuse a model whose data are not counts with a library size.

    Raises
    ------
    ValueError
        If its likelihood is of another kind; the error begins with what asks for counts.
    """
    likelihood = model.module.model.likelihood
    if not (likelihood.uses_library and likelihood.support.is_discrete):
        msg = (
            f"{what} compares counts with a library size, which {type(likelihood).__name__} "
            "does not have."
        )
        raise ValueError(msg)


def cells_with_counts(query: Query) -> tuple[Query, NDArray[np.float64]]:
    """Return the cells that have a size, and their sizes: size factors, or total counts.

    A cell without counts says nothing about proportions.
    """
    factors = query.data.size_factor
    cells = query.cells
    sizes = query.data.totals(cells) if factors is None else factors[cells].astype(float)
    return query.of(cells[sizes > 0]), sizes[sizes > 0]


def strata_of(
    model: ModelBase,
    obs: pd.DataFrame,
    query: Query,
    settings: MeansSettings,
    seed: int,
    donors: Donors | None = None,
) -> tuple[Codes, pd.Index]:
    """Return the stratum of each cell, and the names of the strata: within batches, if any.

    Where donors are the unit and every batch is of one donor, batches are left out: what they
    differ in is part of what donors differ in.
    """
    if isinstance(settings.strata, str):
        labels = texts(obs.iloc[query.cells], settings.strata)
    else:
        with seeded(0):
            z = latent_representation(query, "background", give_mean=True)
        labels = np.array([f"z {k + 1}" for k in clusters(z, int(settings.strata), seed)])
    return within_batches(model, obs, query, labels, donors)


def within_batches(
    model: ModelBase,
    obs: pd.DataFrame,
    query: Query,
    labels: NDArray[Any],
    donors: Donors | None = None,
) -> tuple[Codes, pd.Index]:
    """Return the stratum of each cell, given its label, as :func:`strata_of` does."""
    some = obs.iloc[query.cells]
    key = model.setup.batch_key
    if key is not None:
        batch = texts(some, key)
        if donors is None or pd.Series(donors.codes).groupby(batch).nunique().max() > 1:
            both = zip(labels, batch, strict=True)
            labels = np.array([f"{label}, {value}" for label, value in both])
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    return codes.astype(np.int64), pd.Index(names)
