"""Whether MMD and HSIC should see the draws of all processes that train together, or each its own.

    OMP_NUM_THREADS=1 python benchmarks/penalty_draws.py

The gradient of a penalty by a linear map of its draws, which have a difference between populations
and a dependence of z and s. By number of cells of each population: the norm of the mean gradient,
relative to that of 2,048 cells (bias), and the standard deviation of the gradient, relative to the
same. Two processes of n cells each average two gradients of n cells, which is to be compared with
one gradient of 2n cells; so the standard deviation is divided by the square root of two.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from pyro_contrastive import HSIC, MMD, Penalty

LATENTS = 10
SIZES = (32, 64, 128, 256)
MANY = 2_048


class Cells:
    """What the penalties read of a mini-batch."""

    def __init__(self, n: int) -> None:
        self.is_target = torch.arange(2 * n) >= n

    def __len__(self) -> int:
        return len(self.is_target)


def gradients(penalty: Penalty, n: int, repeats: int) -> Tensor:
    """Return the gradients for new draws, ``[repeats, latents, latents]``."""
    found = []
    cells = Cells(n)
    for _ in range(repeats):
        matrix = torch.eye(2 * LATENTS, requires_grad=True)
        draws = torch.randn(2 * n, 2 * LATENTS)
        draws[cells.is_target, 0] += 1.0
        draws[:, LATENTS] = (draws[:, 0] + draws[:, LATENTS]) / 2**0.5
        z, s = (draws @ matrix).split(LATENTS, dim=1)
        trace = SimpleNamespace(nodes={"z": {"value": z}, "s": {"value": s}})
        penalty(trace, trace, cells).backward()
        found.append(matrix.grad)
    return torch.stack(found)


def main() -> None:
    """Print bias and spread for both penalties."""
    torch.manual_seed(0)
    for penalty in (MMD(), HSIC()):
        exact = gradients(penalty, MANY, 8).mean(0).norm()
        previous = None
        for n in SIZES:
            found = gradients(penalty, n, 300)
            mean = found.mean(0)
            spread = (found - mean).square().sum((1, 2)).mean().sqrt() / exact
            line = f"{penalty.name:6} {n:4} cells: mean {mean.norm() / exact:.2f}, sd {spread:.2f}"
            if previous is not None:
                line += f"; two processes of {n // 2}: sd {previous / 2**0.5:.2f}"
            print(line)
            previous = spread


if __name__ == "__main__":
    main()
