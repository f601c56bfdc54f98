"""The export is correct, and the functions of ArviZ 0 and of ArviZ 1 accept it."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import anndata as ad
import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from every_likelihood import KEYS, LAYERS

from pyro_contrastive import (
    Bernoulli,
    ContrastiveModel,
    ContrastiveVI,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
)
from pyro_contrastive.data import load_kang
from pyro_contrastive.interop.arviz import import_arviz

mpl.use("Agg")

N_SAMPLES = 60


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    kang = load_kang()[::60]
    genes = np.argsort(-np.asarray(kang.X.mean(axis=0)).ravel(), kind="stable")[:12]
    adata = kang[:, np.sort(genes)]
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    adata.layers["logs"] = np.log1p(adata.X.toarray())
    adata.layers["open"] = (adata.X > 0).astype(np.float32)
    return adata


def model_of(cells: ad.AnnData, **given) -> ContrastiveVI:
    adata = cells.copy()
    layer = {Gaussian: "logs", Bernoulli: LAYERS["bernoulli"]}.get(type(given.get("likelihood")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, layer=layer, **KEYS)
    torch.manual_seed(0)
    return ContrastiveVI(
        adata, **({"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2} | given)
    )


@pytest.fixture(scope="module")
def model(cells) -> ContrastiveVI:
    return model_of(
        cells,
        likelihood=NegativeBinomial(),
        dispersion_prior=dist.Gamma(2.0, 1.0),
        use_observed_lib_size=False,
    )


def groups_of(data) -> set[str]:
    """Names of the groups of an InferenceData or a DataTree."""
    return set(data.children) if hasattr(data, "children") else set(data.groups())


def test_groups_and_coordinates(model):
    data = model.to_arviz(n_samples=N_SAMPLES, batch_size=20, seed=0)
    names = model.adata.obs_names.tolist()
    groups = {"posterior", "sample_stats", "observed_data", "posterior_predictive"}
    assert groups_of(data) == groups | {"prior", "prior_predictive", "log_likelihood"}
    n_cells, n_genes = model.adata.shape
    for group in (data.posterior, data.prior):
        assert group["z"].dims == ("chain", "draw", "cell", "z_dim")
        assert group["z"].shape == (1, N_SAMPLES, n_cells, 3)
        assert group["s"].shape == (1, N_SAMPLES, n_cells, 2)
        assert group["library"].dims == ("chain", "draw", "cell")
        assert group["inverse_dispersion"].dims == ("chain", "draw", "gene")
        assert group["cell"].values.tolist() == names
        assert (group["library"] > 0).all()
    for group in (data.posterior_predictive, data.prior_predictive):
        assert group["x"].dims == ("chain", "draw", "cell", "gene")
        assert group["x"].dtype.kind == "i"
        assert group["gene"].values.tolist() == model.genes
    assert (data.observed_data["x"].values == model.adata.X.toarray()).all()
    assert data.observed_data["x"].dims == ("cell", "gene")
    assert data.log_likelihood["x"].dims == ("chain", "draw", "cell")
    background = (model.adata.obs["condition"] == "control").to_numpy()
    s = data.posterior["s"].values[0]
    assert (s[:, background] == 0).all()
    assert (s[:, ~background] != 0).all()
    one = data.posterior_predictive.sel(cell=names[3], gene=model.genes[2])["x"]
    assert one.shape == (1, N_SAMPLES)
    assert n_genes == 12
    assert data.posterior.attrs["likelihood"] == "NegativeBinomial"


def test_numbers(model):
    data = model.to_arviz(n_samples=400, seed=0)
    means = data.posterior["z"].mean(("chain", "draw")).values
    latent = model.get_latent_representation(representation_kind="background")
    sd = data.posterior["z"].std(("chain", "draw")).values
    assert np.abs((means - latent) / (sd / 400**0.5)).max() < 5
    widest = latent.std(0).argmax()
    assert np.corrcoef(means[:, widest], latent[:, widest])[0, 1] > 0.9
    # log p(x) from the importance weights, as in `get_marginal_ll`.
    weights = data.sample_stats["log_weight"].values[0]
    found = np.logaddexp.reduce(weights, axis=0) - np.log(400)
    expected = model.get_marginal_ll(n_mc_samples=2000, return_mean=False, seed=1)
    assert np.median(found - expected) == pytest.approx(0, abs=0.5)
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    # The log-likelihood is the density of the data at the draws.
    entries = model.to_arviz(n_samples=400, log_likelihood="entry", seed=0)
    per_cell = entries.log_likelihood["x"].sum("gene").values
    np.testing.assert_allclose(per_cell, data.log_likelihood["x"].values, rtol=1e-4)
    np.testing.assert_array_equal(entries.posterior["z"], data.posterior["z"])


def test_a_poisson_density_is_scipys(cells):
    from scipy.stats import poisson

    model = model_of(cells, likelihood=Poisson())
    data = model.to_arviz(n_samples=3, log_likelihood="entry", prior=False, predictive=False)
    assert groups_of(data) == {"posterior", "sample_stats", "observed_data", "log_likelihood"}
    z, s = (torch.as_tensor(data.posterior[name].values[0]) for name in "zs")
    program = model.module.model.eval()
    batch = model.setup.extract(model.adata).cells(np.arange(model.adata.n_obs))
    with torch.no_grad():
        scale = program.decode(z, s, batch)["scale"].numpy()
    rate = scale * data.posterior["library"].values[0][..., None]
    expected = poisson.logpmf(model.adata.X.toarray(), rate)
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], expected, rtol=1e-3, atol=1e-3)


def of_arviz(major: int):
    """Skip a test unless ArviZ is of this major version."""
    found = int(importlib.metadata.version("arviz").partition(".")[0])
    return pytest.mark.skipif(found != major, reason=f"for ArviZ {major}, not {found}")


@contextmanager
def far_apart() -> Iterator[None]:
    """Let ArviZ 1 compute with draws that are far apart, as those of an untrained model are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(overflow|divide by zero|invalid value) encountered")
        yield


@pytest.fixture
def exports(cells, model):
    """Draws of two models."""
    other = model_of(cells, likelihood=Poisson())
    given = {"n_samples": N_SAMPLES, "seed": 0}
    return {"nb": model.to_arviz(**given), "poisson": other.to_arviz(**given)}


def test_its_leaving_cells_out_is_not_to_be_trusted_and_says_so(exports, model):
    az = import_arviz()
    with pytest.warns(UserWarning, match="Estimated shape parameter of Pareto"), far_apart():
        loo = az.loo(exports["nb"], pointwise=True)
    pointwise = loo.loo_i if hasattr(loo, "loo_i") else loo.elpd_i
    assert pointwise.dims == ("cell",)
    assert loo.n_data_points == model.adata.n_obs
    assert loo.warning


def test_it_summarises_and_survives_a_file(exports, model, tmp_path):
    az = import_arviz()
    table = az.summary(exports["nb"], var_names=["inverse_dispersion"])
    assert len(table) == model.adata.n_vars
    exports["nb"].to_netcdf(tmp_path / "draws.nc")
    back = az.from_netcdf(tmp_path / "draws.nc")
    assert groups_of(back) == groups_of(exports["nb"])
    np.testing.assert_array_equal(back.posterior["z"], exports["nb"].posterior["z"])
    assert back.observed_data["gene"].values.tolist() == model.genes


@of_arviz(0)
def test_arviz_0_compares_and_draws_it(exports, model):
    az = import_arviz()
    with warnings.catch_warnings():
        # Every cell has its own latents: ArviZ should warn that the estimate is unreliable.
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        # Stacking weights fail, by log(0), because these models differ so much.
        table = az.compare(exports, method="BB-pseudo-BMA", seed=0)
    assert set(table.index) == {"nb", "poisson"}
    for group in ("posterior", "prior"):
        axes = az.plot_ppc(exports["nb"], group=group, num_pp_samples=5, random_seed=0)
        assert axes.lines or axes.patches
    entries = model.to_arviz(log_likelihood="entry", n_samples=N_SAMPLES, seed=0)
    with warnings.catch_warnings():
        # Many draws have the same density of an entry; ArviZ then leaves them unchanged.
        warnings.filterwarnings("ignore", "(divide by zero|invalid value) encountered")
        pit = az.loo_pit(entries, y="x")
        assert az.plot_loo_pit(entries, y="x") is not None
    assert pit.shape == model.adata.shape
    assert (np.isfinite(pit) & (pit >= 0) & (pit <= 1 + 1e-9)).all()
    import matplotlib.pyplot as plt

    plt.close("all")


@of_arviz(1)
def test_arviz_1_compares_and_draws_it(exports, model):
    az = import_arviz()
    with warnings.catch_warnings(), far_apart():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        table = az.compare(exports, method="pseudo-bma", round_to="none")
    assert set(table.index) == {"nb", "poisson"}
    for group in ("posterior_predictive", "prior_predictive"):
        with pytest.warns(UserWarning, match="look discrete"):  # ArviZ recognises counts
            drawn = az.plot_ppc_dist(exports["nb"], group=group, num_samples=5)
        assert drawn is not None
    entries = model.to_arviz(log_likelihood="entry", n_samples=N_SAMPLES, seed=0)
    with warnings.catch_warnings(), far_apart():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        pit = az.loo_pit(entries)["x"]
    assert pit.shape == model.adata.shape
    assert (np.isfinite(pit) & (pit >= 0) & (pit <= 1 + 1e-9)).all()
    import matplotlib.pyplot as plt

    plt.close("all")


def test_chosen_genes_and_cells(model):
    genes = [model.genes[4], model.genes[1]]
    data = model.to_arviz(indices=[5, 2], gene_list=genes, n_samples=4, seed=0)
    assert data.posterior_predictive["x"].shape == (1, 4, 2, 2)
    assert data.observed_data["gene"].values.tolist() == sorted(genes, key=model.genes.index)
    assert data.observed_data["cell"].values.tolist() == model.adata.obs_names[[5, 2]].tolist()
    assert data.posterior["inverse_dispersion"].shape == (1, 4, 2)
    full = model.to_arviz(indices=[5, 2], n_samples=4, seed=0)
    # The log-likelihood of a cell is the sum over all genes.
    np.testing.assert_array_equal(data.log_likelihood["x"], full.log_likelihood["x"])


@pytest.mark.parametrize("likelihood", [Gaussian, Bernoulli, NegativeBinomial])
def test_other_likelihoods(cells, likelihood):
    given = {} if likelihood is not NegativeBinomial else {"dispersion": "gene-cell"}
    model = model_of(cells, likelihood=likelihood(**given))
    data = model.to_arviz(n_samples=5, log_likelihood="entry", seed=0)
    assert ("library" in data.posterior) == (likelihood is not Gaussian)
    kind = "f" if likelihood is Gaussian else "i"
    assert data.posterior_predictive["x"].dtype.kind == kind
    assert np.isfinite(data.log_likelihood["x"]).all()


class Joint(Likelihood):
    """Counts that share their total: not independent between genes."""

    heads = ("scale",)

    def forward(self, heads, library):
        return dist.LowRankMultivariateNormal(
            library * heads["scale"],
            torch.ones(*heads["scale"].shape, 1),
            torch.ones_like(heads["scale"]),
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1"),
        ({"log_likelihood": "gene"}, "'cell', 'entry' or None, not 'gene'"),
        ({"indices": []}, "no cells to export"),
        ({"n_samples": 10**7}, r"take 56 GB\. Choose cells \(indices=\), genes"),
        ({"gene_list": ["nothing"]}, "not genes of this model"),
    ],
)
def test_what_cannot_be_exported(model, given, message):
    with pytest.raises(ValueError, match=message):
        model.to_arviz(**given)


def test_genes_that_are_not_independent_have_no_log_likelihood_each(cells):
    model = model_of(cells, likelihood=Joint())
    assert model.to_arviz(n_samples=2, seed=0).log_likelihood["x"].ndim == 3
    with pytest.raises(ValueError, match="independent between genes"):
        model.to_arviz(n_samples=2, log_likelihood="entry")


def test_arvizs_daily_notice_is_not_ours(monkeypatch):
    for name in [n for n in sys.modules if n == "arviz" or n.startswith("arviz.")]:
        monkeypatch.delitem(sys.modules, name)
    import builtins

    real = builtins.__import__

    def noisy(name, *args, **kwargs):
        if name == "arviz":
            warnings.warn("a major refactor", FutureWarning, stacklevel=2)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_arviz().__version__


def test_without_arviz_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-contrastive\[arviz\]'"):
        model.to_arviz(n_samples=2)


class WithTotals(ContrastiveModel):
    """Observes two numbers of a cell beside its counts."""

    def latents(self, batch):
        z, s, library = super().latents(batch)
        totals = batch.observed_library().log().expand(-1, 2)
        pyro.sample("totals", dist.Normal(z[..., :2], 1.0).to_event(1), obs=totals)
        return z, s, library


@pytest.mark.parametrize("log_likelihood", ["cell", "entry"])
def test_every_observed_site_is_exported(cells, log_likelihood):
    model = model_of(cells, likelihood=Poisson())
    model.module.model.__class__ = WithTotals
    data = model.to_arviz(n_samples=30, indices=range(7), seed=0, log_likelihood=log_likelihood)
    observed = data.observed_data["totals"]
    assert observed.dims == ("cell", "totals_dim_1")
    logs = np.log(np.asarray(model.adata.X.sum(1))[:7])
    np.testing.assert_allclose(observed.values, np.repeat(logs, 2, axis=1), rtol=1e-5)
    for group in (data.posterior_predictive, data.prior_predictive):
        assert set(group.data_vars) == {"x", "totals"}
        assert group["totals"].shape == (1, 30, 7, 2)
        assert group["totals"].dtype.kind == "f"
        assert group["x"].dtype.kind == "i"
    z = data.posterior["z"].values[..., :2]
    expected = scipy.stats.norm.logpdf(observed.values, z)
    found = data.log_likelihood["totals"].values
    expected = expected.sum(-1) if log_likelihood == "cell" else expected
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
