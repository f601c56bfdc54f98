"""Turn the user's arguments into a query for replicate data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive.analysis.counterfactuals import Intervention
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.levels import several
from pyro_contrastive.methods.base import Level, ModelBase
from pyro_contrastive.methods.interventions import (
    SalientSource,
    query_under,
)
from pyro_contrastive.methods.queries import Covariates, decoding_of


@dataclass(frozen=True)
class ReplicatesWanted:
    """What a user asked to draw: unchecked arguments of ``posterior_predictive_sample``."""

    n_samples: int
    gene_list: Sequence[str] | None = None
    condition: Level | None = None
    transform_batch: Level | None = None
    transform_covariates: Covariates = None
    salient_source: SalientSource = "aggregate_posterior"
    refine: bool | int = False


def query_for_replicates(
    model: ModelBase,
    adata: AnnData | None,
    indices: ArrayLike | None,
    batch_size: int | None,
    wanted: ReplicatesWanted,
) -> tuple[Query, Intervention | None]:
    """Turn names into a question, and into the intervention if a condition is given.

    Raises
    ------
    TypeError, ValueError
        If a name is unknown, a number is too small, or there are several batches.
    """
    if several(wanted.transform_batch):
        msg = f"transform_batch must be one batch here, not {wanted.transform_batch!r}."
        raise ValueError(msg)
    intervention = None
    if wanted.condition is None:
        query = model._query(adata, indices, batch_size, refine=wanted.refine)
    else:
        query, intervention = query_under(
            *(model, wanted.condition, adata, indices, batch_size, wanted.salient_source),
            refine=wanted.refine,
        )
    decoding = decoding_of(
        model,
        gene_list=wanted.gene_list,
        transform_batch=wanted.transform_batch,
        n_samples=wanted.n_samples,
        transform_covariates=wanted.transform_covariates,
    )
    return replace(query, decoding=decoding), intervention
