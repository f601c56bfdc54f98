"""Draws for ArviZ (InferenceData, or a DataTree from ArviZ 1.0 on), with named cells and genes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.predictive import minibatch_seed
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.analysis.runs import draw_posterior, run_model, shared_sites
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.sites import SalientOfTargets, is_local, site_losses
from pyro_contrastive.vae import ContrastiveVAE

LogLikelihood = Literal["cell", "entry"]
Arrays = dict[str, dict[str, NDArray[Any]]]
MOST_MEMORY = 4e9
"""Bytes of all arrays with an axis of genes, above which the export is refused."""


@dataclass(frozen=True)
class Export:
    """What is exported.

    Parameters
    ----------
    n_samples
        Posterior (and prior) draws.
    genes
        Positions of the genes.
    predictive, prior
        Replicate data from the posterior; latents and data from the prior.
    log_likelihood
        Per cell, per cell and gene, or not at all.
    seed
        Seed; default: torch's global state.
    """

    n_samples: int
    genes: NDArray[np.int64]
    predictive: bool = True
    prior: bool = True
    log_likelihood: LogLikelihood | None = "cell"
    seed: int | None = None

    def check_memory(self, n_cells: int) -> None:
        """Refuse what would not fit into memory, before anything is computed.

        Raises
        ------
        ValueError
            If the arrays of cells and genes take more than 4 GB.
        """
        n_arrays = self.predictive + self.prior + (self.log_likelihood == "entry")
        size = 4.0 * n_arrays * self.n_samples * n_cells * len(self.genes)
        if size > MOST_MEMORY:
            msg = (
                f"{self.n_samples} draws of {n_cells} cells x {len(self.genes)} genes, {n_arrays} "
                f"times, take {size / 1e9:.0f} GB. Choose cells (indices=), genes (gene_list=) or "
                "fewer draws (n_samples=), or leave out groups (predictive=False, prior=False)."
            )
            raise ValueError(msg)


def import_arviz() -> Any:
    """Import ArviZ, without the notice of its next version that it gives once a day.

    Raises
    ------
    ImportError
        If it is not installed; the error says how to.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import arviz  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        msg = "to_arviz needs ArviZ: pip install 'pyro-contrastive[arviz]'."
        raise ImportError(msg) from error
    return arviz


def container(arviz: Any, groups: Mapping[str, Any]) -> Any:
    """Put datasets, by the name of their group, into what this version of ArviZ works with.

    Parameters
    ----------
    arviz
        The package.
    groups
        An ``xarray.Dataset`` for each group.

    Returns
    -------
    An ``xarray.DataTree`` for ArviZ 1.0 and later, ``arviz.InferenceData`` for earlier versions.
    """
    if int(arviz.__version__.partition(".")[0]) >= 1:
        import xarray  # noqa: PLC0415 - comes with ArviZ

        return xarray.DataTree.from_dict(dict(groups))
    return arviz.InferenceData(**groups)


def to_arviz(
    query: Query,
    export: Export,
    gene_names: NDArray[Any],
    attributes: Mapping[str, str],
) -> Any:
    """Run guide and model, and return the draws as ArviZ takes them, see :func:`container`.

    Parameters
    ----------
    query
        The model, the data and which cells.
    export
        What to export.
    gene_names
        Of the genes of `export`.
    attributes
        Noted with the posterior.
    """
    arviz = import_arviz()
    import xarray  # noqa: PLC0415 - comes with ArviZ

    vae = query.vae
    export.check_memory(len(query))
    groups: dict[str, dict[str, list[NDArray[Any]]]] = {}
    constant: Arrays = {}  # what belongs to no cell is the same in every part
    for part, constant in _parts(query, export):  # noqa: B007 - used after the loop
        for group, arrays in part.items():
            for name, values in arrays.items():
                groups.setdefault(group, {}).setdefault(name, []).append(values)
    coords = {
        "cell": query.names.to_numpy(),
        "gene": gene_names,
        "z_dim": np.arange(vae.n_background_latent),
        "s_dim": np.arange(vae.n_salient_latent),
    }
    datasets = {}
    for group, parts in groups.items():
        axis = 0 if group == "observed_data" else 1
        joined = {name: np.concatenate(values, axis=axis) for name, values in parts.items()}
        joined |= constant.get(group, {})
        datasets[group] = _dataset(xarray, group, joined, coords)
    datasets["posterior"].attrs.update(attributes)
    return container(arviz, datasets)


def _parts(query: Query, export: Export) -> Iterator[tuple[Arrays, Arrays]]:
    vae = query.vae
    posterior_shared, prior_shared = Trace(), Trace()
    for number, batch in enumerate(query.minibatches(export.n_samples)):
        with evaluating(vae), seeded(minibatch_seed(export.seed, number)):
            with SalientOfTargets(batch.is_target):
                posterior = draw_posterior(vae, batch, export.n_samples, shared=posterior_shared)
                model = run_model(vae, batch, posterior, export.n_samples)
            posterior_shared = shared_sites(posterior)
            part = _observed(vae, batch, export, posterior, model)
            if export.predictive:
                drawn = run_model(vae, batch, posterior, export.n_samples, replicate=True)
                part["posterior_predictive"] = {"x": _data_of(vae, drawn, export)}
            shared = {"posterior": _globals(posterior_shared, export, vae.n_input)}
            if export.prior:
                drawn = run_model(vae, batch, prior_shared, export.n_samples, replicate=True)
                prior_shared = shared_sites(drawn)
                part["prior"] = _latents(vae, batch, drawn, export.n_samples)
                part["prior_predictive"] = {"x": _data_of(vae, drawn, export)}
                shared["prior"] = _globals(prior_shared, export, vae.n_input)
        yield part, shared


def _observed(
    vae: ContrastiveVAE, batch: CellBatch, export: Export, posterior: Trace, model: Trace
) -> Arrays:
    """Latents, log-densities and data of some cells, ``[draws, cells, ...]``."""
    for trace in (posterior, model):
        trace.compute_log_prob()
    losses = site_losses(model, posterior, analytic=False)
    local = [loss for name, loss in losses.items() if is_local(model.nodes[name])]
    shape = (export.n_samples, len(batch))
    weight = -torch.stack([loss.double().expand(shape) for loss in local]).sum(0)
    part: Arrays = {
        "posterior": _latents(vae, batch, model, export.n_samples),
        "sample_stats": {"log_weight": _array(weight)},
        "observed_data": {"x": _as_data(vae, batch.x, export)},
    }
    if export.log_likelihood == "cell":
        part["log_likelihood"] = {"x": _array(-losses["x"].double().expand(shape))}
    elif export.log_likelihood == "entry":
        entries = _entry_log_likelihood(model.nodes["x"])
        part["log_likelihood"] = {"x": _array(entries[..., export.genes])}
    return part


def _entry_log_likelihood(site: Mapping[str, Any]) -> Tensor:
    fn = site["fn"]
    if not isinstance(fn, dist.Independent) or fn.event_dim != 1:
        msg = (
            "log_likelihood='entry' needs a likelihood that is independent between genes, "
            f"Distribution.to_event(1), not {type(fn).__name__}. Use log_likelihood='cell'."
        )
        raise ValueError(msg)
    value: Tensor = fn.base_dist.log_prob(site["value"])
    return value


def _latents(
    vae: ContrastiveVAE, batch: CellBatch, trace: Trace, n_samples: int
) -> dict[str, NDArray[Any]]:
    """z, s as the decoder sees it, and the library size where there is one."""
    nodes = trace.nodes
    found = {
        "z": nodes["z"]["value"],
        "s": vae.model.used_salient(nodes["s"]["value"], batch),
    }
    if vae.model.likelihood.uses_library:
        library = nodes["library"]["value"]
        found["library"] = library.expand(n_samples, len(batch), 1)[..., 0]
    return {name: _array(value) for name, value in found.items()}


def _globals(shared: Trace, export: Export, n_genes: int) -> dict[str, NDArray[Any]]:
    """Draws of parameters, ``[draws, ...]``: without the axis of one where others have cells."""
    found = {}
    for name, site in shared.nodes.items():
        value = site["value"][:, 0]
        found[name] = _array(value[..., export.genes] if value.shape[-1] == n_genes else value)
    return found


def _data_of(vae: ContrastiveVAE, trace: Trace, export: Export) -> NDArray[Any]:
    return _as_data(vae, trace.nodes["x"]["value"], export)


def _as_data(vae: ContrastiveVAE, x: Tensor | None, export: Export) -> NDArray[Any]:
    """Return data of the chosen genes; counts as integers, which ArviZ draws as histograms."""
    if x is None:  # pragma: no cover - cells of a data set carry data
        msg = "These cells carry no data."
        raise ValueError(msg)
    values = _array(x[..., export.genes])
    return values.astype(np.int32) if vae.model.likelihood.support.is_discrete else values


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy()


DIMS = {"z": ("cell", "z_dim"), "s": ("cell", "s_dim"), "library": ("cell",)}


def _dataset(xarray: Any, group: str, arrays: Mapping[str, Any], coords: Mapping[str, Any]) -> Any:
    """Name the axes of every array; draws get the axis of one chain that ArviZ expects."""
    variables: dict[str, Any] = {}
    used: dict[str, Any] = {}
    for name, values in arrays.items():
        observed = group == "observed_data"
        n_axes = values.ndim - (not observed)
        default: tuple[str, ...] = ("cell", "gene")[:n_axes]
        if name not in {"x", "log_weight", *DIMS}:
            default = tuple(f"{name}_dim_{i}" for i in range(n_axes))
            if values.shape[-1] == len(coords["gene"]):
                default = (*default[:-1], "gene")
        dims = DIMS.get(name, default)
        used |= {dim: coords[dim] for dim in dims if dim in coords}
        variables[name] = (dims, values) if observed else (("chain", "draw", *dims), values[None])
        if not observed:
            used |= {"chain": [0], "draw": np.arange(len(values))}
    return xarray.Dataset(variables, coords=used)
