"""What penalties add to a training step: milliseconds for value and gradient.

    python benchmarks/penalties.py [--cells 128 --latents 10 --rounds 150]

Medians of wall time over draws of ``--cells`` background and as many target cells, with one thread;
also for textbook formulas of the same penalties with torch's automatic differentiation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from common import show
from torch import Tensor

from pyro_contrastive import HSIC, MMD, CellBatch
from pyro_contrastive._tools.torch_tools import reused_memory


def distances(x: Tensor) -> Tensor:
    """Squared distances of all pairs."""
    norms = x.square().sum(-1)
    return (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * x @ x.T).clamp(min=0.0)


def textbook_mmd(z: Tensor, is_target: Tensor) -> Tensor:
    """Squared MMD between target and background cells."""
    found = distances(z)
    kernel = sum(torch.exp(-found / (2 * f * z.shape[-1])) for f in MMD.factors)
    sign = torch.where(is_target, 1 / is_target.sum(), -1 / (~is_target).sum())
    return (kernel @ sign) @ sign


def textbook_hsic(z: Tensor, s: Tensor, is_target: Tensor) -> Tensor:
    """Normalised HSIC of the target cells."""
    kernels = []
    for latent in (z[is_target], s[is_target]):
        found = distances(latent)
        kernel = torch.exp(-found / (2 * found.detach().median()))
        kernel = kernel - kernel.mean(-1, keepdim=True)
        kernels.append(kernel - kernel.mean(-2, keepdim=True))
    k, other = kernels
    return (k * other).sum() / (k.norm() * other.norm())


def milliseconds(evaluate: Callable[[], Tensor], latents: list[Tensor], rounds: int) -> float:
    """Return the median time of value and gradient."""
    taken = []
    with reused_memory():
        for _ in range(rounds):
            begun = time.perf_counter()
            torch.autograd.grad(evaluate(), latents, allow_unused=True)
            taken.append(1e3 * (time.perf_counter() - begun))
    return sorted(taken)[rounds // 2]


def main() -> None:
    """Print the table."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--cells", type=int, default=128, help="cells of each population")
    made.add_argument("--latents", type=int, default=10)
    made.add_argument("--rounds", type=int, default=150)
    options = made.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    n_cells = 2 * options.cells
    z, s = (torch.randn(n_cells, options.latents, requires_grad=True) for _ in range(2))
    batch: Any = CellBatch(x=torch.zeros(n_cells, 1), condition=torch.arange(n_cells) % 2)
    trace: Any = SimpleNamespace(nodes={"z": {"value": z}, "s": {"value": s}})
    cases: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "MMD of z": (
            lambda: MMD(site="z")(None, trace, batch),
            lambda: textbook_mmd(z, batch.is_target),
        ),
        "HSIC": (
            lambda: HSIC()(None, trace, batch),
            lambda: textbook_hsic(z, s, batch.is_target),
        ),
    }
    rows = {}
    for name, (ours, textbook) in cases.items():
        torch.testing.assert_close(ours(), textbook(), rtol=1e-3, atol=1e-5)
        times = [milliseconds(f, [z, s], options.rounds) for f in (ours, textbook)]
        rows[name] = dict(zip(("ours, ms", "textbook, ms"), times, strict=True))
    show("Value and gradient", pd.DataFrame(rows).T, digits=2)


if __name__ == "__main__":
    main()
