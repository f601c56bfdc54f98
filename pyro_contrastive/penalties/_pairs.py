"""Sums over all pairs of draws, with gradients in closed form.

With D the squared distances of draws x and G symmetric, the gradient of ``sum(G * D)`` by x_i is
``4 sum_j G_ij (x_i - x_j)``. That takes two matrix products, while automatic differentiation would
pass over every matrix of pairs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from pyro_contrastive._tools.operators import define

MIN_CELLS = 3  # two cells are always perfectly dependent


def pair_sum(draws: Tensor, weights: Tensor, scales: Sequence[float]) -> Tensor:
    r"""Evaluate :math:`\sum_{ij} w_i w_j \sum_c \exp(-\lVert x_i - x_j \rVert^2 / c)`, ``[...]``.

    Parameters
    ----------
    draws
        ``[..., cells, latents]``.
    weights
        ``[cells]``; without gradient.
    scales
        The scales c, positive.
    """
    total: Tensor = _PairSum.apply(draws, weights, tuple(scales))  # type: ignore[no-untyped-call]
    return total


class _PairSum(Function):
    @staticmethod
    def forward(ctx: Any, draws: Tensor, weights: Tensor, scales: tuple[float, ...]) -> Tensor:
        x, distances = _distances(draws)
        kernel, slope = torch.zeros_like(distances), torch.zeros_like(distances)
        last, of_scale = 0.0, distances
        for scale in sorted(scales, reverse=True):
            # With half the scale the kernel is squared, which costs less than an exponential.
            is_half = last == 2 * scale
            of_scale = of_scale.square() if is_half else (distances / -scale).exp_()
            kernel += of_scale
            slope.sub_(of_scale, alpha=1 / scale)
            last = scale
        column = weights.unsqueeze(-1)
        ctx.save_for_backward(4 * column * _differences(slope, x, column))
        return (kernel @ weights) @ weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _refuse_second_derivatives()
        (gradient,) = ctx.saved_tensors
        return grad[..., None, None] * gradient, None, None


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # create_graph=True
        msg = (
            "MMD and HSIC have gradients in closed form, which cannot be differentiated again "
            "(create_graph=True)."
        )
        raise RuntimeError(msg)


def dependence(z: Tensor, s: Tensor, cells: Tensor) -> Tensor:
    """Normalised Hilbert-Schmidt criterion of z and s over some cells, ``[...]``.

    Between 0 and 1; 0 for fewer than three cells, or where one of the two is constant.

    Parameters
    ----------
    z, s
        Draws, ``[..., cells, latents]``.
    cells
        Mask of the cells to use, boolean ``[cells]``.
    """
    value: Tensor = _Dependence.apply(z, s, cells)  # type: ignore[no-untyped-call]
    return value


class _Dependence(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, s: Tensor, cells: Tensor) -> Tensor:
        value, by_z, by_s = torch.ops.pyro_contrastive.dependence(z, s, cells)
        ctx.save_for_backward(by_z, by_s)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        _refuse_second_derivatives()
        by_z, by_s = ctx.saved_tensors
        grad = grad[..., None, None]
        return grad * by_z, grad * by_s, None


def _dependence(z: Tensor, s: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value and its gradients by z and s."""
    if z.device.type != "cpu":  # reading the number of cells would wait for a GPU
        return _dependence_of(z, s, cells)
    gradients = torch.zeros_like(z), torch.zeros_like(s)
    chosen = cells.nonzero().squeeze(-1)
    if len(chosen) < MIN_CELLS:
        return z.new_zeros(z.shape[:-2]), *gradients
    among = [latent.index_select(-2, chosen) for latent in (z, s)]
    value, *found = _dependence_of(among[0], among[1], cells[chosen])
    for gradient, values in zip(gradients, found, strict=True):
        gradient.index_copy_(-2, chosen, values)
    return value, *gradients


# A torch operator: a recorded step replays operators, and the number of target cells
# differs between mini-batches.
define("dependence(Tensor z, Tensor s, Tensor cells) -> (Tensor, Tensor, Tensor)", _dependence)


def _dependence_of(z: Tensor, s: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pairs = cells.unsqueeze(-1) & cells
    n_cells = cells.sum()
    (x, k, k_slope), (y, other, other_slope) = (_centred(a, pairs, n_cells) for a in (z, s))
    squares = [a.square().sum((-2, -1), keepdim=True) for a in (k, other)]
    # Where a latent is constant the fraction is 0/0; the bound makes its value and slope 0.
    smallest = torch.finfo(k.dtype).eps ** 2
    norm = (squares[0] * squares[1]).clamp(min=smallest).sqrt()
    value = (k * other).sum((-2, -1), keepdim=True) / norm
    enough = n_cells >= MIN_CELLS
    gradients = []
    for draws, kernel, partner, square, slope in (
        (x, k, other, squares[0], k_slope),
        (y, other, k, squares[1], other_slope),
    ):
        # The gradient by the centred kernel. It is itself centred, so that it equals the gradient
        # by the kernel before centring.
        by_kernel = partner / norm - kernel * (value / square.clamp(min=smallest))
        by_draws = 4 * _differences(by_kernel.mul_(slope), draws, torch.ones_like(draws[..., :1]))
        gradients.append(by_draws * enough)
    return value[..., 0, 0] * enough, gradients[0], gradients[1]


def _centred(draws: Tensor, pairs: Tensor, n_cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the draws minus their mean, their centred Gaussian kernel, and its slopes.

    The bandwidth is the median squared distance. The slopes are those of the kernel by the squared
    distance. Rows and columns of cells that do not count are 0.
    """
    x, distances = _distances(draws)
    chosen = distances.masked_fill(~pairs, torch.nan).flatten(-2)
    bandwidth = chosen.nanmedian(-1).values.nan_to_num(1.0)
    bandwidth = bandwidth.clamp(min=torch.finfo(draws.dtype).eps ** 2)[..., None, None]
    # Pairs that do not count may be far apart on this scale: keep them out of the exponent.
    kernel = distances.mul_(pairs).div_(-2 * bandwidth).exp_().mul_(pairs)
    means = kernel.sum(-1, keepdim=True) / n_cells.clamp(min=1)
    overall = means.sum(-2, keepdim=True) / n_cells.clamp(min=1)
    centred = (kernel - means).sub_(means.transpose(-2, -1)).add_(overall).mul_(pairs)
    return x, centred, kernel.div_(-2 * bandwidth)


def _distances(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the draws minus their mean, and the squared distances of all pairs."""
    # x.x + y.y - 2 x.y cancels for rows far from 0 but close to each other, so centre them first.
    x = draws - draws.mean(-2, keepdim=True)
    norms = x.square().sum(-1, keepdim=True)
    ones = torch.ones_like(norms)
    left, right = torch.cat([-2 * x, norms, ones], -1), torch.cat([x, ones, norms], -1)
    return x, (left @ right.transpose(-2, -1)).clamp_(min=0.0)


def _differences(matrix: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """Evaluate ``sum_j matrix_ij w_j (x_i - x_j)``; changes the matrix."""
    matrix.diagonal(0, -2, -1).zero_()  # rounding would leave a rest of x_i - x_i
    return (matrix @ weights) * x - matrix @ (weights * x)
