"""Several fitted models compared on the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.comparison import CellEstimates, Comparison, compare, estimate
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.analysis.pareto import check_draws
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.cell_data import CellData, in_parts
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.refined import refined_cells, refinement_of

__all__ = ["compare_models"]


def compare_models(
    models: Mapping[str, ModelBase],
    adata: AnnData | None = None,
    indices: ArrayLike | None = None,
    n_samples: int = 500,
    batch_size: int | None = None,
    *,
    refine: bool | int = False,
    seed: int = 0,
    silent: bool = False,
) -> Comparison:
    r"""Compare fitted models by their log-likelihood of the same cells, higher being better.

    With the parameters that cells share (decoder, dispersions, learned priors) as learned, it
    estimates

    .. math:: \log p(x_n) = \log \int p(x_n \mid z, s, l)\, p(z)\, p(s)\, p(l)\, dz\, ds\, dl

    from draws of the guide. Latents belong to one cell each, so that this is also the leave-one-out
    predictive density of the cell given the shared parameters (Vehtari, Gelman & Gabry 2017): with
    the cell left out, its latents have their prior. (``arviz.loo`` on draws of the posterior
    estimates the same with weights :math:`1 / p(x \mid z, s, l)`, which fail in this many
    dimensions.) Parameters with a prior, such as a `dispersion_prior`, are averaged over their
    posterior.

    Parameters
    ----------
    models
        Two or more by name, fitted to the same data: genes, layer and cells.
    adata
        The cells. Default: those the first model was made with.
    indices
        Which of them, as indices or boolean mask. Default: those that none of the models was
        trained on. They are found by name, so that data may have lost cells since training or have
        them in another order, but not have renamed ones.
    n_samples
        Posterior draws per cell, at least 25. Default 500.
    batch_size
        Cells at a time. Default 64 (memory is 50 draws x cells x genes).
    refine
        Refine the posterior of each cell before draws are made from it, as in *Shared arguments* of
        :class:`~pyro_contrastive.ContrastiveVI`. Default ``False``. The integral is the same but
        its estimate is far better.
    seed
        Seed of the draws. Default 0.
    silent
        Show no progress bar.

    Returns
    -------
    Comparison
        Its ``table`` has a row per model, the best first, in nats:

        * ``elpd_psis``: sum over cells of log p(x), from Pareto-smoothed weights; ``se``: its
          standard error, as if the cells were drawn anew;
        * ``elpd_diff``, ``diff_se``: difference from the best model and its standard error, paired
          by cell. Judge models by these, not by the overlap of ``se``;
        * ``elpd_iw``: the sum without smoothing; ``monte_carlo_se``: its standard error over
          draws;
        * ``per_cell``, ``n_cells``; ``median_k``, ``share_high_k``, ``k_threshold``,
          ``reliable``: whether importance sampling succeeded, see
          :func:`~pyro_contrastive.analysis.pareto.k_threshold` (unreliable: in more than 5 % of
          the cells k is above it);
        * ``n_trained_on``: how many of the cells the model was trained on, missing where that is
          not known (after loading); ``reading``: a sentence that sums this up.

        ``cells`` has the estimates and k of every cell and model.

    Raises
    ------
    ValueError
        If there are fewer than two models, no cell was held out by all of them, they describe
        different genes or numbers (for example counts and their logarithms), or one gives the data
        a probability and another a density, so that a difference would mean nothing.

    Warns
    -----
    UserWarning
        If fewer than half of the cells that each model held out were held out by all.
        If some models observe the library size and others infer it: the former are given the total
        count of the cell they predict, which favours them.
    """
    _check_arguments(models, n_samples)
    refinements = [refinement_of(refine, model) for model in models.values()]
    n_steps = None if refinements[0] is None else refinements[0].n_steps
    first = next(iter(models.values()))
    adata = first._adata(adata)
    _check_measures(models)
    data = {name: model._data(adata) for name, model in models.items()}
    _check_same_data(models, data)
    seen = {name: _trained_on(model, adata, data[name]) for name, model in models.items()}
    chosen = None
    if indices is None:
        _check_data_of_training(models, adata, seen)
        chosen = _held_out(seen, adata.n_obs)
    cells = as_indices(indices, adata.obs_names) if chosen is None else chosen
    if not len(cells):
        msg = "indices selects no cells: there is nothing to compare the models on."
        raise ValueError(msg)
    estimates: dict[str, CellEstimates] = {}
    with progress("Comparison", len(models) * len(cells), silent=silent):
        for name, model in models.items():
            refined = refined_cells(model, adata, data[name], refine, cells)
            query = Query(model.module, data[name], cells, batch_size, refined=refined)
            with seeded(seed):  # every model with the same seed
                weights = log_weights_of_cells(query, n_samples)
            estimates[name] = estimate(weights)
    n_seen = {
        name: None if found is None else int(np.isin(cells, found).sum())
        for name, found in seen.items()
    }
    table = _table(estimates, n_seen, n_steps)
    return Comparison(table, _by_cell(estimates, adata.obs_names[cells]))


def _check_arguments(models: object, n_samples: int) -> None:
    if not isinstance(models, Mapping):
        msg = "compare_models takes the models by name, as {name: model}."
        raise TypeError(msg)
    check_draws(n_samples)
    if len(models) < 2:  # noqa: PLR2004  # a comparison takes two
        msg = f"compare_models needs two models or more, as {{name: model}}; got {list(models)}."
        raise ValueError(msg)


def _table(
    estimates: Mapping[str, CellEstimates],
    n_seen: Mapping[str, int | None],
    n_steps: int | None,
) -> pd.DataFrame:
    """Tabulate the estimates, with the number of cells that each model was trained on."""
    table = compare(estimates, {name: _note(n) for name, n in n_seen.items()}, n_steps)
    trained_on = pd.array([n_seen[str(name)] for name in table.index], dtype="Int64")
    table.insert(list(table.columns).index("median_k"), "n_trained_on", trained_on)
    return table


def _by_cell(estimates: Mapping[str, CellEstimates], names: pd.Index) -> pd.DataFrame:
    """Return the estimates as a table, a row for every cell and model."""
    parts = [
        pd.DataFrame(
            {"cell": names, "model": model, "iw": found.iw, "psis": found.psis, "k": found.k}
        )
        for model, found in estimates.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _note(n_seen: int | None) -> str:
    """Say whether training has biased an estimate."""
    if n_seen is None:
        return "It is not known whether it was trained on these cells."
    return f"It was trained on {n_seen} of these cells, which favours it." if n_seen else ""


def _check_measures(models: Mapping[str, ModelBase]) -> None:
    """Refuse to compare probabilities with densities; warn if only some are given totals."""
    discrete = {n: m.module.model.likelihood.support.is_discrete for n, m in models.items()}
    if len(set(discrete.values())) > 1:
        counts = [name for name, is_discrete in discrete.items() if is_discrete]
        others = [name for name, is_discrete in discrete.items() if not is_discrete]
        msg = (
            f"{counts} give counts a probability, {others} give numbers a density: the two have "
            "different units, so that their difference means nothing. Compare models of counts "
            "with models of counts."
        )
        raise ValueError(msg)
    observed = {n: m.module.use_observed_lib_size for n, m in models.items() if _uses_library(m)}
    if len(set(observed.values())) > 1:
        given = [name for name, is_observed in observed.items() if is_observed]
        warnings.warn(
            f"{given} are given the total count of each cell they predict, the other models infer "
            "it, so that the comparison favours the former. Use the same use_observed_lib_size.",
            UserWarning,
            stacklevel=3,
        )


def _uses_library(model: ModelBase) -> bool:
    return bool(model.module.model.likelihood.uses_library)


def _check_same_data(models: Mapping[str, ModelBase], data: Mapping[str, CellData]) -> None:
    """Refuse models that describe other genes, or other numbers, than the first."""
    (first, reference), *others = models.items()
    order = np.argsort(np.asarray(reference.genes))
    for name, model in others:
        if set(model.genes) != set(reference.genes):
            n_only = len(set(model.genes) ^ set(reference.genes))
            msg = (
                f"{first!r} and {name!r} describe different genes ({n_only} are in one of them "
                "only): the likelihood of more genes is lower whatever the model. Fit both to the "
                "same genes."
            )
            raise ValueError(msg)
        own = np.argsort(np.asarray(model.genes))
        if not _are_equal(data[first], order, data[name], own):
            layers = [str(m.setup.layer or "X") for m in (reference, model)]
            msg = (
                f"{first!r} and {name!r} describe different numbers (layers {layers[0]} and "
                f"{layers[1]}): likelihoods of data on different scales cannot be compared. Fit "
                "both to the same layer."
            )
            raise ValueError(msg)


def _are_equal(
    first: CellData, order: NDArray[np.int64], other: CellData, own: NDArray[np.int64]
) -> bool:
    """Return whether two data sets hold the same numbers, with genes in these orders."""
    for cells in in_parts(np.arange(len(first))):
        numbers = csr_matrix(first.rows(cells))[:, order]
        if (numbers != csr_matrix(other.rows(cells))[:, own]).nnz:
            return False
    return True


def _trained_on(model: ModelBase, adata: AnnData, data: CellData) -> NDArray[np.int64] | None:
    """Which of these cells the model was trained on, by name; ``None`` if it is not known."""
    if model.adata is adata:
        return model.train_indices
    trained, own = model._trained_cells, model.adata
    if trained is None:
        return None
    if trained.names is None and own is not None and trained.are_of(own.obs_names):
        trained = replace(trained, names=own.obs_names)  # of a model that was loaded
    return trained.trained_among(adata.obs_names, data.totals())


def _check_data_of_training(
    models: Mapping[str, ModelBase],
    adata: AnnData,
    seen: Mapping[str, NDArray[np.int64] | None],
) -> None:
    """Refuse to look for held-out cells in data that changed since training."""
    changed = [
        name for name, model in models.items() if seen[name] is None and _knows_names(model, adata)
    ]
    if changed:
        msg = (
            f"The data changed since {changed} were trained on them: some cells are new by name "
            "and total count (they were added, renamed, or given other counts), or names repeat. "
            "So it is not known which cells were held out. Give adata= as in training, or indices= "
            "of cells that were held out from all models."
        )
        raise ValueError(msg)


def _knows_names(model: ModelBase, adata: AnnData) -> bool:
    """Tell whether a model knows which cells trained, even if not their place in these data."""
    trained = model._trained_cells
    return trained is not None and (model.adata is adata or trained.names is not None)


def _held_out(seen: Mapping[str, NDArray[np.int64] | None], n_cells: int) -> NDArray[np.int64]:
    """Cells that no model was trained on.

    Raises
    ------
    ValueError
        If it is not known, or there are none.
    """
    unknown = [name for name, found in seen.items() if found is None]
    if unknown:
        msg = (
            f"It is not known which cells {unknown} were trained on (they are untrained, or were "
            "loaded): give indices= of cells that were held out from all models."
        )
        raise ValueError(msg)
    known = [found for found in seen.values() if found is not None]
    held_out = np.setdiff1d(np.arange(n_cells), np.concatenate(known))
    if not held_out.size:
        msg = (
            "No cell was held out by all the models. Train them with the same seed= (so that they "
            "hold out the same cells) and train_size below 1, or give indices=."
        )
        raise ValueError(msg)
    fewest = n_cells - max(map(len, known))
    if 2 * len(held_out) < fewest:
        warnings.warn(
            f"The models held out different cells: only {len(held_out)} were held out by all of "
            f"them, of {fewest} or more by each. To compare them on more, train them with the same "
            "seed=, so that they hold out the same cells.",
            UserWarning,
            stacklevel=3,
        )
    return held_out
