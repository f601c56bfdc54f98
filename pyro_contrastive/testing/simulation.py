"""Simulated counts with known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class SimulationSettings:
    """Sizes of a simulated data set.

    Parameters
    ----------
    n_background, n_target
        Number of cells of each population.
    n_genes
        Number of genes.
    n_background_latent, n_salient_latent
        Dimensions of z and s.
    mean_total
        Typical total count of a cell.
    log_total_sd
        Standard deviation of the log total count.
    inverse_dispersion
        Of every gene.
    zero_probability
        Probability of a structural zero.
    effect
        Size of the loadings: standard deviation of the log fold change a unit of latent makes.
    """

    n_background: int = 300
    n_target: int = 300
    n_genes: int = 100
    n_background_latent: int = 3
    n_salient_latent: int = 2
    mean_total: float = 1000.0
    log_total_sd: float = 0.3
    inverse_dispersion: float = 5.0
    zero_probability: float = 0.05
    effect: float = 0.5


def simulate(settings: SimulationSettings | None = None, *, seed: int = 0) -> AnnData:
    r"""Draw counts from a log-linear contrastive model.

    .. math:: \rho_n = \mathrm{softmax}(a + W z_n + V s_n), \quad
        x_{ng} \sim \mathrm{ZINB}(l_n \rho_{ng}, \theta, \pi)

    with :math:`z_n \sim N(0, I)`, :math:`s_n \sim N(0, I)` in target cells and 0 in background
    cells, and log-normal :math:`l_n`. Drawn with NumPy alone: nothing of the model under test.

    Parameters
    ----------
    settings
        Sizes; default :class:`SimulationSettings`.
    seed
        Of all draws.

    Returns
    -------
    Counts as CSR float32, ``obs["condition"]`` "control" or "treated", and the truth:
    ``obsm["z"]``, ``obsm["s"]``, ``obs["library"]``, ``varm["z_loadings"]``,
    ``varm["s_loadings"]``, ``layers["scale"]`` (rho).
    """
    given = settings or SimulationSettings()
    rng = np.random.default_rng(seed)
    n_cells = given.n_background + given.n_target
    treated = np.arange(n_cells) >= given.n_background
    z = rng.standard_normal((n_cells, given.n_background_latent))
    s = rng.standard_normal((n_cells, given.n_salient_latent)) * treated[:, None]
    z_loadings = rng.normal(0, given.effect, (given.n_genes, given.n_background_latent))
    s_loadings = rng.normal(0, given.effect, (given.n_genes, given.n_salient_latent))
    scale = _softmax(rng.normal(0, 1, given.n_genes) + z @ z_loadings.T + s @ s_loadings.T)
    library = given.mean_total * np.exp(rng.normal(0, given.log_total_sd, n_cells))
    rate = library[:, None] * scale  # [cells, genes]
    gamma = rng.gamma(given.inverse_dispersion, rate / given.inverse_dispersion)
    counts = rng.poisson(gamma) * (rng.random(rate.shape) >= given.zero_probability)
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control"), "library": library})
    adata = AnnData(csr_matrix(counts.astype(np.float32)), obs=obs.set_index(obs.index.astype(str)))
    adata.obsm.update({"z": z, "s": s})
    adata.varm.update({"z_loadings": z_loadings, "s_loadings": s_loadings})
    adata.layers["scale"] = scale.astype(np.float32)
    return adata


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)
