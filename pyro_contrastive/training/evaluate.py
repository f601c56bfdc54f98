"""Evaluate the parts of the loss on cells, such as held-out ones, without training on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import pyro
import torch
from torch import Tensor

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.resident import ResidentCells
from pyro_contrastive.sites import KL, RECONSTRUCTION, is_local, part_names, site_losses
from pyro_contrastive.training.splits import Indices, Population, evaluation_batches
from pyro_contrastive.vae import ContrastiveVAE

if TYPE_CHECKING:  # it imports Lightning, which takes seconds
    from pyro_contrastive.training.processes import Processes

Traces = tuple[pyro.poutine.Trace, pyro.poutine.Trace]
"""Traces of the model and of the guide."""
_Found: TypeAlias = "tuple[dict[str, float], dict[str, list[float]], _ByCondition]"


def evaluate(
    vae: ContrastiveVAE,
    data: CellData | ResidentCells,
    cells: Population,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Return the parts of the negative ELBO and the penalties, averaged over cells.

    Evaluated in evaluation mode, with posterior draws from a fixed `seed` and KL divergences in
    closed form where there is one. Averaged as in the loss (:meth:`ContrastiveELBO.parts`), by
    default the mean over background cells plus the mean over target cells.

    Parameters
    ----------
    vae, data
        The model and the data set.
    cells
        Cells to evaluate, of both populations.
    batch_size
        Cells of each population at a time.
    device
        Device to evaluate on.
    seed
        Seed of the posterior draws: two calls see the same noise.
    processes
        Those that evaluate together, each some of the mini-batches, with its own noise. All of them
        return the same values.

    Returns
    -------
    The parts, without the KL weight: ``reconstruction_loss``, ``kl_z``, ``kl_s``, ``kl_library``
    (if latent). Each penalty, without its weight, averaged over the mini-batches that hold cells of
    both populations. With several treatments also ``elbo_<condition>``, the negative ELBO averaged
    over the cells of each condition.
    """
    sums: dict[str, float] = {}
    penalties: dict[str, list[float]] = {}
    by_condition = _ByCondition(data.conditions)
    sizes = len(cells.background), len(cells.target)
    batches: Iterator[Indices] = evaluation_batches(cells, batch_size)
    if processes is not None:
        batches, seed = processes.share(batches), seed + processes.rank
    with evaluating(vae), seeded(seed), pyro.validation_enabled(False):
        for batch in data.batches(batches, device, next(vae.parameters()).dtype):
            particles = list(vae.objective.traces(vae.model, vae.guide, batch))
            for traces in particles:
                parts = vae.objective.parts(*traces, sizes=sizes, analytic=True)
                for name, part in parts.items():
                    sums[name] = sums.get(name, 0.0) + float(part) / len(particles)
                by_condition.add(traces, batch.condition)
                if batch.is_target.any() and not batch.is_target.all():
                    for penalty in vae.penalties:
                        value = float(penalty(*traces, batch))
                        penalties.setdefault(penalty.name, []).append(value)
    found = (sums, penalties, by_condition)
    return _means([found] if processes is None else processes.gather(found))


def _means(found: list[_Found]) -> dict[str, float]:
    """Join what one process or several found: sums over cells, and penalties by mini-batch."""
    by_condition = found[0][2]
    sums: dict[str, float] = {}
    penalties: dict[str, list[float]] = {}
    for i, (some, values, others) in enumerate(found):
        for name, value in some.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, each in values.items():
            penalties[name] = penalties.get(name, []) + each
        if i:
            by_condition.sums += others.sums
            by_condition.counts += others.counts
    means = {name: sum(each) / len(each) for name, each in penalties.items()}
    return sums | means | by_condition.means()


class _ByCondition:
    """Sums the negative ELBO over the cells of each condition, if there are several treatments."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names if len(names) > 2 else ()  # noqa: PLR2004  # one treatment: no need
        self.sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.counts = torch.zeros(len(self.names), dtype=torch.float64)

    def add(self, traces: Traces, condition: Tensor) -> None:
        if not self.names:
            return
        sites = site_losses(*traces, analytic=True)
        local = [loss for name, loss in sites.items() if is_local(traces[0].nodes[name])]
        losses = torch.stack([loss.reshape(-1, len(condition)).mean(0) for loss in local])
        self.sums.index_add_(0, condition.cpu(), losses.sum(0).double().cpu())
        self.counts.index_add_(0, condition.cpu(), torch.ones(len(condition)).double())

    def means(self) -> dict[str, float]:
        found = [i for i in range(len(self.names)) if self.counts[i] > 0]
        return {f"elbo_{self.names[i]}": float(self.sums[i] / self.counts[i]) for i in found}


def global_parts(vae: ContrastiveVAE, batch: CellBatch) -> frozenset[str]:
    """Names of the KL divergences of sites that all cells share (parameters with a prior)."""
    with evaluating(vae), seeded(0), pyro.validation_enabled(False):
        model_trace, _ = next(vae.objective.traces(vae.model, vae.guide, batch))
    names = part_names(model_trace)
    is_global = {part: not is_local(model_trace.nodes[site]) for site, part in names.items()}
    return frozenset(part for part in names.values() if part.startswith(KL) and is_global[part])


def named(
    means: Mapping[str, float], part: str, shared: Collection[str] = (), n_pairs: float = 1.0
) -> dict[str, float]:
    """Add the sums that scvi-tools reports, and append the part of the data to every name.

    Parameters
    ----------
    means
        The result of :func:`evaluate`.
    part
        ``"train"`` or ``"validation"``.
    shared, n_pairs
        KL divergences of sites shared by all cells (:func:`global_parts`), and by how many pairs of
        cells: `means` holds one pair's share of them, as in the ELBO; ``kl_global`` is the whole.
    """
    kl = {name: value for name, value in means.items() if name.startswith(KL)}
    observed = [value for name, value in means.items() if name.startswith(RECONSTRUCTION)]
    totals = {
        "elbo": sum(observed) + sum(kl.values()),
        "kl_local": sum(value for name, value in kl.items() if name not in shared),
        "kl_global": sum(value for name, value in kl.items() if name in shared) * n_pairs,
    }
    values = totals | dict(means) | {RECONSTRUCTION: sum(observed)}
    return {f"{name}_{part}": value for name, value in values.items()}


def loss_of(vae: ContrastiveVAE, means: Mapping[str, float]) -> float:
    """Return the loss whose parts are `means`, under the present KL weight."""
    annealed = {f"{KL}{site}" for site in vae.objective.annealed}
    annealed |= {penalty.name for penalty in vae.penalties if penalty.annealed}
    weights = {penalty.name: penalty.weight for penalty in vae.penalties}
    kl_weight = float(vae.objective.kl_weight)
    return sum(
        value * weights.get(name, 1.0) * (kl_weight if name in annealed else 1.0)
        for name, value in means.items()
        if not name.startswith("elbo_")  # the sum of one condition's parts
    )
