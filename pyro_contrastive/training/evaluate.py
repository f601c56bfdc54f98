"""The parts of the loss on given cells, without training on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyro
import torch
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.resident import ResidentCells
from pyro_contrastive.sites import is_local, site_losses
from pyro_contrastive.training.splits import Population, evaluation_batches
from pyro_contrastive.vae import ContrastiveVAE

Traces = tuple[pyro.poutine.Trace, pyro.poutine.Trace]
"""Of the model and of the guide."""


def evaluate(
    vae: ContrastiveVAE,
    data: CellData | ResidentCells,
    cells: Population,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, float]:
    """Mean over background plus mean over target cells of each part of the negative ELBO.

    In evaluation mode, with posterior draws from a fixed `seed`, KL divergences analytic where they
    can be and unweighted.

    Parameters
    ----------
    vae, data
        The model and the data set.
    cells
        Which of its cells, of both populations.
    batch_size
        Cells of each population at a time.
    device
        Where to evaluate.
    seed
        Of the posterior draws: two calls see the same noise.

    Returns
    -------
    ``reconstruction_loss``, ``kl_z``, ``kl_s``, ``kl_library`` (if latent), and each penalty,
    averaged over the mini-batches that hold cells of both populations. With several treatments
    also ``elbo_<condition>``, the mean over the cells of each condition.
    """
    sums: dict[str, float] = {}
    penalties: dict[str, list[float]] = {}
    by_condition = _ByCondition(data.conditions)
    with evaluating(vae), seeded(seed), pyro.validation_enabled(False):
        for indices in evaluation_batches(cells, batch_size):
            batch = data.cells(indices, device, next(vae.parameters()).dtype)
            particles = list(vae.objective._get_traces(vae.model, vae.guide, (batch,), {}))
            if vae.objective.weighting == "proportional":
                weights = torch.full(batch.is_target.shape, 2.0 / len(cells), device=device)
            else:
                weights = torch.where(
                    batch.is_target, 1.0 / len(cells.target), 1.0 / len(cells.background)
                )
            for traces in particles:
                for name, value in _site_terms(vae, traces, weights).items():
                    sums[name] = sums.get(name, 0.0) + value / len(particles)
                by_condition.add(traces, batch.condition)
                if batch.is_target.any() and not batch.is_target.all():
                    for penalty in vae.penalties:
                        value = float(penalty(*traces, batch))
                        penalties.setdefault(penalty.name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in penalties.items()}
    return sums | means | by_condition.means()


class _ByCondition:
    """Adds up the negative ELBO of the cells of each condition, where there are several."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names if len(names) > 2 else ()  # noqa: PLR2004  # one treatment: see elbo
        self.sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.counts = torch.zeros(len(self.names), dtype=torch.float64)

    def add(self, traces: Traces, condition: Tensor) -> None:
        if not self.names:
            return
        local = {n: t for n, t in _site_losses(traces).items() if is_local(traces[0].nodes[n])}
        losses = torch.stack([t.reshape(-1, len(condition)).mean(0) for t in local.values()])
        self.sums.index_add_(0, condition.cpu(), losses.sum(0).double().cpu())
        self.counts.index_add_(0, condition.cpu(), torch.ones(len(condition)).double())

    def means(self) -> dict[str, float]:
        found = [i for i in range(len(self.names)) if self.counts[i] > 0]
        return {f"elbo_{self.names[i]}": float(self.sums[i] / self.counts[i]) for i in found}


def _site_losses(traces: Traces) -> dict[str, Tensor]:
    return site_losses(*traces, analytic=True)


def _site_terms(vae: ContrastiveVAE, traces: Traces, weights: Tensor) -> dict[str, float]:
    """Return the share that this mini-batch has in each site's part."""
    terms = {}
    for name, term in _site_losses(traces).items():
        if is_local(traces[0].nodes[name]):
            total = (term * weights).sum(-1).mean()  # the mean is over vectorised particles
        else:  # shared by all cells of the data set, as in the objective
            total = term.mean() * weights.sum() / (vae.objective.data_size or 1)
        terms["reconstruction_loss" if name == "x" else f"kl_{name}"] = float(total)
    return terms


def global_sites(vae: ContrastiveVAE, batch: CellBatch) -> frozenset[str]:
    """Names of the latent sites that are shared by all cells (parameters with a prior)."""
    with evaluating(vae), seeded(0), pyro.validation_enabled(False):
        traces = next(iter(vae.objective._get_traces(vae.model, vae.guide, (batch,), {})))
    nodes = traces[0].nodes
    latents = (name for name in _site_losses(traces) if not nodes[name]["is_observed"])
    return frozenset(name for name in latents if not is_local(nodes[name]))


def named(
    means: Mapping[str, float], part: str, global_: Collection[str] = (), n_pairs: float = 1.0
) -> dict[str, float]:
    """Add the sums scvi-tools reports, and the part of the data to every name.

    Parameters
    ----------
    means
        What :func:`evaluate` returns.
    part
        ``"train"`` or ``"validation"``.
    global_, n_pairs
        Names of the sites shared by all cells, and among how many pairs of cells their KL is: in
        `means` it is a pair's share, as in the ELBO; ``kl_global`` is the whole of it.
    """
    shared = {f"kl_{site}" for site in global_}
    kl = {name: value for name, value in means.items() if name.startswith("kl_")}
    kl_global = sum(value for name, value in kl.items() if name in shared)
    totals = {
        "elbo": means["reconstruction_loss"] + sum(kl.values()),
        "kl_local": sum(value for name, value in kl.items() if name not in shared),
        "kl_global": kl_global * n_pairs,
    }
    return {f"{name}_{part}": value for name, value in (totals | dict(means)).items()}


def loss_of(vae: ContrastiveVAE, means: Mapping[str, float]) -> float:
    """Loss whose parts are `means`: with the KL weight as it stands, and the penalties."""
    annealed = {f"kl_{site}" for site in vae.objective.annealed}
    annealed |= {penalty.name for penalty in vae.penalties if penalty.annealed}
    weights = {penalty.name: penalty.weight for penalty in vae.penalties}
    kl_weight = float(vae.objective.kl_weight)
    return sum(
        value * weights.get(name, 1.0) * (kl_weight if name in annealed else 1.0)
        for name, value in means.items()
        if not name.startswith("elbo_")  # of one condition: sums of what is here already
    )
