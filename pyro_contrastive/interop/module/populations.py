"""The data structures of scvi-tools' module: dicts by population, and the record of a loss.

scvi-tools' ``ContrastiveVAE`` takes and returns ``{"background": {...}, "target": {...}}``. These
functions convert such dicts to one :class:`CellBatch` (background cells first) and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.guide import MOMENTS

Group = Mapping[str, Tensor]
Groups = dict[str, dict[str, Any]]
GROUPS = ("background", "target")


@dataclass(frozen=True)
class LossOutput:
    """Loss of a mini-batch and its parts, with the names of scvi-tools' ``LossOutput``.

    Attributes
    ----------
    loss
        Scalar to be minimised: mean over background cells plus mean over target cells.
    reconstruction_loss
        ``{"reconstruction_loss": ...}``: negative log-likelihood of each background/target pair,
        ``[pairs]`` or ``[n_samples, pairs]``. If the groups differ in size, cells without a
        partner are paired with the mean of the other group.
    kl_local
        ``kl_divergence_z``, ``kl_divergence_s`` and ``kl_divergence_l`` of each pair, unweighted.
    extra_metrics
        Unweighted penalties of the mini-batch, by name; and ``wasserstein_loss_sum``, summed over
        pairs, which scvi-tools reports whether or not it is a penalty.
    """

    loss: Tensor
    reconstruction_loss: dict[str, Tensor]
    kl_local: dict[str, Tensor]
    extra_metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def reconstruction_loss_sum(self) -> Tensor:
        """Sum over pairs (and draws) of the reconstruction loss."""
        return torch.stack([v.sum() for v in self.reconstruction_loss.values()]).sum()

    @property
    def kl_local_sum(self) -> Tensor:
        """Sum over pairs (and draws) of all KL divergences."""
        return torch.stack([v.sum() for v in self.kl_local.values()]).sum()

    @property
    def n_obs_minibatch(self) -> int:
        """Number of background/target pairs."""
        return next(iter(self.reconstruction_loss.values())).shape[-1]


def conditions(n_background: int, n_target: int, device: torch.device) -> Tensor:
    """Condition codes of background cells followed by target cells."""
    codes = torch.full((n_background + n_target,), BACKGROUND, device=device)
    codes[n_background:] = BACKGROUND + 1
    return codes


def join_counts(background: Group, target: Group, x: str, batch: str) -> CellBatch:
    """Make a batch of cells, background first, from two dicts with counts and batch codes.

    Parameters
    ----------
    background, target
        Each with counts ``[cells, genes]`` and batch codes ``[cells, 1]``; and, if the model has
        further covariates, ``cat_covs`` and ``cont_covs``, ``[cells, covariates]``.
    x, batch
        Their keys.

    Raises
    ------
    ValueError
        If one is missing; the error says which, and where.
    """
    for name, group in zip(GROUPS, (background, target), strict=True):
        missing = [key for key in (x, batch) if key not in group]
        if missing:
            msg = f"The {name} tensors lack {missing}; they have {sorted(group)}."
            raise ValueError(msg)
    counts = torch.cat([background[x], target[x]])
    codes = torch.cat([background[batch], target[batch]]).reshape(-1)
    both = {"background": dict(background), "target": dict(target)}
    return CellBatch(
        condition=conditions(len(background[x]), len(target[x]), counts.device),
        x=counts,
        batch=codes,
        categorical=join(both, "cat_covs"),
        continuous=join(both, "cont_covs"),
    )


def join(groups: Groups, key: str) -> Tensor | None:
    """Concatenate one entry of both groups over cells (the axis before the last)."""
    parts = [part for name in GROUPS if (part := groups[name].get(key)) is not None]
    return torch.cat(parts, dim=-2) if len(parts) == len(GROUPS) else None


def join_required(groups: Groups, key: str) -> Tensor:
    """Concatenate an entry that both groups must have.

    Raises
    ------
    ValueError
        If one group lacks it.
    """
    joined = join(groups, key)
    if joined is None:
        msg = f"Both groups need {key!r}; they have {[sorted(groups[name]) for name in GROUPS]}."
        raise ValueError(msg)
    return joined


def split(outputs: Mapping[str, Tensor | None], n_background: int) -> Groups:
    """Split each entry over cells (the axis before the last) into background and target."""
    groups: Groups = {name: {} for name in GROUPS}
    for key, value in outputs.items():
        groups["background"][key] = None if value is None else value[..., :n_background, :]
        groups["target"][key] = None if value is None else value[..., n_background:, :]
    return groups


def with_dispersion(groups: Groups, px_r: Tensor | None, n_background: int) -> Groups:
    """Give both groups the inverse dispersion: ``[genes]`` to both, ``[cells, genes]`` split."""
    if px_r is not None and px_r.dim() > 1:
        parts = split({"px_r": px_r}, n_background)
    else:
        parts = {name: {"px_r": px_r} for name in GROUPS}
    return {name: {**groups[name], **parts[name]} for name in GROUPS}


def join_dispersion(groups: Groups) -> Tensor | None:
    """Undo :func:`with_dispersion`: ``[genes]``, ``[..., cells, genes]`` or ``None``."""
    px_r = groups["background"]["px_r"]
    return px_r if px_r is None or px_r.dim() == 1 else join_required(groups, "px_r")


def pair(per_cell: Tensor, n_background: int) -> Tensor:
    """Add background and target values cell by cell: ``[..., cells]`` to ``[..., pairs]``.

    The mean over pairs is the mean over background cells plus the mean over target cells, even if
    the groups differ in size: the smaller one is padded with its mean.
    """
    parts = per_cell[..., :n_background], per_cell[..., n_background:]
    n_pairs = max(part.shape[-1] for part in parts)
    filled = []
    for part in parts:
        n_missing = n_pairs - part.shape[-1]
        filler = part.mean(-1, keepdim=True).expand(*part.shape[:-1], n_missing)
        filled.append(torch.cat([part, filler], dim=-1) if n_missing else part)
    return filled[0] + filled[1]


def posterior_outputs(guide_trace: Trace, batch: CellBatch) -> dict[str, Tensor | None]:
    """Read draws and moments of the latents from a guide trace, under the reference's names.

    The salient latent of background cells is returned as drawn, not as 0. Moments are those from
    which a site's distribution was made, of the log where it is positive.
    """
    sites = guide_trace.nodes
    outputs: dict[str, Tensor | None] = {"z": sites["z"]["value"], "s": sites["s"]["value"]}
    outputs["qz_m"], outputs["qz_v"] = _moments(sites["z"])
    outputs["qs_m"], outputs["qs_v"] = _moments(sites["s"])
    if "library" in sites:
        outputs["library"] = sites["library"]["value"].log()
        outputs["ql_m"], outputs["ql_v"] = _moments(sites["library"])
    else:
        library = batch.observed_library().log()
        outputs["library"] = library.expand(*sites["z"]["value"].shape[:-1], 1)
        outputs["ql_m"] = outputs["ql_v"] = None
    return outputs


def _moments(site: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if MOMENTS not in site["infer"]:
        msg = (
            f"The guide draws {site['name']!r} by a program of its own, whose moments the methods "
            "of scvi-tools' module need but cannot know: draw it by ContrastiveGuide.draw, or use "
            "the objective of this library instead."
        )
        raise TypeError(msg)
    mean, variance = site["infer"][MOMENTS]
    return mean.expand_as(site["value"]), variance.expand_as(site["value"])


def trace_of(values: Mapping[str, Tensor]) -> Trace:
    """Make a trace that holds these values, for ``poutine.replay``."""
    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, infer={}, value=value)
    return trace
