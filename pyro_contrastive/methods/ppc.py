"""Inputs of a posterior predictive check of a model: data, groups of cells, replicates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.analysis.ppc.inputs import CheckedData, ReplicateStream
from pyro_contrastive.analysis.predictive import (
    Predicting,
    collect_dense,
    minibatch_seed,
    replicates,
)
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.labels import UNNAMED_CONDITIONS, label_keys
from pyro_contrastive.methods.queries import known_genes


def data_to_check(
    model: ModelBase, obs: pd.DataFrame, query: Query, groupby: str | Sequence[str] | None
) -> CheckedData:
    """Return the counts of the cells and genes asked about, with their names and groups."""
    groups, contrast = _groups(model, obs, query, groupby)
    likelihood = model.module.model.likelihood
    return CheckedData(
        query.data.rows(query.cells)[:, query.genes],
        are_counts=bool(likelihood.support.is_discrete),
        groups=groups,
        contrast=contrast,
        gene_names=np.asarray(model.setup.genes)[query.genes],
        cell_names=query.names,
        described=type(likelihood).__name__,
    )


def _groups(
    model: ModelBase, obs: pd.DataFrame, query: Query, groupby: str | Sequence[str] | None
) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """Labels of the cells by key, and the background group that treatments are compared with."""
    setup, data, cells = model.setup, query.data, query.cells
    keys = label_keys(obs, groupby, "groupby", (setup.batch_key, setup.labels_key))
    groups: dict[str, Any] = {}
    contrast = None
    if data.condition is not None:
        key = setup.condition_key or "condition"
        names = np.asarray(data.conditions or UNNAMED_CONDITIONS, dtype=object)
        groups[key] = names[data.condition[cells]]
        if (data.condition[cells] == BACKGROUND).any():
            contrast = (key, str(names[BACKGROUND]))
    groups |= {key: obs[key].iloc[cells] for key in keys if key not in groups}
    return groups, contrast


def streamed(query: Query, seed: int | None) -> ReplicateStream:
    """Return the replicates of these cells, to be drawn on demand."""

    def parts() -> Iterable[NDArray[np.float32]]:
        return (part.x for part in replicates(query, Predicting(seed=seed)))

    def whole(number: int) -> NDArray[np.float32]:
        # Other numbers than those of the mini-batches, which count up from 0.
        predicting = Predicting(seed=minibatch_seed(seed, 2**32 + number))
        one = replace(query, decoding=replace(query.decoding, n_samples=1))
        drawn: Iterator[Any] = replicates(one, predicting)
        return collect_dense(drawn, 1, len(query), len(query.genes))[0]

    return ReplicateStream(parts, query.decoding.n_samples, whole)


def gene_positions(genes: Sequence[str] | None, names: NDArray[Any]) -> NDArray[np.int64] | None:
    """Return the positions of `correlation_genes` among the genes of the check."""
    if genes is None:
        return None
    asked = known_genes("correlation_genes", genes, names.tolist(), "the check")
    positions = {gene: position for position, gene in enumerate(names)}
    return np.array([positions[gene] for gene in asked], dtype=np.int64)
