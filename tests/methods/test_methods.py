"""Expression, library sizes, likelihoods and counterfactuals of a ContrastiveVI."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pandas as pd
import pyro
import pytest
import scipy.sparse as sp
import torch

from pyro_contrastive import ContrastiveVI, PerConditionNormal
from pyro_contrastive.analysis import expression as expression_module
from pyro_contrastive.analysis import runs
from pyro_contrastive.testing import SimulationSettings, simulate

GENES = 15
SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}


@pytest.fixture
def adata():
    made = simulate(SimulationSettings(n_background=12, n_target=14, n_genes=GENES), seed=0)
    made.obs_names = [f"cell{i}" for i in range(26)]
    made.var_names = [f"gene{i}" for i in range(GENES)]
    made.obs["lane"] = pd.Categorical(np.array(["a", "b"])[np.arange(26) % 2])
    made.obs["three"] = np.repeat(["control", "drug1", "drug2"], [12, 7, 7])
    return made


def make(adata, condition_key="condition", **kwargs) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(
        adata,
        batch_key="lane",
        condition_key=condition_key,
        background=None if condition_key is None else "control",
    )
    return ContrastiveVI(adata, **(SMALL | kwargs))


def test_expression_comes_as_named_tables(adata) -> None:
    model = make(adata)
    both = model.get_normalized_expression(indices=[20, 3], gene_list=["gene7", "gene2"], seed=0)
    assert set(both) == {"background", "salient"}
    for table in both.values():
        assert table.index.tolist() == ["cell20", "cell3"]
        assert table.columns.tolist() == ["gene2", "gene7"]  # the model's order, as in scvi-tools
    salient = model.get_salient_normalized_expression(
        indices=[20, 3], gene_list=["gene7", "gene2"], seed=0
    )
    pd.testing.assert_frame_equal(salient, both["salient"])
    background = model.get_specific_normalized_expression(
        indices=[20, 3], gene_list=["gene7", "gene2"], expression_type="background", seed=0
    )
    pd.testing.assert_frame_equal(background, both["background"])
    assert both["background"].loc["cell3"].equals(both["salient"].loc["cell3"])
    assert not both["background"].loc["cell20"].equals(both["salient"].loc["cell20"])


def test_expression_is_scaled(adata) -> None:
    model = make(adata)
    one = model.get_normalized_expression(seed=0)["salient"]
    assert one.sum(axis=1).to_numpy() == pytest.approx(np.ones(26), abs=1e-5)
    thousand = model.get_normalized_expression(library_size=1e3, seed=0)["salient"]
    assert thousand.to_numpy() == pytest.approx(1e3 * one.to_numpy(), rel=1e-5)
    own = model.get_normalized_expression(library_size="latent", seed=0)["salient"]
    totals = np.asarray(adata.X.sum(1))
    assert own.to_numpy() == pytest.approx(totals * one.to_numpy(), rel=1e-4)


def test_draws_come_as_an_array(adata) -> None:
    model = make(adata)
    draws = model.get_salient_normalized_expression(n_samples=4, return_mean=False, seed=1)
    assert isinstance(draws, np.ndarray)
    assert draws.shape == (4, 26, GENES)
    assert draws.std(0).max() > 1e-5
    mean = model.get_salient_normalized_expression(n_samples=4, return_numpy=True, seed=1)
    assert mean == pytest.approx(draws.mean(0), abs=1e-6)
    with pytest.warns(UserWarning, match="returned as an array"):
        model.get_salient_normalized_expression(n_samples=2, return_mean=False, return_numpy=False)
    some = model.get_salient_normalized_expression(n_samples_overall=40, seed=2)
    assert some.shape == (40, GENES)
    assert set(some.index) <= set(adata.obs_names)


def test_batches_by_name(adata) -> None:
    model = make(adata)
    a, b, mean = (
        model.get_salient_normalized_expression(transform_batch=batch, seed=0).to_numpy()
        for batch in ("a", "b", ["a", "b"])
    )
    assert np.abs(a - b).max() > 1e-5
    assert mean == pytest.approx((a + b) / 2, abs=1e-6)
    with pytest.raises(ValueError, match=r"\['c'\] are not batches.*\['a', 'b'\]"):
        model.get_normalized_expression(transform_batch="c")
    adata.obs["lane"] = np.arange(26) % 2
    numbered = make(adata)
    one, same = (
        numbered.get_salient_normalized_expression(transform_batch=batch, seed=0)
        for batch in (np.int64(1), [1])
    )
    pd.testing.assert_frame_equal(one, same)


def test_a_mix_is_decoded_cell_by_cell(adata) -> None:
    model = make(adata)
    both = model.get_normalized_expression(seed=0)
    mix = model.get_specific_normalized_expression(indices_to_return_salient=[13, 20], seed=0)
    for cell in adata.obs_names:
        kind = "salient" if cell in {"cell13", "cell20"} else "background"
        assert np.allclose(mix.loc[cell], both[kind].loc[cell], atol=1e-6), cell
    assert np.abs(mix.loc["cell14"] - both["salient"].loc["cell14"]).max() > 1e-6


def test_every_draw_has_a_library_size_and_latents_of_its_own(adata) -> None:
    model = make(adata, use_observed_lib_size=False)
    n = 4000
    draws = model.get_salient_normalized_expression(
        indices=[3, 20], library_size="latent", n_samples=n, return_mean=False, seed=0
    )
    log_sizes = np.log(draws.sum(-1))  # [draws, cells]
    moments = model.module.guide.encode(model.setup.extract(adata).cells(np.array([3, 20])))
    mean, variance = (m.detach().numpy()[:, 0] for m in moments["library"])
    assert np.abs(log_sizes.mean(0) - mean).max() < 5 * np.sqrt(variance.max() / n)
    assert log_sizes.var(0) == pytest.approx(variance, rel=5 * np.sqrt(2 / n))
    shares = draws / draws.sum(-1, keepdims=True)
    series = [log_sizes[:, 0], log_sizes[:, 1], shares[:, 0, 0], shares[:, 1, 0]]
    correlations = np.corrcoef(series) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(n)  # of sizes, of cells, of shares
    for one in series:  # one draw says nothing of the next
        assert np.abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / np.sqrt(n)
        assert one.std() > 0


def test_populations_given_to_train_are_remembered(adata, tmp_path) -> None:
    model = make(adata, condition_key=None)
    model.train(
        np.arange(12), np.arange(12, 24), max_epochs=1, enable_progress_bar=False, train_size=0.8
    )
    with pytest.warns(UserWarning, match="2 of these cells were neither background nor target"):
        both = model.get_normalized_expression(seed=0)
    same = np.isclose(both["background"], both["salient"], atol=1e-7).all(1)
    assert same.tolist() == [True] * 12 + [False] * 14
    turned = adata[::-1].copy()
    with pytest.warns(UserWarning, match="They are taken for target cells"):
        again = model.get_normalized_expression(turned)
    same = np.isclose(again["background"], again["salient"], atol=1e-7).all(1)
    assert same.tolist() == [False] * 14 + [True] * 12
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", adata)
    with pytest.warns(UserWarning, match="They are taken for target cells"):
        salient = loaded.get_salient_normalized_expression(seed=0)
    pd.testing.assert_frame_equal(salient, both["salient"])
    known = np.arange(24)
    loaded.get_salient_normalized_expression(indices=known)  # of which there is nothing to warn of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene_list": ["gene1", "nope"]}, r"1 are not genes.*nope"),
        ({"library_size": "observed"}, "library_size must be a positive number or 'latent'"),
        ({"n_samples": 0}, "n_samples must be at least 1"),
        ({"indices": [99]}, "99"),
    ],
)
def test_mistakes_are_named(adata, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(adata).get_normalized_expression(**arguments)


def test_one_kind_must_be_chosen(adata) -> None:
    model = make(adata)
    for arguments in ({}, {"expression_type": "salient", "indices_to_return_salient": [1]}):
        with pytest.raises(ValueError, match="exactly one"):
            model.get_specific_normalized_expression(**arguments)
    with pytest.raises(ValueError, match="must be 'salient' or 'background'"):
        model.get_specific_normalized_expression(expression_type="both")


def test_library_sizes(adata) -> None:
    totals = np.asarray(adata.X.sum(1))
    assert make(adata).get_latent_library_size() == pytest.approx(totals)
    model = make(adata, use_observed_lib_size=False)
    moments = model.module.guide.encode(model.setup.extract(adata).cells(np.arange(26)))
    mean, variance = (m.detach().numpy() for m in moments["library"])
    expected = np.exp(mean + variance / 2)  # the mean of a log-normal; not exp(mean + variance^2/2)
    assert model.get_latent_library_size() == pytest.approx(expected, rel=1e-5)
    repeated = np.tile(np.arange(26), 2000)
    draws = model.get_latent_library_size(indices=repeated, give_mean=False, seed=0)
    draws = draws.reshape(2000, 26).T
    error = (np.log(draws).mean(1) - mean[:, 0]) / np.sqrt(variance[:, 0] / 2000)
    assert np.abs(error).max() < 5


def test_bounds_are_ordered_and_per_cell(adata) -> None:
    model = make(adata)
    per_cell = model.get_elbo(return_mean=False, seed=0)
    assert per_cell.shape == (26,)
    assert model.get_elbo(seed=0) == pytest.approx(per_cell.mean())
    recon = model.get_reconstruction_error(return_mean=False, seed=0)["reconstruction_loss"]
    assert (-recon > per_cell).all()  # the ELBO is that less a KL divergence
    assert (recon > 0).all()  # an error: lower is better, as in scvi-tools
    better = model.get_marginal_ll(n_mc_samples=200, return_mean=False, seed=0)
    assert better.mean() > per_cell.mean()
    assert model.get_marginal_ll(n_mc_samples=50, indices=[3, 4], seed=0) == pytest.approx(
        model.get_marginal_ll(n_mc_samples=50, indices=[3, 4], seed=0)
    )


@pytest.mark.slow
def test_elbo_per_cell_adds_up_to_the_history(adata) -> None:
    model = make(adata)
    everything = {"train_size": 0.5, "validation_size": 0.5, "shuffle_set_split": False}
    model.train(max_epochs=1, enable_progress_bar=False, seed=0, **everything)
    held_out = np.r_[0:6, 12:19]  # in order: validation cells come first
    many = np.mean(
        [model.get_elbo(indices=held_out, return_mean=False, seed=i) for i in range(300)], axis=0
    )
    per_pair = -(many[:6].mean() + many[6:].mean())
    recorded = model.history["elbo_validation"]["elbo_validation"].iloc[-1]
    assert per_pair == pytest.approx(recorded, rel=0.05)


def test_counterfactuals_by_name(adata) -> None:
    model = make(adata, condition_key="three")
    both = model.get_normalized_expression(n_samples=25, seed=0)
    untreated = model.get_counterfactual_expression("control", seed=0)
    pd.testing.assert_frame_equal(untreated, both["background"])
    with pytest.warns(UserWarning, match="the same for every treatment"):
        from_prior = model.get_counterfactual_expression("drug1", salient_source="prior", seed=0)
    for drug1 in (from_prior, model.get_counterfactual_expression("drug1", seed=0)):
        assert drug1.iloc[12:19].equals(both["salient"].iloc[12:19])
        assert not drug1.iloc[19:].equals(both["salient"].iloc[19:])
        assert not drug1.iloc[:12].equals(both["background"].iloc[:12])
    with pytest.raises(ValueError, match="'aggregate_posterior' or 'prior', not 'posterior'"):
        model.get_counterfactual_expression("drug1", salient_source="posterior")
    with pytest.raises(ValueError, match=r"salient_source must be .* not 'posterior'"):
        model.posterior_predictive_sample(salient_source="posterior")
    with pytest.raises(ValueError, match=r"'drug3' is not a condition.*drug2"):
        model.get_counterfactual_expression("drug3")
    nameless = make(adata, condition_key=None)
    assert nameless.get_counterfactual_expression(0).shape == (26, GENES)
    with pytest.raises(ValueError, match="0 \\(background\\) and 1"):
        nameless.get_counterfactual_expression("drug1")


def test_treatment_effects_have_intervals(adata) -> None:
    model = make(adata)
    effect = model.get_treatment_effect(n_samples=60, seed=0, gene_list=["gene3"])
    assert effect["mean"].shape == (26, 1)
    assert (effect["lower"] <= effect["mean"]).all(axis=None)
    assert (effect["mean"] <= effect["upper"]).all(axis=None)
    assert not effect["mean"].iloc[:12].any(axis=None)
    wide = model.get_treatment_effect(n_samples=60, seed=0, interval=0.5, gene_list=["gene3"])
    assert (wide["lower"] >= effect["lower"]).all(axis=None)
    with pytest.raises(ValueError, match="interval"):
        model.get_treatment_effect(interval=95)


def test_reading_leaves_model_data_and_random_state_alone(adata) -> None:
    model = make(adata)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    obs, state = adata.obs.copy(), torch.get_rng_state()
    model.get_normalized_expression(seed=0)
    model.get_elbo(seed=0)
    model.get_treatment_effect(seed=0, n_samples=3, interval=0.5)
    model.get_latent_library_size()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    pd.testing.assert_frame_equal(obs, adata.obs)


def test_draws_follow_the_global_seed(adata) -> None:
    model = make(adata)
    pyro.set_rng_seed(3)
    one = model.get_salient_normalized_expression()
    other = model.get_salient_normalized_expression()
    pyro.set_rng_seed(3)
    again = model.get_salient_normalized_expression()
    assert one.equals(again)
    assert not one.equals(other)


@pytest.mark.slow
def test_a_known_effect_is_found() -> None:
    adata = simulate(SimulationSettings(n_background=1000, n_target=1000, n_genes=100), seed=5)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    pyro.set_rng_seed(0)
    model = ContrastiveVI(adata, wasserstein_penalty=1.0)
    model.train(
        max_epochs=80, enable_progress_bar=False, seed=0, plan_kwargs={"lr": 3e-3, "eps": 1e-8}
    )
    target = np.flatnonzero(adata.obs["condition"] == "treated")
    effect = model.get_treatment_effect(indices=target, n_samples=40, seed=0)["mean"].to_numpy()
    # The truth: the softmax's normalisation is the same for all genes of a cell.
    truth = adata.obsm["s"][target] @ adata.varm["s_loadings"].T / np.log(2)
    centred = [m - m.mean(1, keepdims=True) for m in (effect, truth)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.85


def test_query_data_with_genes_in_another_order_or_among_others(adata) -> None:
    model = make(adata)
    expected = model.get_latent_representation()
    turned = model.get_latent_representation(adata[:, ::-1].copy())
    assert turned == pytest.approx(expected, abs=1e-5)
    fewer = make(adata[:, [9, 2, 5, 0, 1, 3, 4]].copy())
    assert fewer.genes[:3] == ["gene9", "gene2", "gene5"]
    assert fewer.get_latent_representation(adata).shape == (26, 2)


@pytest.mark.parametrize("layer", [None, "counts"])
def test_query_data_without_some_genes(adata, layer) -> None:
    adata.layers["counts"] = adata.X.copy()
    ContrastiveVI.setup_anndata(adata, layer=layer, condition_key="condition", background="control")
    model = ContrastiveVI(adata, **SMALL)
    some = adata[:, [i for i in range(GENES) if i not in {3, 8}]].copy()
    with pytest.raises(ValueError, match=r"lacks 2.*\['gene3', 'gene8'\]"):
        model.get_latent_representation(some)
    with pytest.raises(ValueError, match="fill_missing"):
        model.prepare_query_anndata(some)
    zeroed = adata.copy()
    kept = sp.diags(np.isin(np.arange(GENES), [3, 8], invert=True).astype(np.float32))
    zeroed.X = zeroed.layers["counts"] = (adata.X @ kept).tocsr()
    filled = model.prepare_query_anndata(some, fill_missing=True)
    assert filled.var_names.tolist() == model.genes
    assert np.array_equal(
        model.get_latent_representation(filled), model.get_latent_representation(zeroed)
    )


def test_each_condition_is_reported(adata) -> None:
    model = make(adata, condition_key="three")
    model.train(max_epochs=2, train_size=0.6, enable_progress_bar=False)
    names = {"elbo_control_validation", "elbo_drug1_validation", "elbo_drug2_validation"}
    assert names <= set(model.history)
    last = {name: model.history[name].iloc[-1, 0] for name in model.history}
    drugs = sorted((last["elbo_drug1_validation"], last["elbo_drug2_validation"]))
    target = last["elbo_validation"] - last["elbo_control_validation"]
    assert drugs[0] <= target + 1e-3
    assert target <= drugs[1] + 1e-3
    tables = {
        drug: model.differential_expression(
            groupby="three", group1=drug, group2="control", n_samples_overall=50, silent=True
        )
        for drug in ("drug1", "drug2")
    }
    for drug, table in tables.items():
        cells = adata[adata.obs["three"] == drug]
        means = pd.Series(np.asarray(cells.X.mean(0)).ravel(), adata.var_names)
        np.testing.assert_allclose(table["raw_mean1"], means[table.index], rtol=1e-5)
        scale = table["scale1"] - table["scale2"]
        assert (scale.abs() > 1e-4).any(), drug
    two = make(adata)
    two.train(max_epochs=1, train_size=0.6, enable_progress_bar=False)
    assert not any("control" in name for name in two.history)


def test_the_split_can_be_given(adata) -> None:
    model = make(adata)
    parts = [np.r_[0:8, 12:20], np.r_[8:12, 20:26]]
    model.train(
        max_epochs=1,
        datasplitter_kwargs={"external_indexing": parts},
        enable_progress_bar=False,
    )
    many = np.mean(
        [model.get_elbo(indices=parts[1], return_mean=False, seed=i) for i in range(99)], 0
    )
    recorded = model.history["elbo_validation"].iloc[-1, 0]
    assert -(many[:4].mean() + many[4:].mean()) == pytest.approx(recorded, rel=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datasplitter_kwargs": {"external_indexing": [[0, 13], [13]]}}, "twice"),
        ({"datasplitter_kwargs": {"external_indexing": [[0, 1], [13]]}}, "both populations"),
        ({"datasplitter_kwargs": {"external_indexing": [[0, 99]]}}, "neither population"),
        ({"datasplitter_kwargs": {"external_indexing": [[0]] * 4}}, "not 4"),
        ({"datasplitter_kwargs": {"drop_last": True}}, "drop_last"),
        (
            {"datasplitter_kwargs": {"external_indexing": [[0, 13]]}, "train_size": 0.8},
            "leave out train_size",
        ),
        ({"load_sparse_tensor": True}, "load_sparse_tensor"),
        ({"plan_kwargs": {"optimizer": "SGD"}}, "'Adam', 'AdamW' or 'Custom'"),
        ({"plan_kwargs": {"optimizer": "Custom"}}, "go together"),
        (
            {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_scheduler_metric": "x"}},
            "lr_scheduler_metric='x' is not recorded",
        ),
        ({"strategy": "ddp"}, "strategy"),
    ],
)
def test_what_train_cannot_honour_is_an_error(adata, arguments, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(adata).train(max_epochs=1, enable_progress_bar=False, **arguments)


def test_optimisers_and_schedules(adata) -> None:
    quiet = {"max_epochs": 6, "enable_progress_bar": False, "seed": 0}
    model = make(adata)
    made = []

    def creator(parameters):
        made.append(torch.optim.SGD(parameters, lr=1e-4))
        return made[0]

    model.train(plan_kwargs={"optimizer": "Custom", "optimizer_creator": creator}, **quiet)
    assert len(made) == 1
    schedule = {
        "reduce_lr_on_plateau": True,
        "lr_patience": 0,
        "lr_factor": 0.1,
        "lr_threshold": 1e9,  # nothing is an improvement
        "lr_scheduler_metric": "train_loss_epoch",
        "optimizer": "AdamW",
    }
    pyro.set_rng_seed(0)
    slowed = make(adata)
    start = slowed.module.guide.z_encoder.mean.weight.clone()
    slowed.train(plan_kwargs=schedule, **quiet)
    pyro.set_rng_seed(0)
    free = make(adata)
    free.train(plan_kwargs={"optimizer": "AdamW"}, **quiet)
    moved, freely = (
        float((m.module.guide.z_encoder.mean.weight - start).abs().sum().detach())
        for m in (slowed, free)
    )
    assert moved < 0.7 * freely


@pytest.mark.parametrize("observed", [True, False])
def test_cells_without_counts_have_finite_results(adata, observed) -> None:
    kept = sp.diags((np.arange(26) % 13 > 0).astype(np.float32))  # a cell of each population
    adata.X = (kept @ adata.X).tocsr()
    with pytest.warns(UserWarning, match="2 of 26 cells have no counts"):
        model = make(adata, use_observed_lib_size=observed)
    model.train(max_epochs=2, enable_progress_bar=False, train_size=0.8)
    table = model.differential_expression(groupby="condition", n_samples_overall=50, silent=True)
    empty = model.differential_expression(idx1=[0, 13], n_samples_overall=50, silent=True)
    results = [
        *model.get_normalized_expression(library_size="latent").values(),
        *model.get_treatment_effect(n_samples=39).values(),
        model.get_counterfactual_expression("treated"),
        model.get_latent_representation(representation_kind="background"),
        model.get_latent_representation(),
        model.get_latent_library_size(),
        model.get_elbo(return_mean=False),
        model.get_reconstruction_error(return_mean=False)["reconstruction_loss"],
        model.get_marginal_ll(n_mc_samples=5, return_mean=False),
        *(frame for frame in model.history.values()),
        *(frame.select_dtypes("number") for frame in (table, empty)),
    ]
    assert all(np.isfinite(np.asarray(result)).all() for result in results)


def test_differential_expression_by_column_and_by_query(adata) -> None:
    model = make(adata)
    obs = adata.obs.copy()
    quick = {"silent": True, "n_samples_overall": 200, "seed": 0}
    table = model.differential_expression(groupby="condition", group1="treated", **quick)
    assert set(table.index) == set(model.genes)
    assert {"proba_de", "lfc_mean", "is_de_fdr_0.05", "raw_mean1", "comparison"} <= set(table)
    query = model.differential_expression(
        idx1="condition == 'treated'", idx2=np.arange(12), **quick
    )
    for column in ("proba_de", "lfc_mean", "scale1", "raw_mean2"):
        assert np.array_equal(query[column], table[column]), column
    pd.testing.assert_frame_equal(obs, adata.obs)
    turned = model.differential_expression(adata[:, ::-1].copy(), groupby="condition", **quick)
    turned = turned[turned["group1"] == "treated"].loc[table.index]
    assert turned["raw_mean1"].tolist() == table["raw_mean1"].tolist()
    with pytest.raises(TypeError, match="nonsense"):
        model.differential_expression(groupby="condition", nonsense=1)


def test_differential_expression_knows_the_populations_train_was_given(adata) -> None:
    model = make(adata, condition_key=None)
    quick = {"silent": True, "n_samples_overall": 200, "seed": 0, "groupby": "three"}
    model.train(
        np.arange(12), np.arange(12, 24), max_epochs=1, enable_progress_bar=False, train_size=0.8
    )
    with pytest.raises(ValueError, match=r"2 of these cells were neither.*target_idx"):
        model.differential_expression(**quick)
    told = model.differential_expression(target_idx=np.arange(12, 26), **quick)
    known = model.differential_expression(adata[:24].copy(), **quick)
    assert len(told) == len(known) == 3 * GENES


def test_covariates_can_be_changed(adata) -> None:
    adata.obs["age"] = np.linspace(-1, 1, 26)
    adata.obs["sex"] = np.array(["f", "m"])[np.arange(26) // 3 % 2]
    ContrastiveVI.setup_anndata(
        adata,
        categorical_covariate_keys=["sex"],
        continuous_covariate_keys=["age"],
        condition_key="condition",
        background="control",
    )
    model = ContrastiveVI(adata, **SMALL)

    def expression(**covariates):
        table = model.get_salient_normalized_expression(transform_covariates=covariates, seed=0)
        return table.to_numpy()

    own = expression()
    male = (adata.obs["sex"] == "m").to_numpy()
    assert np.array_equal(expression(sex="m")[male], own[male])
    assert (np.abs(expression(sex="m")[~male] - own[~male]).max(1) > 1e-6).all()
    youngest = expression(age=-1.0)
    assert youngest[0] == pytest.approx(own[0], abs=1e-6)
    assert np.abs(youngest[-1] - own[-1]).max() > 1e-6
    effect = model.get_treatment_effect(transform_covariates={"sex": "m"}, n_samples=39)
    assert effect["mean"].shape == (26, GENES)
    for wrong, message in (
        ({"sex": "x"}, r"not a level of 'sex': \['f', 'm'\]"),
        ({"id": 1}, "'id'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.get_normalized_expression(transform_covariates=wrong)


def test_latents_are_scored_by_condition_and_registered_labels() -> None:
    adata = simulate(SimulationSettings(n_background=80, n_target=80, n_genes=GENES), seed=0)
    adata.obs["kind"] = np.where(adata.obsm["z"][:, 0] > 0, "up", "down")
    ContrastiveVI.setup_anndata(
        adata, labels_key="kind", condition_key="condition", background="control"
    )
    model = ContrastiveVI(adata, **SMALL)
    table = model.score_latents()
    assert set(table["of"]) == {"condition", "labels"}
    assert set(table["latent"]) == {"background", "salient"}
    ContrastiveVI.setup_anndata(adata)
    with pytest.raises(ValueError, match="knows no conditions"):
        ContrastiveVI(adata, **SMALL).score_latents()


def test_size_factors_of_any_unit_predict_the_totals(adata) -> None:
    totals = np.asarray(adata.X.sum(1)).ravel()
    latents = []
    for unit in (1.0, totals.mean(), 1e4):
        adata.obs["factor"] = totals / unit
        ContrastiveVI.setup_anndata(
            adata, size_factor_key="factor", condition_key="condition", background="control"
        )
        pyro.set_rng_seed(0)
        model = ContrastiveVI(adata, **SMALL)
        assert model.get_latent_library_size().ravel() == pytest.approx(totals, rel=1e-4)
        latents.append(model.get_normalized_expression(library_size="latent", seed=0)["salient"])
    assert latents[0].sum(axis=1).to_numpy() == pytest.approx(totals, rel=1e-4)
    assert np.allclose(latents[0], latents[2], rtol=1e-4)


def test_models_are_freed(adata) -> None:
    model = make(adata)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.get_normalized_expression()
    model.module.sample(3, library=10.0)
    weight = weakref.ref(model.module.model.decoder.blocks[0].linear.weight)
    del model
    gc.collect()
    assert weight() is None
    assert not list(pyro.get_param_store().keys())


def test_indices_that_contradict_the_condition_are_refused(adata) -> None:
    model = make(adata)
    with pytest.raises(ValueError, match=r"background_indices.*condition"):
        model.train(np.arange(10, 14), np.arange(14, 26), max_epochs=1)
    with pytest.raises(ValueError, match=r"target_indices.*condition"):
        model.train(np.arange(10), np.arange(11, 26), max_epochs=1)
    model.train(np.arange(10), np.arange(14, 26), max_epochs=1, enable_progress_bar=False)


def test_other_cells_of_the_same_name_are_not_taken_for_those_trained_on(adata) -> None:
    model = make(adata, condition_key=None)
    model.train(np.arange(12), np.arange(12, 26), max_epochs=1, enable_progress_bar=False)
    other = adata[::-1].copy()
    other.obs_names = adata.obs_names
    with pytest.warns(UserWarning, match="26 of these cells were neither"):
        both = model.get_normalized_expression(other, seed=0)
    with pytest.raises(ValueError, match="26 of these cells were neither background nor target"):
        model.differential_expression(other, idx1=np.arange(12), seed=0)
    unequal = ~np.isclose(both["background"], both["salient"], atol=1e-7).all(1)
    assert unequal.all()  # not known: decoded with s, as in scvi-tools


def test_repeated_names_are_told_apart_or_warned_of(adata) -> None:
    adata.obs_names = ["cell"] * 26
    model = make(adata, condition_key=None)
    with pytest.warns(UserWarning, match="names repeat"):
        model.train(np.arange(12), np.arange(12, 26), max_epochs=1, enable_progress_bar=False)


def test_early_stopping_that_would_never_look_is_refused(adata) -> None:
    with pytest.raises(ValueError, match="would never check"):
        make(adata).train(max_epochs=5, early_stopping=True, check_val_every_n_epoch=9)


def test_intervals_cover_what_they_say(adata) -> None:
    model = make(adata)
    target = np.arange(12, 26)
    few = model.get_treatment_effect(indices=target, n_samples=39, interval=0.9, seed=0)
    given, without = (
        model.get_specific_normalized_expression(
            indices=target, n_samples=2000, return_mean=False, expression_type=kind, seed=1
        )
        for kind in ("salient", "background")
    )
    change = np.log2(given + 1e-5) - np.log2(without + 1e-5)
    lower, upper = few["lower"].to_numpy(), few["upper"].to_numpy()
    inside = ((change >= lower) & (change <= upper)).mean()
    assert inside == pytest.approx(0.9, abs=0.025)
    with pytest.raises(ValueError, match="takes at least n_samples=39"):
        model.get_treatment_effect(n_samples=25, interval=0.95)


def test_the_treatments_warning_goes_with_a_prior_that_tells_them_apart(adata) -> None:
    prior = PerConditionNormal(3, 2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]))
    model = make(adata, condition_key="three", salient_prior=prior)
    one, other = (
        model.get_counterfactual_expression(
            name, indices=np.arange(12), salient_source="prior", seed=0
        )
        for name in ("drug1", "drug2")
    )
    assert not np.allclose(one, other)


def test_memory_does_not_grow_with_the_number_of_draws(adata, monkeypatch) -> None:
    model = make(adata)
    sizes = []
    monkeypatch.setattr(runs, "DRAWS_AT_A_TIME", 40)
    draw = runs.draw_posterior

    def recorded(vae, batch, n_samples=1):
        sizes.append(len(batch) * n_samples)
        return draw(vae, batch, n_samples)

    monkeypatch.setattr(expression_module, "draw_posterior", recorded)
    model.get_normalized_expression(n_samples=10)
    model.get_treatment_effect(n_samples=40)
    assert max(sizes) <= 40


def test_which_cells_trained_and_where_the_model_is(adata) -> None:
    model = make(adata)
    assert model.train_indices is None
    model.train(max_epochs=1, enable_progress_bar=False, train_size=0.5, validation_size=0.25)
    parts = (model.train_indices, model.validation_indices, model.test_indices)
    assert sorted(np.concatenate(parts).tolist()) == list(range(26))
    assert len(model.train_indices) == 13
    assert model.is_trained_
    assert model.device == torch.device("cpu")
    model.to_device("cpu")


def test_an_untrained_model_says_so_once(adata, caplog) -> None:
    model = make(adata)
    for _ in range(2):
        model.get_latent_representation()
        model.get_elbo()
    assert [r.levelname for r in caplog.records if "has not been trained" in r.message] == [
        "WARNING"
    ]
    caplog.clear()
    trained = make(adata)
    trained.train(max_epochs=1, enable_progress_bar=False)
    trained.get_latent_representation()
    assert "has not been trained" not in caplog.text


def test_prepare_query_anndata_of_the_class_says_whose_method_it_is(adata) -> None:
    with pytest.raises(TypeError, match=r"model.prepare_query_anndata\(adata\)"):
        ContrastiveVI.prepare_query_anndata(adata, "folder")


def test_arguments_that_differential_expression_does_not_take_are_named(adata) -> None:
    with pytest.raises(TypeError, match=r"takes no weights, n_draws. .*: all_stats, change_fn"):
        make(adata).differential_expression(groupby="condition", weights="uniform", n_draws=3)
