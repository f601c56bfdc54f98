"""Export draws to ArviZ (InferenceData; a DataTree from ArviZ 1.0), with cell and gene names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from pyro_contrastive.sites import SalientOfTargets, is_local, observed_sites, site_losses
from pyro_contrastive.vae import ContrastiveVAE

LogLikelihood = Literal["cell", "entry"]
Arrays = dict[str, dict[str, NDArray[Any]]]
MAX_MEMORY = 4e9
"""Size in bytes of all arrays with an axis of genes above which the export is refused."""


@dataclass(frozen=True)
class Export:
    """What to export.

    Parameters
    ----------
    n_samples
        Number of posterior (and prior) draws.
    genes
        Indices of the genes.
    predictive, prior
        Whether to export replicated data from the posterior, and latents and data from the prior.
    log_likelihood
        Per cell (``"cell"``), per cell and gene (``"entry"``), or ``None``: none.
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
        """Refuse arrays that may not fit into memory, before anything is computed.

        Raises
        ------
        ValueError
            If the arrays of cells and genes take more than 4 GB.
        """
        n_arrays = self.predictive + self.prior + (self.log_likelihood == "entry")
        size = 4.0 * n_arrays * self.n_samples * n_cells * len(self.genes)
        if size > MAX_MEMORY:
            msg = (
                f"{self.n_samples} draws of {n_cells} cells x {len(self.genes)} genes, {n_arrays} "
                f"times, take {size / 1e9:.0f} GB. Choose cells (indices=), genes (gene_list=) or "
                "fewer draws (n_samples=), or leave out groups (predictive=False, prior=False)."
            )
            raise ValueError(msg)


def import_arviz() -> Any:
    """Import ArviZ, without the notice about its next version that it shows once a day.

    Raises
    ------
    ImportError
        If it is not installed; the error says how to install it.
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
    """Put datasets, by the name of their group, into the container of this version of ArviZ.

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
    """Run guide and model, and return their draws for ArviZ; see :func:`container`.

    Every site that the model observes in the cells is exported under its name.

    Parameters
    ----------
    query
        The model, the data and the cells.
    export
        Settings of the export.
    gene_names
        Names of the genes of `export`.
    attributes
        Attributes of the group of the posterior.
    """
    arviz = import_arviz()
    import xarray  # noqa: PLC0415 - comes with ArviZ

    vae = query.vae
    export.check_memory(len(query))
    groups: dict[str, dict[str, list[NDArray[Any]]]] = {}
    constant: Arrays = {}  # arrays without cells, the same in every part
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
        of_cells = {name: np.concatenate(values, axis=axis) for name, values in parts.items()}
        datasets[group] = _dataset(xarray, group, of_cells, constant.get(group, {}), coords)
    datasets["posterior"].attrs.update(attributes)
    return container(arviz, datasets)


def _parts(query: Query, export: Export) -> Iterator[tuple[Arrays, Arrays]]:
    vae = query.vae
    posterior_shared, prior_shared = Trace(), Trace()
    for number, (batch, guide) in enumerate(query.with_programs(export.n_samples)):
        with evaluating(vae), seeded(minibatch_seed(export.seed, number)):
            with SalientOfTargets(batch.is_target):
                posterior = draw_posterior(
                    vae, batch, export.n_samples, guide=guide, shared=posterior_shared
                )
                model = run_model(vae, batch, posterior, export.n_samples)
            posterior_shared = shared_sites(posterior)
            part = _observed(vae, batch, export, posterior, model)
            data_sites = [name for name in observed_sites(model) if is_local(model.nodes[name])]
            if export.predictive:
                drawn = run_model(vae, batch, posterior, export.n_samples, replicate=True)
                part["posterior_predictive"] = _data(vae, drawn, data_sites, export)
            shared = {"posterior": _globals(vae, posterior_shared, export)}
            if export.prior:
                drawn = run_model(vae, batch, prior_shared, export.n_samples, replicate=True)
                prior_shared = shared_sites(drawn)
                part["prior"] = _latents(vae, batch, drawn, export.n_samples)
                part["prior_predictive"] = _data(vae, drawn, data_sites, export)
                shared["prior"] = _globals(vae, prior_shared, export)
        yield part, shared


def _observed(
    vae: ContrastiveVAE, batch: CellBatch, export: Export, posterior: Trace, model: Trace
) -> Arrays:
    """Latents, log-densities and data of some cells, ``[draws, cells, ...]``."""
    for trace in (posterior, model):
        trace.compute_log_prob()
    losses = site_losses(model, posterior, analytic=False)
    shape = (export.n_samples, len(batch))
    local = {
        name: loss.double().expand(shape)
        for name, loss in losses.items()
        if is_local(model.nodes[name])
    }
    data_sites = [name for name in observed_sites(model) if name in local]
    part: Arrays = {
        "posterior": _latents(vae, batch, model, export.n_samples),
        "sample_stats": {"log_weight": _array(-torch.stack(list(local.values())).sum(0))},
        "observed_data": _data(vae, model, data_sites, export),
    }
    if export.log_likelihood == "cell":
        part["log_likelihood"] = {name: _array(-local[name]) for name in data_sites}
    elif export.log_likelihood == "entry":
        entries = {name: _entry_log_likelihood(model.nodes[name]) for name in data_sites}
        part["log_likelihood"] = {
            name: _array(_of_genes(value, vae, export)) for name, value in entries.items()
        }
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
    """Return z, s as the decoder sees it, and the library size if the likelihood uses it."""
    nodes = trace.nodes
    found = {
        "z": nodes["z"]["value"],
        "s": vae.model.used_salient(nodes["s"]["value"], batch),
    }
    if vae.model.likelihood.uses_library:
        library = nodes["library"]["value"]
        found["library"] = library.expand(n_samples, len(batch), 1)[..., 0]
    return {name: _array(value) for name, value in found.items()}


def _globals(vae: ContrastiveVAE, shared: Trace, export: Export) -> dict[str, NDArray[Any]]:
    """Return draws of parameters, ``[draws, ...]``, without the axis of cells."""
    values = {name: site["value"][:, 0] for name, site in shared.nodes.items()}
    return {name: _array(_of_genes(value, vae, export)) for name, value in values.items()}


def _data(
    vae: ContrastiveVAE, trace: Trace, sites: Sequence[str], export: Export
) -> dict[str, NDArray[Any]]:
    """Return the data at these sites; counts as integers, for which ArviZ draws histograms."""
    found = {}
    for name in sites:
        site = trace.nodes[name]
        values = _array(_of_genes(site["value"], vae, export))
        found[name] = values.astype(np.int32) if site["fn"].support.is_discrete else values
    return found


def _of_genes(value: Tensor, vae: ContrastiveVAE, export: Export) -> Tensor:
    """Select the genes of an array whose last axis is genes; other arrays are unchanged."""
    return value[..., export.genes] if value.shape[-1] == vae.n_input else value


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy()


DIMS = {"z": ("cell", "z_dim"), "s": ("cell", "s_dim"), "library": ("cell",)}


def _dataset(
    xarray: Any,
    group: str,
    of_cells: dict[str, Any],
    shared: dict[str, Any],
    coords: Mapping[str, Any],
) -> Any:
    """Name the axes of every array; ArviZ expects an axis of chains, here of length 1."""
    observed = group == "observed_data"
    variables: dict[str, Any] = {}
    for name, values in (of_cells | shared).items():
        n_axes = values.ndim - (not observed)  # without that of draws
        dims = [f"{name}_dim_{i}" for i in range(n_axes)]
        if dims and values.shape[-1] == len(coords["gene"]):
            dims[-1:] = ["gene"]
        if name in of_cells:
            dims[0] = "cell"
        dims = list(DIMS.get(name, dims))
        variables[name] = (dims, values) if observed else (["chain", "draw", *dims], values[None])
    named = {dim for dims, _ in variables.values() for dim in dims}
    used = {dim: values for dim, values in coords.items() if dim in named}
    if not observed:
        n_draws = next(iter(of_cells.values())).shape[0]
        used |= {"chain": [0], "draw": np.arange(n_draws)}
    return xarray.Dataset(variables, coords=used)
