"""Is everything finite; and if not, what was the first thing that was not."""

from __future__ import annotations

from typing import Any

import pyro
import torch

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.torch_tools import evaluating, seeded
from pyro_contrastive.vae import ContrastiveVAE


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


def check_programs(vae: ContrastiveVAE, batch: CellBatch) -> None:
    """Run model and guide once with Pyro's checks on, before any training.

    Shapes, supports and parameter ranges of a user's own prior or likelihood are checked here, so
    that the training steps can go without.
    """
    with pyro.validation_enabled(True), evaluating(vae), seeded(0):
        vae.objective.loss(vae.model, vae.guide, batch)


def explain_non_finite(vae: ContrastiveVAE, batch: CellBatch, when: str) -> NonFiniteLossError:
    """Find the first site that is not finite, and say so in an error to be raised."""
    with pyro.validation_enabled(False), torch.no_grad():
        ((model_trace, guide_trace),) = list(
            vae.objective._get_traces(vae.model, vae.guide, (batch,), {})
        )[:1]
    found = _first_bad_site("guide", guide_trace) or _first_bad_site("model", model_trace)
    where = found or "no single site, but their sum or a penalty, is"
    return NonFiniteLossError(
        f"The loss is not finite {when}: {where} not finite. The weights are those before that "
        "step. Lower the learning rate (plan_kwargs={'lr': ...}), or look at the prior or "
        "likelihood you changed."
    )


def _first_bad_site(program: str, trace: Any) -> str | None:
    for name, site in trace.nodes.items():
        if site["type"] == "param" and not torch.isfinite(site["value"]).all():
            return f"parameter {name!r} of the {program} is"
        if site["type"] != "sample":
            continue
        if not torch.isfinite(site["value"]).all():
            return f"site {name!r} of the {program} (its value) is"
        if not torch.isfinite(site["log_prob"]).all():
            return f"site {name!r} of the {program} (its log-density) is"
    return None
