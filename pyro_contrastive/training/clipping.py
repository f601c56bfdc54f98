"""Gradients far larger than those before are scaled down, and reported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CLIPPED_AT = 30.0
"""How many times the usual norm a gradient may have. In fits of four data sets with either schedule
none came near it: ``benchmarks/clipping.py``."""
N_FIRST = 20
"""Steps that are never clipped, in which the usual norm becomes known."""
N_REMEMBERED = 50
"""Steps over which the usual norm, a geometric mean, is averaged."""


class Clipping:
    """Limits the norm of the whole gradient to a multiple of what is usual at that time.

    One step with a gradient a thousand times too large, from a cell with a wrong count or a
    numerical accident, changes the weights by little more than any other step of Adam, but enters
    its running averages, which make all steps too small for thousands of steps.

    Nothing here waits for a GPU, but for :meth:`report`, once in an epoch.

    Parameters
    ----------
    like
        A tensor on the device of the gradients.
    """

    def __init__(self, like: Tensor) -> None:
        self._log_usual = torch.zeros((), dtype=torch.float64, device=like.device)
        self._n_seen = 0
        self._noted: list[tuple[int, Tensor, Tensor]] = []

    @torch.no_grad()
    def clip(self, gradients: Sequence[Tensor | None], loss: Tensor, step: int) -> None:
        """Scale the gradients of a step in place, if together they are far larger than usual.

        Parameters
        ----------
        gradients
            Those of all parameters.
        loss, step
            Loss and number of the step, for the report.
        """
        given = [gradient for gradient in gradients if gradient is not None]
        norm = torch.stack([torch.linalg.vector_norm(g) for g in given]).double().norm()
        ratio = norm / self._log_usual.exp() if self._n_seen >= N_FIRST else torch.ones_like(norm)
        # Nothing is left of a finite gradient whose norm overflows; NaN and infinity become NaN.
        scale = (CLIPPED_AT / ratio).clamp(max=1.0)
        if scale.device.type != "cpu" or scale != 1:  # also if it is NaN
            for gradient in given:
                gradient.mul_(scale.to(gradient.dtype))
        self._remember(norm * scale)
        self._noted.append((step, ratio, loss))

    def state_dict(self) -> dict[str, Any]:
        """Return what is usual; what was noted is reported at the end of every epoch."""
        return {"log_usual": self._log_usual, "n_seen": self._n_seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._log_usual.copy_(state["log_usual"])
        self._n_seen = state["n_seen"]

    def _remember(self, norm: Tensor) -> None:
        weight = 1 / min(self._n_seen + 1, N_REMEMBERED)
        log_norm = norm.clamp(min=1e-300).log()
        log_norm = torch.where(log_norm.isfinite(), log_norm, self._log_usual)
        self._log_usual += weight * (log_norm - self._log_usual)
        self._n_seen += 1

    def report(self, epoch: int) -> None:
        """Warn of the gradients that were clipped since the last report, with step and size."""
        noted, self._noted = self._noted, []
        if not noted:
            return
        ratios = torch.stack([ratio for _, ratio, _ in noted]).tolist()
        clipped = [each for each in zip(noted, ratios, strict=True) if each[1] > CLIPPED_AT]
        if not clipped:
            return
        (step, _, loss), ratio = max(clipped, key=lambda each: each[1])
        others = f" (and {len(clipped) - 1} more)" if len(clipped) > 1 else ""
        usual = sorted(float(each[2]) for each in noted)[len(noted) // 2]
        warnings.warn(
            f"In epoch {epoch}, step {step}{others}, the gradient was {_times(ratio)} times as "
            f"large as usual; the loss was {float(loss):.4g}, and in half of the epoch's steps at "
            f"most {usual:.4g}. The step was made no larger than {CLIPPED_AT:.0f} usual ones. Look "
            "for cells or genes with counts far above all others, and at what you changed: "
            "likelihood, prior, guide or penalty.",
            UserWarning,
            stacklevel=8,
        )


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if math.isfinite(ratio) else "infinitely many"
