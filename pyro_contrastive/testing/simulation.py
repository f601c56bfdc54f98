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
        Inverse dispersion, the same for every gene.
    zero_probability
        Probability of a structural zero.
    effect
        Standard deviation of the loadings: of a gene's log fold change per unit of latent.
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
    cells, and log-normal :math:`l_n`. Drawn with NumPy only, without code of the library's model.

    Parameters
    ----------
    settings
        Sizes; default :class:`SimulationSettings`.
    seed
        Seed of all draws.

    Returns
    -------
    Counts as CSR float32, ``obs["condition"]`` "control" or "treated", and the truth:
    ``obsm["z"]``, ``obsm["s"]``, ``obs["library"]``, ``varm["z_loadings"]``,
    ``varm["s_loadings"]``, ``layers["scale"]`` (rho) and ``layers["untreated"]`` (rho with s = 0).
    """
    given = settings or SimulationSettings()
    rng = np.random.default_rng(seed)
    n_cells = given.n_background + given.n_target
    treated = np.arange(n_cells) >= given.n_background
    z = rng.standard_normal((n_cells, given.n_background_latent))
    s = rng.standard_normal((n_cells, given.n_salient_latent)) * treated[:, None]
    z_loadings = rng.normal(0, given.effect, (given.n_genes, given.n_background_latent))
    s_loadings = rng.normal(0, given.effect, (given.n_genes, given.n_salient_latent))
    logits = rng.normal(0, 1, given.n_genes) + z @ z_loadings.T
    scale = _softmax(logits + s @ s_loadings.T)
    library = given.mean_total * np.exp(rng.normal(0, given.log_total_sd, n_cells))
    rate = library[:, None] * scale  # [cells, genes]
    gamma = rng.gamma(given.inverse_dispersion, rate / given.inverse_dispersion)
    counts = rng.poisson(gamma) * (rng.random(rate.shape) >= given.zero_probability)
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control"), "library": library})
    adata = AnnData(csr_matrix(counts.astype(np.float32)), obs=obs.set_index(obs.index.astype(str)))
    adata.obsm.update({"z": z, "s": s})
    adata.varm.update({"z_loadings": z_loadings, "s_loadings": s_loadings})
    adata.layers["scale"] = scale.astype(np.float32)
    adata.layers["untreated"] = _softmax(logits).astype(np.float32)
    return adata


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class TreatmentSettings:
    """A simulated treatment of several cell types.

    Parameters
    ----------
    n_background, n_target
        Number of cells of each population.
    n_genes
        Number of genes.
    n_types
        Number of cell types.
    type_shift
        Log ratio of the frequencies of the last and the first type in treated cells. With 0 they
        are as in untreated cells, where all types are equally frequent.
    mean_total, log_total_sd
        Typical total count of an untreated cell, and standard deviation of its logarithm.
    treated_depth
        Typical total count of a treated cell, divided by that of an untreated one.
    share_markers, marker_sd
        Share of the genes in which a type differs from the average cell, and the standard
        deviation of the log2 fold changes.
    share_affected
        Share of the genes that the treatment changes.
    smallest_lfc, largest_lfc
        Range of the absolute log2 fold changes of the treatment, half of which are negative.
    response_sd
        Standard deviation of the response's strength between treated cells; its mean is 1.
    inverse_dispersion
        Smallest and largest inverse dispersion of a gene.
    n_donors
        Number of donors that the cells of each population are from. Default 0: there are none.
    donor_sd
        Standard deviation between donors of the log expression of a gene.
    paired
        Whether the same donors give untreated and treated cells. Default: each population has its
        own.
    sample_sd
        With `paired`, standard deviation of the log expression of a gene between the two samples of
        a donor, treatment aside.
    """

    n_background: int = 500
    n_target: int = 500
    n_genes: int = 500
    n_types: int = 4
    type_shift: float = 0.0
    mean_total: float = 1000.0
    log_total_sd: float = 0.4
    treated_depth: float = 1.0
    share_markers: float = 0.1
    marker_sd: float = 1.5
    share_affected: float = 0.2
    smallest_lfc: float = 0.4
    largest_lfc: float = 2.0
    response_sd: float = 0.2
    inverse_dispersion: tuple[float, float] = (1.0, 10.0)
    n_donors: int = 0
    donor_sd: float = 0.3
    paired: bool = False
    sample_sd: float = 0.1


def simulate_treatment(settings: TreatmentSettings | None = None, *, seed: int = 0) -> AnnData:
    r"""Draw counts of cell types with and without a treatment that changes some genes.

    Every cell has the expression profile of its type. The treatment changes a known set A of genes
    but not the sum of their expression, so that all other genes are exactly unchanged:

    .. math:: \rho_{ng} = \rho_{t(n) g} \cdot
        \begin{cases} 2^{r_n b_g} \, m_n & g \in A,\ n \text{ treated} \\ 1 & \text{otherwise}
        \end{cases}, \qquad x_{ng} \sim \mathrm{NB}(l_n \rho_{ng}, \theta_g)

    with :math:`m_n` such that :math:`\sum_{g \in A} \rho_{ng}` is that of the untreated cell. Types
    are discrete and :math:`\log r_n` is normal, unlike in the library's latent variable model.

    With donors, the expression of every gene is multiplied by a log-normal factor of the cell's
    donor (and sample), and divided by its sum. Donors have different numbers of cells.

    Parameters
    ----------
    settings
        Sizes; default :class:`TreatmentSettings`.
    seed
        Seed of all draws.

    Returns
    -------
    Counts as CSR float32, ``obs["condition"]`` "control" or "treated", ``obs["cell_type"]``, and
    the truth: ``var["lfc"]``, the log2 fold change of normalised expression due to the treatment,
    averaged over treated cells, exactly 0 for genes outside A; ``layers["scale"]`` (rho); and
    ``layers["untreated"]``, what it would be without the treatment. With donors also
    ``obs["donor"]``.
    """
    given = settings or TreatmentSettings()
    rng = np.random.default_rng(seed)
    n_cells, n_genes = given.n_background + given.n_target, given.n_genes
    treated = np.arange(n_cells) >= given.n_background
    shifted = np.exp(given.type_shift * np.linspace(0, 1, given.n_types))
    cell_type = np.where(
        treated,
        rng.choice(given.n_types, n_cells, p=shifted / shifted.sum()),
        rng.integers(given.n_types, size=n_cells),
    )
    is_marker = rng.random((given.n_types, n_genes)) < given.share_markers
    markers = np.log(2) * rng.normal(0, given.marker_sd, is_marker.shape) * is_marker
    profiles = _softmax(rng.normal(0, 1.2, n_genes) + markers)  # [types, genes]

    affected = rng.permutation(n_genes)[: round(given.share_affected * n_genes)]
    size = rng.uniform(given.smallest_lfc, given.largest_lfc, len(affected))
    effect = size * np.where(np.arange(len(affected)) % 2, 1, -1)  # [affected genes]
    log_response = rng.normal(0, given.response_sd, n_cells) - given.response_sd**2 / 2
    response = np.exp(log_response) * treated
    untreated = profiles[cell_type]  # [cells, genes]
    scale = untreated.copy()
    before = scale[:, affected]
    after = before * 2.0 ** (response[:, None] * effect)
    if len(affected):  # or there is nothing to keep the sum of
        after *= before.sum(1, keepdims=True) / after.sum(1, keepdims=True)
    scale[:, affected] = after
    lfc = np.zeros(n_genes)
    lfc[affected] = np.log2(after[treated] / before[treated]).mean(0)

    library = given.mean_total * np.exp(rng.normal(0, given.log_total_sd, n_cells))
    library[treated] *= given.treated_depth
    low, high = np.log(given.inverse_dispersion)
    donor = None
    if given.n_donors:
        # Draws of their own, so that the same seed gives the same cells with and without donors.
        donor, log_factor = _donors(given, treated, np.random.default_rng([seed, 1]))
        scale, untreated = (_times(values, log_factor) for values in (scale, untreated))
    theta = np.exp(rng.uniform(low, high, n_genes))
    counts = rng.poisson(rng.gamma(theta, library[:, None] * scale / theta))
    obs = pd.DataFrame(
        {
            "condition": np.where(treated, "treated", "control"),
            "cell_type": [f"type {t}" for t in cell_type],
        },
        index=np.arange(n_cells).astype(str),
    )
    if donor is not None:
        obs["donor"] = [f"donor {d + 1}" for d in donor]
    adata = AnnData(csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var["lfc"] = lfc
    adata.layers["scale"] = scale.astype(np.float32)
    adata.layers["untreated"] = untreated.astype(np.float32)
    return adata


def _donors(
    given: TreatmentSettings, treated: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw the donor of each cell, and the log factors of its genes: ``[cells, genes]``."""
    n_cells = rng.uniform(0.5, 1.5, (2, given.n_donors))  # up to a factor
    donor = np.empty(len(treated), dtype=np.int64)
    for side, frequency in enumerate(n_cells):
        on = treated == side
        donor[on] = rng.choice(given.n_donors, on.sum(), p=frequency / frequency.sum())
    if not given.paired:
        donor += given.n_donors * treated
    of_donor = rng.normal(0, given.donor_sd, (2 * given.n_donors, given.n_genes))
    log_factor = of_donor[donor]
    if given.paired:
        of_sample = rng.normal(0, given.sample_sd, (2, given.n_donors, given.n_genes))
        log_factor += of_sample[treated.astype(int), donor]
    return donor, log_factor


def _times(scale: NDArray[np.float64], log_factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply expression by factors, so that its sum over genes stays 1."""
    changed = scale * np.exp(log_factor)
    return changed / changed.sum(axis=1, keepdims=True)
