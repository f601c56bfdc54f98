"""A linear-Gaussian model, of which posterior and marginal likelihood have a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from helpers import N_GENES, make_vae
from torch import Tensor

from pyro_contrastive import CellBatch, ContrastiveGuide, ContrastiveVAE, Gaussian
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.networks import Covariates
from pyro_contrastive.outline import ModelOutline

N_Z, N_S = 3, 2
NOISE = 0.5


def loadings(orthogonal: bool) -> Tensor:
    """``[genes, z and s]``; with orthogonal columns the posterior factors over dimensions."""
    rng = np.random.default_rng(3)
    raw = rng.normal(size=(N_GENES, N_Z + N_S))
    if orthogonal:
        raw = np.linalg.qr(raw)[0]
    return torch.as_tensor(raw * np.array([2.0, 1.0, 0.5, 1.5, 0.8]) * (1 if orthogonal else 0.5))


class ExactGuide(ContrastiveGuide):
    """The diagonal of the exact posterior, by closed form; narrowed or shifted on request."""

    def __init__(self, weights: Tensor, *, width: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.build(
            ModelOutline(
                n_input=N_GENES,
                n_background_latent=N_Z,
                n_salient_latent=N_S,
                library_log_mean=None,
                covariates=Covariates(0),
                n_hidden=4,
                n_layers=1,
                dropout_rate=0.0,
                encoder_input=lambda x: x,
            )
        )
        self.weights, self.width, self.shift = weights, width, shift

    def encode(self, batch: CellBatch) -> dict[str, tuple[Tensor, Tensor]]:
        mean, covariance = exact_posterior(self.weights, batch)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        mean, variance = mean + self.shift * variance.sqrt(), variance * self.width**2
        return {
            "z": (mean[:, :N_Z], variance[:, :N_Z]),
            "s": (mean[:, N_Z:], variance[:, N_Z:]),
        }


def used_loadings(weights: Tensor, batch: CellBatch) -> Tensor:
    """``[cells, genes, latents]``, 0 for s of background cells."""
    there = torch.ones(len(batch), N_Z + N_S, dtype=weights.dtype)
    there[~batch.is_target, N_Z:] = 0.0
    return weights * there.unsqueeze(1)


def exact_posterior(weights: Tensor, batch: CellBatch) -> tuple[Tensor, Tensor]:
    """Mean ``[cells, latents]`` and covariance of p(z, s | x): textbook Bayesian regression."""
    w = used_loadings(weights, batch)
    precision = torch.eye(N_Z + N_S, dtype=w.dtype) + w.mT @ w / NOISE**2
    covariance = torch.linalg.inv(precision)
    assert batch.x is not None
    projected = (w.mT @ batch.x.unsqueeze(-1)) / NOISE**2
    return (covariance @ projected).squeeze(-1), covariance


def exact_log_likelihood(weights: Tensor, batch: CellBatch) -> Tensor:
    """Return log N(x; 0, W W' + noise), ``[cells]``."""
    w = used_loadings(weights, batch)
    covariance = w @ w.mT + NOISE**2 * torch.eye(N_GENES, dtype=w.dtype)
    zero = torch.zeros(N_GENES, dtype=w.dtype)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(batch.x)


def set_loadings(vae: ContrastiveVAE, weights: Tensor) -> None:
    """Make the decoder's head linear with these loadings, and the noise known."""
    likelihood = vae.model.likelihood
    with torch.no_grad():
        likelihood.layers["mean"].weight.copy_(weights)
        likelihood.layers["mean"].bias.zero_()
        likelihood.log_scale.fill_(float(np.log(NOISE - 0.01)))


def linear_vae(*, orthogonal: bool = True, exact: bool = True, **guide: Any) -> ContrastiveVAE:
    """Model with a linear decoder, in double precision, and the exact posterior as guide."""
    vae = make_vae(
        likelihood=Gaussian(log1p=False),
        n_layers_decoder=0,
        n_background_latent=N_Z,
        n_salient_latent=N_S,
    ).double()
    weights = loadings(orthogonal)
    set_loadings(vae, weights)
    if exact:
        vae.guide = ExactGuide(weights, **guide).double()
    return vae


def linear_data(n_background: int, n_target: int, seed: int = 0) -> CellData:
    """Data of the right spread; what they are does not matter to closed forms."""
    rng = np.random.default_rng(seed)
    n_cells = n_background + n_target
    return CellData(
        counts=rng.normal(0, 1.0, (n_cells, N_GENES)),
        condition=(np.arange(n_cells) >= n_background).astype(np.int64),
    )
