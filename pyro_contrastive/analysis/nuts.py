"""Hamiltonian Monte Carlo on the latents of given cells, with the decoder fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import Moments
from pyro_contrastive.model import SALIENT
from pyro_contrastive.sites import SalientOfTargets, is_local
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["NutsDraws", "NutsSettings", "sample_nuts", "shared_values"]


@dataclass(frozen=True)
class NutsSettings:
    """How the sampler is run.

    Parameters
    ----------
    n_draws, n_warmup
        Draws of each chain that are kept, and draws before them, which adapt the step size.
    n_chains
        Chains per cell, from different starts; R-hat needs at least two.
    cells_at_a_time
        Cells sampled together. Their posteriors are independent, so that this only affects the
        time: one evaluation serves them all, but the more there are, the shorter the step.
    target_accept, max_tree_depth
        As in :class:`pyro.infer.NUTS`.
    """

    n_draws: int = 200
    n_warmup: int = 100
    n_chains: int = 2
    cells_at_a_time: int = 16
    target_accept: float = 0.8
    max_tree_depth: int = 7


@dataclass(frozen=True)
class NutsDraws:
    """Draws of the latents of some cells, on the scale on which they are unconstrained.

    Parameters
    ----------
    values
        By site, ``[chains, draws, cells, latents]``; logarithms where the latent is positive.
        ``s`` of background cells, which have none, is NaN.
    n_divergent
        Divergent trajectories of each cell, ``[cells]``: counted over the cells sampled together,
        since it is not known which of them diverged.
    """

    values: dict[str, Tensor]
    n_divergent: Tensor

    def summary(self, site: str) -> dict[str, Tensor]:
        """Mean, standard deviation, effective sample size and split R-hat, ``[cells, latents]``.

        NaN where a cell has no such latent.
        """
        draws = self.values[site].double()
        there = draws[0, 0].isfinite().all(-1)  # [cells]
        names = ("mean", "sd", "ess", "rhat")
        out = {name: torch.full_like(draws[0, 0], torch.nan) for name in names}
        if not there.any():
            return out
        found = draws[:, :, there]
        flat = found.flatten(0, 1)
        out["mean"][there] = flat.mean(0)
        out["sd"][there] = flat.std(0)
        out["ess"][there] = effective_sample_size(found, chain_dim=0, sample_dim=1)
        out["rhat"][there] = split_gelman_rubin(found, chain_dim=0, sample_dim=1)
        return out


def sample_nuts(
    vae: ContrastiveVAE,
    batch: CellBatch,
    start: Mapping[str, Moments],
    settings: NutsSettings | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> NutsDraws:
    """Draw from p(z, s, l | x) of each cell, with everything that cells share held fixed.

    Chains of one cell are copies of it in the plate of cells. Background cells have no salient
    latent. Parameters with a prior are at their posterior mean.

    Parameters
    ----------
    vae
        The model.
    batch
        The cells, with counts.
    start
        Mean and variance of each site, ``[cells, latents]``, as a guide has them (of the log where
        it is positive). The chains start at draws from them, and the sampler moves in these units.
        They do not affect what is sampled, only how fast: take those of refined posteriors.
    settings
        Default: :class:`NutsSettings`.
    advance
        Called with the number of cells that were finished.
    """
    given = settings or NutsSettings()
    shape = (given.n_chains, given.n_draws, len(batch))
    values = {
        site: mean.new_full((*shape, mean.shape[-1]), torch.nan)
        for site, (mean, _) in start.items()
    }
    n_divergent = torch.zeros(len(batch), dtype=torch.long)
    with evaluating(vae):
        shared = shared_values(vae)
        for block in torch.split(torch.arange(len(batch)), given.cells_at_a_time):
            moments = {k: (m[block], v[block]) for k, (m, v) in start.items()}
            drawn, divergent = _sample_block(vae, batch.take(block), moments, shared, given)
            for site, draws in drawn.items():
                values[site][:, :, block] = draws
            n_divergent[block] = divergent
            advance(len(block))
    values[SALIENT][:, :, ~batch.is_target] = torch.nan
    return NutsDraws(values, n_divergent)


def shared_values(vae: ContrastiveVAE) -> dict[str, Tensor]:
    """Posterior means of the parameters that have a prior, by the names of their sites."""
    shared = getattr(vae.guide, "shared", None)
    if shared is None:
        return {}
    sites = poutine.trace(shared).get_trace().nodes
    return {
        name: site["fn"].mean
        for name, site in sites.items()
        if site["type"] == "sample" and not is_local(site)
    }


def _sample_block(
    vae: ContrastiveVAE,
    batch: CellBatch,
    start: dict[str, Moments],
    shared: Mapping[str, Tensor],
    settings: NutsSettings,
) -> tuple[dict[str, Tensor], int]:
    """Sample cells together: ``[chains, draws, cells, latents]`` by site, and divergences."""
    n_cells, n_chains = len(batch), settings.n_chains
    copies = batch.take(torch.arange(n_cells, device=batch.condition.device).repeat(n_chains))
    locations = {site: mean.repeat(n_chains, 1) for site, (mean, _) in start.items()}
    scales = {site: variance.sqrt().repeat(n_chains, 1) for site, (_, variance) in start.items()}
    model = poutine.condition(vae.model, data=dict(shared))
    with torch.enable_grad():
        _, potential, _, _ = initialize_model(model, model_args=(copies,), max_plate_nesting=1)

        def in_units_of_start(steps: dict[str, Tensor]) -> Tensor:
            moved = {k: locations[k] + scales[k] * value for k, value in steps.items()}
            # Nothing in the model depends on s of background cells, but a sampler needs a density
            # there. A standard normal is the easiest one, and independent of everything else.
            with SalientOfTargets(copies.is_target):
                energy = potential(moved)
            return energy + steps[SALIENT][~copies.is_target].square().sum() / 2

        kernel = NUTS(
            potential_fn=in_units_of_start,
            # The units are already those of the posterior. A mass matrix estimated from a short
            # warm-up would be worse, and a chain whose units are too small does not move.
            adapt_mass_matrix=False,
            target_accept_prob=settings.target_accept,
            max_tree_depth=settings.max_tree_depth,
        )
        sampler = MCMC(
            kernel,
            num_samples=settings.n_draws,
            warmup_steps=settings.n_warmup,
            initial_params={site: torch.randn_like(mean) for site, mean in locations.items()},
            disable_progbar=True,
        )
        sampler.run()
    drawn = {}
    for site, steps in sampler.get_samples().items():  # [draws, chains * cells, latents]
        moved = (locations[site] + scales[site] * steps).detach()
        drawn[site] = moved.unflatten(1, (n_chains, n_cells)).transpose(0, 1)
    divergent = sum(len(found) for found in sampler.diagnostics()["divergences"].values())
    return drawn, divergent
