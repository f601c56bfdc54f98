"""Running model and guide on cells, which every analysis of a fitted model is built on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.runtime import NonlocalExit
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.model import without_expression
from pyro_contrastive.sites import is_local
from pyro_contrastive.vae import ContrastiveVAE


def device_of(vae: ContrastiveVAE) -> torch.device:
    """Return the device the parameters are on."""
    return next(vae.parameters()).device


def dtype_of(vae: ContrastiveVAE) -> torch.dtype:
    """Return the dtype of the parameters: float32, or float64 after ``module.double()``."""
    return next(vae.parameters()).dtype


def draw_posterior(
    vae: ContrastiveVAE,
    batch: CellBatch,
    n_samples: int = 1,
    *,
    guide: Any = None,
    shared: Trace | None = None,
) -> Trace:
    """Run the guide; every latent has shape ``[n_samples, cells, latents]``, independent draws.

    Parameters
    ----------
    vae, batch, n_samples
        The model, the cells, and how many draws of each.
    guide
        Another program with the same sites, in place of the guide of `vae`.
    shared
        Draws to reuse: see :func:`shared_sites`.
    """
    program = _samples(n_samples)(vae.guide if guide is None else guide)
    if shared is not None:
        program = poutine.replay(program, trace=shared)
    return poutine.trace(program).get_trace(batch)


def shared_sites(trace: Trace) -> Trace:
    """Return the draws that all cells share, such as inverse dispersions that have a prior.

    Mini-batches that make up one draw of the data must have them in common.
    """
    shared = Trace()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or site["is_observed"]:
            continue
        if not is_local(site):
            shared.add_node(name, **site)
    return shared


def run_model(
    vae: ContrastiveVAE,
    batch: CellBatch,
    posterior: Trace,
    n_samples: int = 1,
    do: dict[str, Tensor] | None = None,
    *,
    replicate: bool = False,
) -> Trace:
    """Run the model on draws of the posterior, without its deterministic sites of expression.

    Those are what :func:`value_at` is for. Without them the log-density is evaluated in its fastest
    way.

    Parameters
    ----------
    vae, batch
        The model and the cells; the batch may be a counterfactual one.
    posterior
        What :func:`draw_posterior` returned; sites that it lacks are drawn from their prior.
    n_samples
        The number of draws in it.
    do
        Values to set sites to, whatever the posterior says (Pyro's do-operator).
    replicate
        Draw new data at the site ``x`` instead of observing those of `batch`.
    """
    # Innermost: outside `do`, it would release the sites that `do` sets.
    model: Any = poutine.uncondition(vae.model) if replicate else vae.model
    program = _replayed(model, posterior, n_samples, do)
    with without_expression():
        return poutine.trace(program).get_trace(batch)


def without_salient(posterior: Trace) -> dict[str, Tensor]:
    """Return the intervention (Pyro's ``do``) that sets the salient latent of every draw to 0."""
    return {"s": torch.zeros_like(posterior.nodes["s"]["value"])}


def value_at(
    site: str,
    vae: ContrastiveVAE,
    batch: CellBatch,
    posterior: Trace,
    n_samples: int = 1,
    do: dict[str, Tensor] | None = None,
) -> Tensor | None:
    """Run the model up to a site, and return its value; ``None`` if there is no such site.

    The program is stopped there: the distribution of all counts, which comes after expression,
    would take as long again. Parameters are those of :func:`run_model`.
    """
    program = _replayed(vae.model, posterior, n_samples, do)
    program = poutine.escape(program, escape_fn=lambda msg: bool(msg["name"] == site))
    try:
        program(batch)
    except NonlocalExit as stopped:
        value: Tensor = stopped.site["value"]
        return value
    return None


def _replayed(
    model: Any, posterior: Trace, n_samples: int, do: dict[str, Tensor] | None
) -> Callable[[CellBatch], Any]:
    if do is not None:
        model = poutine.do(model, do)
    replayed: Callable[[CellBatch], Any] = poutine.replay(
        _samples(n_samples)(model), trace=posterior
    )
    return replayed


def _samples(n_samples: int) -> Any:
    if n_samples < 1:
        msg = f"n_samples must be at least 1, not {n_samples}."
        raise ValueError(msg)
    return pyro.plate("samples", n_samples, dim=-2)
