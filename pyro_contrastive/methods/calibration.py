"""The genes whose expression and treatment effect are ranked by simulation-based calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyro_contrastive.analysis.decoding import has_expression
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.ranks import Quantities
from pyro_contrastive.cells import X
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.effects import usual_pseudocount
from pyro_contrastive.methods.queries import decoding_of

__all__ = ["quantities_of"]

N_GENES = 5


def quantities_of(model: ModelBase, query: Query, gene_list: Sequence[str] | None) -> Quantities:
    """Return what is to be ranked, with the genes asked for.

    Parameters
    ----------
    model
        The model.
    query
        The cells that simulated ones take the place of.
    gene_list
        Genes. Default: those of the highest mean in these cells, about whose expression the counts
        say most; none if the likelihood has no normalised expression.

    Raises
    ------
    TypeError, ValueError
        If it is no list, or a gene is unknown.
    """
    if gene_list is not None:
        genes = np.arange(model.module.n_input)[decoding_of(model, gene_list=gene_list).genes]
    elif has_expression(query):
        blocks = query.data.observed[X].blocks(query.cells)
        sums = sum(np.asarray(rows.sum(axis=0, dtype=np.float64)).ravel() for _, rows in blocks)
        genes = np.argsort(-np.asarray(sums), kind="stable")[:N_GENES]
    else:
        genes = np.arange(0)
    names = np.asarray(model.setup.genes)[genes]
    return Quantities(genes.tolist(), names.tolist(), usual_pseudocount(model))
