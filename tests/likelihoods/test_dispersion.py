"""Inverse dispersions: per gene, batch or cell, and with a prior of their own."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from helpers import N_GENES, make_batch, make_vae
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO

from pyro_contrastive import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyro_contrastive.data import load_kang

SHAPE, RATE = 2.0, 0.5
LIKELIHOODS = [NegativeBinomial, ZeroInflatedNegativeBinomial]


def dispersion_in(vae, batch) -> torch.Tensor:
    """Inverse dispersion of the distribution of the counts."""
    return poutine.trace(vae.model).get_trace(batch).nodes["x"]["fn"].base_dist.inverse_dispersion


def kl_log_normal_gamma(log_median: float, log_scale: float) -> float:
    """KL(LogNormal || Gamma(2, rate 1/2)), by quadrature."""
    q = scipy.stats.lognorm(np.exp(log_scale), scale=np.exp(log_median))
    p = scipy.stats.gamma(SHAPE, scale=1 / RATE)
    low, high = q.ppf([1e-12, 1 - 1e-12])
    value, _ = scipy.integrate.quad(
        lambda t: q.pdf(t) * (q.logpdf(t) - p.logpdf(t)), low, high, points=[float(q.median())]
    )
    return value


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_batch_has_its_own_row(likelihood) -> None:
    vae, batch = make_vae(n_batch=2, likelihood=likelihood("gene-batch")), make_batch(n_batch=2)
    table = torch.tensor([[0.0], [1.0]]).expand(2, N_GENES)
    vae.model.likelihood.log_inverse_dispersion.data = table
    expected = table.exp()[batch.batch_codes]
    assert torch.equal(dispersion_in(vae, batch), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_cell_may_have_its_own(likelihood) -> None:
    vae, batch = make_vae(likelihood=likelihood("gene-cell")), make_batch()
    found = dispersion_in(vae, batch)
    assert found.shape == (len(batch), N_GENES)
    assert (found.std(0) > 0).all()  # from the decoder, so it differs between cells
    assert vae.model.likelihood.log_inverse_dispersion is None


def test_only_these_three_are_known() -> None:
    with pytest.raises(ValueError, match=r"dispersion must be one of .*'gene-label'"):
        NegativeBinomial("gene-label")


@pytest.mark.parametrize("kind", ["variational", "map"])
def test_the_prior_counts_once_per_data_set(kind) -> None:
    vae = make_vae(
        likelihood=NegativeBinomial(),
        dispersion_prior=dist.Gamma(SHAPE, RATE),
        dispersion_posterior=kind,
        elbo=TraceMeanField_ELBO,
        elbo_kwargs={"num_particles": 20_000, "vectorize_particles": True, "data_size": 500},
    )
    m = vae.model.likelihood.log_inverse_dispersion.detach().double().numpy()
    if kind == "map":
        expected = -scipy.stats.gamma(SHAPE, scale=1 / RATE).logpdf(np.exp(m)).sum()
    else:
        vae.guide.dispersion_posterior.log_scale.data.fill_(-1.0)
        expected = sum(kl_log_normal_gamma(float(v), -1.0) for v in m)
    with torch.no_grad():
        vae.objective.loss(vae.model, vae.guide, make_batch(2, 2))
    found = float(vae.objective.terms["kl_inverse_dispersion"])
    # Per pair: two cells of 500. Without a closed form the variational one is a mean of draws.
    assert found == pytest.approx(expected * 2 / 500, rel=1e-4 if kind == "map" else 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["variational", "map"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_a_narrow_prior_decides(kind, dispersion) -> None:
    pyro.set_rng_seed(0)
    vae = make_vae(
        n_batch=2,
        likelihood=NegativeBinomial(dispersion),
        dispersion_prior=dist.Gamma(4e4, 1e4),  # 4, give or take .02
        dispersion_posterior=kind,
    )
    batch = make_batch(n_batch=2)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), vae.objective)
    for _ in range(200):
        svi.step(batch)
    shape = (2, N_GENES) if dispersion == "gene-batch" else (N_GENES,)
    median = vae.guide.dispersion_posterior.log_median.exp()
    assert median.shape == shape
    assert (median - 4.0).abs().max() < 0.5  # they start near 1
    drawn = poutine.trace(vae.guide).get_trace(batch).nodes["inverse_dispersion"]["value"]
    assert drawn.shape == shape
    assert torch.equal(drawn, median) == (kind == "map")


@pytest.mark.slow
def test_without_information_the_posterior_is_the_prior() -> None:
    # Cells without counts say nothing of theta when their mean is next to nothing too.
    pyro.set_rng_seed(0)
    vae = make_vae(likelihood=NegativeBinomial(), dispersion_prior=dist.LogNormal(1.0, 0.5))
    batch = make_batch()
    empty = type(batch)(
        condition=batch.condition, x=torch.zeros_like(batch.x), library=torch.full((12, 1), 1e-6)
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), vae.objective)
    for _ in range(600):
        svi.step(empty)
    posterior = vae.guide.dispersion_posterior
    assert (posterior.log_median - 1.0).abs().mean() < 0.1
    assert (posterior.log_scale.exp() - 0.5).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dispersion_prior": dist.Normal(0.0, 1.0)}, "dispersion_prior must be .* positive"),
        ({"dispersion_prior": 3.0}, "dispersion_prior must be a torch or pyro distribution"),
        ({"dispersion_posterior": "point"}, "dispersion_posterior must be one of"),
        (
            {"dispersion_prior": dist.Gamma(1.0, 1.0), "likelihood": NegativeBinomial("gene-cell")},
            "needs a likelihood with one inverse dispersion per gene",
        ),
        ({"library_prior": dist.Gamma(1.0, 1.0)}, "use_observed_lib_size=False"),
    ],
)
def test_what_cannot_be_is_said(arguments, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_vae(**arguments)


def test_the_library_size_takes_any_positive_prior() -> None:
    vae = make_vae(latent_library=True, library_prior=dist.Gamma(30.0, 0.1))
    batch = make_batch()
    site = poutine.trace(vae.model).get_trace(batch).nodes["library"]
    assert site["fn"].mean.flatten()[0] == pytest.approx(300.0)
    log_mean, _ = vae.guide.encode(batch)["library"]
    assert (log_mean - np.log(300.0)).abs().max() < 2.0
    assert vae.objective(vae.model, vae.guide)(batch).isfinite()
    with pytest.raises(ValueError, match=r"library_prior must be .* positive"):
        make_vae(latent_library=True, library_prior=dist.Normal(0.0, 1.0))


def test_models_with_such_priors_are_saved_and_analysed(tmp_path) -> None:
    from pyro_contrastive import ContrastiveVI

    adata = load_kang()[::40, :50].copy()
    adata = adata[adata.X.sum(1).A1 > 0].copy()
    adata.obs["lane"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", batch_key="lane"
    )
    model = ContrastiveVI(
        adata,
        n_hidden=8,
        use_observed_lib_size=False,
        likelihood=NegativeBinomial("gene-batch"),
        library_prior=dist.LogNormal(5.0, 1.0),
        dispersion_prior=dist.Gamma(2.0, 1.0),
    )
    model.train(max_epochs=2, enable_progress_bar=False)
    model.save(tmp_path / "model")
    again = ContrastiveVI.load(tmp_path / "model", adata)
    for left, right in zip(
        model.module.state_dict().values(), again.module.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right)
    assert again.module.model.library_prior(make_batch()).mean == pytest.approx(np.exp(5.5))
    for method in ("get_elbo", "get_marginal_ll"):
        pyro.set_rng_seed(0)
        found = getattr(model, method)()
        pyro.set_rng_seed(0)
        assert getattr(again, method)() == pytest.approx(found), method
        assert np.isfinite(found)
    several = again.get_normalized_expression(n_samples=3, return_numpy=True)
    assert {kind: table.shape for kind, table in several.items()} == {
        "background": adata.shape,
        "salient": adata.shape,
    }
