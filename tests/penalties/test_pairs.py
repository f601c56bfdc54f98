"""Sums over pairs of draws: gradients in closed form against differences and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_contrastive.penalties import _pairs
from pyro_contrastive.penalties._pairs import dependence, pair_sum

CELLS = torch.tensor([True, False, True, True, False, True, True])


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("scales", [(8.0, 4.0, 2.0), (1.0, 5.0), (4.0, 0.5)])
def test_pair_sum_and_its_gradient(leading: tuple[int, ...], scales: tuple[float, ...]) -> None:
    x, weights = draws(*leading, 5, 3), torch.tensor([0.5, -0.3, 0.0, 1.0, 0.2]).double()
    expected = sum(
        weights[i] * weights[j] * torch.exp(-(x[..., i, :] - x[..., j, :]).square().sum(-1) / c)
        for i in range(5)
        for j in range(5)
        for c in scales
    )
    torch.testing.assert_close(pair_sum(x, weights, scales), expected)
    assert torch.autograd.gradcheck(lambda x: pair_sum(x, weights, scales), x)


def aligned(z: Tensor, s: Tensor) -> Tensor:
    """The criterion as it is usually written, with the bandwidth as a constant."""
    centred = []
    for latent in (z, s):
        distances = (latent.unsqueeze(-2) - latent.unsqueeze(-3)).square().sum(-1)
        bandwidth = distances.detach().flatten(-2).median(-1).values[..., None, None]
        n_cells = latent.shape[-2]
        centring = torch.eye(n_cells).double() - 1 / n_cells
        centred.append(centring @ torch.exp(-distances / (2 * bandwidth)) @ centring)
    k, other = centred
    norms = k.square().sum((-2, -1)) * other.square().sum((-2, -1))
    return (k * other).sum((-2, -1)) / norms.sqrt()


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_dependence_and_its_gradients(leading: tuple[int, ...], as_on_a_gpu: bool) -> None:
    z, s = draws(*leading, 7, 3), draws(*leading, 7, 2)
    with torch.no_grad():
        s += z[..., :2]
    expected = aligned(z[..., CELLS, :], s[..., CELLS, :])
    slopes = torch.autograd.grad(expected.sum(), (z, s))
    if as_on_a_gpu:  # without cutting out the cells that count
        value, *gradients = _pairs._dependence_of(z.detach(), s.detach(), CELLS)
    else:
        value = dependence(z, s, CELLS)
        gradients = torch.autograd.grad(value.sum(), (z, s))
    torch.testing.assert_close(value.detach(), expected.detach())
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("evaluate", [_pairs._dependence, _pairs._dependence_of])
@pytest.mark.parametrize("n_cells", [0, 2, 7])
def test_no_dependence_without_cells_or_variation(evaluate, n_cells: int) -> None:
    z, s = torch.randn(7, 3), torch.ones(7, 2)
    if n_cells < 3:
        s = torch.randn(7, 2)
    found = evaluate(z, s, torch.arange(7) < n_cells)
    assert not any(part.any() for part in found)


def test_a_pair_of_a_cell_with_itself_has_no_gradient() -> None:
    far = torch.randn(6, 2) * 1e4
    far.requires_grad_()
    pair_sum(far, torch.ones(6), (2.0,)).backward()
    assert not far.grad.any()


def test_a_second_derivative_is_refused() -> None:
    x = draws(5, 2)
    for value in (pair_sum(x, torch.ones(5).double(), (1.0,)), dependence(x, x**2, x[:, 0] < 9)):
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(value, x, create_graph=True)
