"""Replicate data, and checks and exports made of them, through the model class."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from every_likelihood import KEYS, LAYERS, MADE, NO_LIBRARY
from pyro import poutine
from pyro.infer import Predictive

from pyro_contrastive import ContrastiveVI, NegativeBinomial, PerConditionNormal, Poisson
from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.data import load_kang

N_CELLS, N_GENES = 40, 25


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 3.0, N_GENES) * rng.lognormal(0, 0.3, (N_CELLS, 1))
    counts = rng.poisson(rates).astype(np.float32)
    counts[20:, :5] *= 3
    obs = pd.DataFrame(
        {
            "condition": np.repeat(["control", "drug", "heat"], [20, 10, 10]),
            "lane": np.resize(["a", "b"], N_CELLS),
            "kind": pd.Categorical(np.resize(["T", "B", "NK", None], N_CELLS)),
            "donor": np.resize(["d1", "d2", "d3"], N_CELLS),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs)
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    adata.layers["logs"] = logs.astype(np.float32)
    adata.layers["scaled"] = ((logs - logs.mean(0)) / logs.std(0)).astype(np.float32)
    adata.layers["open"] = (counts > 0.6 * counts.mean(0)).astype(np.float32)
    return adata


def model_of(cells: ad.AnnData, layer: str | None = None, **given) -> ContrastiveVI:
    adata = cells.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(
            adata, layer=layer, batch_key="lane", categorical_covariate_keys=["donor"], **KEYS
        )
    torch.manual_seed(0)
    sizes = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
    return ContrastiveVI(adata, **(sizes | given))


@pytest.fixture(scope="module")
def poisson(cells) -> ContrastiveVI:
    return model_of(cells, likelihood=Poisson())


def test_replicates_are_what_pyros_predictive_draws(poisson):
    drawn = poisson.posterior_predictive_sample(n_samples=150, seed=0)
    assert drawn.shape == (150, N_CELLS, N_GENES)
    data = poisson.setup.extract(poisson.adata)
    batch = data.cells(np.arange(N_CELLS))
    vae = poisson.module
    vae.eval()
    torch.manual_seed(0)
    predictive = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=150)
    expected = predictive(batch)["x"].numpy()
    vae.train()
    # Two Monte-Carlo means of the same thing.
    error = np.sqrt((drawn.var(0) + expected.var(0)) / 150)
    z = (drawn.mean(0) - expected.mean(0)) / error
    assert abs(z).max() < 5
    assert z.std() == pytest.approx(1, abs=0.1)


def test_the_same_seed_gives_the_same_and_leaves_all_as_it_was(poisson):
    poisson.module.train()
    state = torch.get_rng_state()
    before = {k: v.clone() for k, v in poisson.module.state_dict().items()}
    first, second, other = (
        poisson.posterior_predictive_sample(n_samples=2, seed=seed) for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()
    assert (first[0] != first[1]).any()
    assert torch.equal(state, torch.get_rng_state())
    assert poisson.module.training
    for name, value in poisson.module.state_dict().items():
        assert torch.equal(before[name], value)  # batch-norm statistics too
    # Without a seed, torch's state is used, and goes on.
    torch.manual_seed(5)
    a, b = (poisson.posterior_predictive_sample() for _ in range(2))
    torch.manual_seed(5)
    assert (a == poisson.posterior_predictive_sample()).all()
    assert (a != b).any()


def test_mini_batches_are_independent_of_each_other(poisson):
    # The same cell twice, in two mini-batches: not the same noise again.
    twice = poisson.posterior_predictive_sample(indices=[0, 0], batch_size=1, seed=0)[0]
    assert (twice[0] != twice[1]).any()


def test_between_two_parts_nothing_is_left_switched(poisson):
    poisson.module.train()
    state = torch.get_rng_state()
    parts = poisson.iterate_posterior_predictive(n_samples=3, batch_size=15, seed=0)
    joined = []
    for part in parts:
        assert poisson.module.training
        assert torch.equal(state, torch.get_rng_state())
        assert torch.is_grad_enabled()
        joined.append(part)
    assert [len(p.cells) for p in joined] == [15, 15, 10]
    assert np.concatenate([p.cells for p in joined]).tolist() == list(range(N_CELLS))
    whole = poisson.posterior_predictive_sample(n_samples=3, batch_size=15, seed=0)
    assert (np.concatenate([p.x for p in joined], axis=1) == whole).all()


def test_sparse_replicates_are_the_same(poisson):
    given = {"n_samples": 3, "seed": 0, "batch_size": 16, "gene_list": ["3", "7"]}
    dense = poisson.posterior_predictive_sample(**given)
    sparse = poisson.posterior_predictive_sample(sparse=True, **given)
    assert dense.shape == (3, N_CELLS, 2)
    assert all(isinstance(s, sp.csr_matrix) for s in sparse)
    assert (np.stack([s.toarray() for s in sparse]) == dense).all()
    every = poisson.posterior_predictive_sample(n_samples=3, seed=0, batch_size=16)
    assert (every[..., [3, 7]] == dense).all()
    none = poisson.posterior_predictive_sample(indices=[], sparse=True)
    assert [s.shape for s in none] == [(0, N_GENES)]
    assert poisson.posterior_predictive_sample(indices=[]).shape == (1, 0, N_GENES)


def test_an_observed_library_size_is_that_of_the_cell(poisson):
    totals = np.asarray(poisson.adata.X.sum(axis=1)).ravel()
    for draw in (poisson.posterior_predictive_sample, poisson.prior_predictive_sample):
        drawn = draw(n_samples=300, seed=0).sum(axis=-1)
        assert abs(drawn.mean(0) - totals).max() < 5 * np.sqrt(totals.max() / 300)
        assert drawn.var(0) == pytest.approx(totals, rel=0.5)


def test_a_latent_library_size_is_drawn(cells):
    model = model_of(cells, use_observed_lib_size=False)
    totals = np.asarray(model.adata.X.sum(axis=1)).ravel()
    drawn = model.prior_predictive_sample(n_samples=100, seed=0).sum(axis=-1)
    assert (drawn.var(0) > 3 * totals.mean()).all()


def test_prior_draws_do_not_depend_on_the_counts(cells):
    model = model_of(cells, likelihood=Poisson(), use_observed_lib_size=False)
    other = model.adata.copy()
    other.X = sp.csr_matrix(np.ones((N_CELLS, N_GENES), dtype=np.float32))
    same = [model.prior_predictive_sample(adata, seed=0) for adata in (model.adata, other)]
    assert (same[0] == same[1]).all()
    differ = [model.posterior_predictive_sample(adata, seed=0) for adata in (model.adata, other)]
    assert (differ[0] != differ[1]).any()


def test_counterfactual_replicates_have_the_counterfactual_mean(cells):
    model = model_of(cells, likelihood=Poisson(), salient_prior=PerConditionNormal(3, 2))
    drugged = np.arange(20, 30)
    library = np.asarray(model.adata.X.sum(axis=1)).ravel()[drugged]
    kept = model.posterior_predictive_sample(indices=drugged, n_samples=500, seed=0)
    for condition in ("control", "heat", "drug"):
        drawn = model.posterior_predictive_sample(
            indices=drugged, n_samples=500, condition=condition, seed=0
        )
        expected = model.get_counterfactual_expression(
            condition, indices=drugged, n_samples=500, library_size=1.0, seed=1
        ).to_numpy()
        z = (drawn.mean(0) - library[:, None] * expected) / (drawn.std(0) / 500**0.5)
        assert z.std() < 2.2  # both sides have Monte-Carlo error
        if condition == "drug":  # their own
            assert (drawn == kept).all()
    # Treatments that differ, so that one taken for another shows.
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, -6.0]])
    model.module.model.salient_prior.means.data.copy_(means)
    control = np.arange(10)
    library = np.asarray(model.adata.X.sum(axis=1)).ravel()[control]
    chosen = {"indices": control, "n_samples": 500, "salient_source": "prior"}
    drawn = model.posterior_predictive_sample(condition="heat", seed=0, **chosen)
    off = {}
    for condition in ("heat", "drug"):
        expected = model.get_counterfactual_expression(condition, seed=1, **chosen).to_numpy()
        z = (drawn.mean(0) - library[:, None] * expected) / (drawn.std(0) / 500**0.5)
        off[condition] = z.std()
    assert off["heat"] < 2.2
    assert off["drug"] > 4.4
    with pytest.raises(ValueError, match="'cold' is not a condition"):
        model.posterior_predictive_sample(condition="cold")


def test_replicates_under_another_batch_and_covariate(poisson):
    as_it_is, lane_a, lane_b, donor_3, donor_1 = (
        poisson.posterior_predictive_sample(indices=[2], n_samples=20, seed=0, **given)
        for given in (
            {},
            {"transform_batch": "a"},
            {"transform_batch": "b"},
            {"transform_covariates": {"donor": "d3"}},
            {"transform_covariates": {"donor": "d1"}},
        )
    )
    # The cell is of lane a and donor 3.
    assert (as_it_is == lane_a).all()
    assert (as_it_is == donor_3).all()
    assert (as_it_is != lane_b).any()
    assert (as_it_is != donor_1).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"gene_list": ["nothing"]}, "1 are not genes of this model"),
        ({"transform_batch": "z"}, "not batches of this model"),
        ({"transform_batch": ["a", "b"]}, "must be one batch here"),
        ({"transform_covariates": {"age": 3}}, "'age' is not a covariate"),
    ],
)
def test_what_cannot_be_drawn(poisson, given, message):
    calls = [poisson.posterior_predictive_sample, poisson.prior_predictive_sample]
    for call in (*calls, poisson.iterate_posterior_predictive):
        with pytest.raises(ValueError, match=message):
            call(**given)


def test_a_check_of_a_model_groups_by_what_is_registered(cells):
    adata = cells[:, :12].copy()
    ContrastiveVI.setup_anndata(adata, batch_key="lane", sample_key="donor", **KEYS)
    model = ContrastiveVI(adata, n_hidden=8)
    check = model.posterior_predictive_check(name="zinb", seed=0)
    assert set(check.genes["group_by"]) == {"all", "condition", "lane"}
    assert set(check.effects["group"]) == {"drug", "heat"}
    assert set(check.genes["model"]) == {"zinb"}
    assert check.cells["cell"].unique().tolist() == adata.obs_names.tolist()
    again = model.posterior_predictive_check(name="zinb", seed=0)
    pd.testing.assert_frame_equal(check.overall, again.overall)
    pd.testing.assert_frame_equal(check.pit, again.pit)
    by_kind = model.posterior_predictive_check(groupby="kind", statistics=["mean"], seed=0)
    assert set(by_kind.genes["group"]) == {"all", "control", "drug", "heat", "T", "B", "NK"}
    counts = adata.X.toarray()
    of_b = by_kind.genes.query("group == 'B'").set_index("gene")["observed"]
    assert of_b.to_numpy() == pytest.approx(counts[(adata.obs["kind"] == "B").to_numpy()].mean(0))
    few = model.posterior_predictive_check(
        indices=[0, 1, 25], gene_list=["4"], statistics=["maximum"], seed=0
    )
    assert few.genes.query("group == 'all'")["observed"].tolist() == [counts[[0, 1, 25], 4].max()]
    pairs = model.posterior_predictive_check(correlation_genes=["7", "2"], seed=0).correlations
    assert pairs[["gene", "other_gene"]].iloc[0].tolist() == ["7", "2"]
    treated = model.posterior_predictive_check(indices=range(20, 40), seed=0)
    assert treated.effects.empty  # nothing to hold the treatments against
    with pytest.raises(KeyError, match=r"no column \['type'\]; it has \['condition', 'lane'"):
        model.posterior_predictive_check(groupby="type")
    with pytest.raises(ValueError, match=r"not genes of the check.*'99'"):
        model.posterior_predictive_check(correlation_genes=["99"])
    with pytest.raises(ValueError, match="takes at least n_samples=19"):
        model.posterior_predictive_check(n_samples=5)


def test_functions_that_need_whole_replicates_get_them(poisson):
    check = poisson.posterior_predictive_check(
        n_samples=19,
        statistics=["library_size"],
        functions={"total": lambda x: x.sum(), "shape": lambda x: float(len(x))},
        batch_size=15,
        seed=0,
    )
    custom = check.custom.query("group == 'all'").set_index("statistic")
    assert custom.loc["total", "observed"] == poisson.adata.X.sum()
    assert custom.loc["total", "lower"] < custom.loc["total", "upper"]
    assert custom.loc["shape", "replicate_mean"] == N_CELLS


def test_a_model_without_registered_conditions(cells):
    adata = cells.copy()
    ContrastiveVI.setup_anndata(adata)
    model = ContrastiveVI(adata, n_hidden=8)
    check = model.posterior_predictive_check(seed=0)
    assert set(check.genes["group_by"]) == {"all"}
    assert check.effects.empty
    model.train(
        background_indices=np.arange(20),
        target_indices=np.arange(20, 40),
        max_epochs=1,
        enable_progress_bar=False,
    )
    check = model.posterior_predictive_check(seed=0)
    assert set(check.genes["group"]) == {"all", "background", "target"}
    assert set(check.effects["group"]) == {"target"}


@pytest.mark.parametrize("name", MADE)
def test_every_likelihood(name, cells):
    model = model_of(cells, LAYERS.get(name), likelihood=MADE[name]())
    likelihood = model.module.model.likelihood
    counts = name not in NO_LIBRARY
    drawn = model.posterior_predictive_sample(n_samples=20, seed=0)
    prior = model.prior_predictive_sample(n_samples=20, seed=0)
    for x in (drawn, prior):
        assert x.shape == (20, N_CELLS, N_GENES)
        assert np.isfinite(x).all()
        assert not counts or likelihood.support.check(torch.as_tensor(x)).all()
    check = model.posterior_predictive_check(n_samples=20, seed=0)
    names = set(check.summary()["statistic"])
    assert {"mean", "variance", "maximum", "variance_trend", "abs_correlation"} <= names
    assert {"effect_agreement", "coverage 0.9"} <= names
    only_counts = {"zero_fraction", "cv", "library_size", "zero_fraction_trend"}
    assert names & only_counts == (only_counts if counts else set())
    assert np.isfinite(check.genes.query("statistic == 'mean'")["p_value"]).all()
    assert isinstance(check, PosteriorPredictiveCheck)
    if not counts:
        with pytest.raises(ValueError, match=r"zero_fraction has no meaning with Gaussian"):
            model.posterior_predictive_check(statistics=["zero_fraction"])
        with pytest.raises(ValueError, match=r"sparse=True does not help with Gaussian"):
            model.posterior_predictive_sample(sparse=True)
    else:
        sparse = model.posterior_predictive_sample(sparse=True, seed=0)
        assert (sparse[0].toarray() == model.posterior_predictive_sample(seed=0)[0]).all()


def test_real_counts_are_checked_cell_type_by_cell_type():
    adata = load_kang()[::20, :60]
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    ContrastiveVI.setup_anndata(adata, labels_key="cell_type_coarse", **KEYS)
    model = ContrastiveVI(
        adata, n_hidden=8, likelihood=NegativeBinomial(), dispersion_prior=dist.Gamma(2.0, 1.0)
    )
    check = model.posterior_predictive_check(n_samples=20, seed=0)
    zeros = check.overall.query("statistic == 'zero_fraction' and unit == 'gene'")
    expected = (adata.X.toarray() == 0).mean()
    assert zeros.query("group == 'all'")["observed"].iloc[0] == pytest.approx(expected)
    assert set(adata.obs["cell_type_coarse"].astype(str)) <= set(zeros["group"])
