"""The diagnosis says the right thing of models that were made to have one fault."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from diagnosis_helpers import GOOD, closeness, probe_of, table_of, usage
from linear_gaussian import N_S, N_Z, NOISE, ExactGuide, loadings, set_loadings

from pyro_contrastive import (
    Bernoulli,
    ContrastiveVI,
    Gaussian,
    NegativeBinomial,
    Poisson,
    PrivateSalient,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_contrastive.analysis.diagnosis.measure import balanced_sample, salient_structure
from pyro_contrastive.analysis.diagnosis.measurements import Structure
from pyro_contrastive.analysis.diagnosis.salient_map import salient_map
from pyro_contrastive.methods.diagnosis import elbo_by_epoch

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}
FAST: dict[str, Any] = {"n_khat_cells": 5, "n_permutations": 3}
COLUMNS = ["value", "verdict", "reading", "try"]


def test_a_good_model_gets_good_marks() -> None:
    table = table_of()
    assert (table["verdict"] == "good").all()
    assert "No blob" in table.loc["salient map", "reading"]
    assert "about 3 groups" in table.loc["salient map", "reading"]
    assert list(table.index) == [
        *("salient map", "use of the salient latent", "unused salient dimensions"),
        *("unused background dimensions", "condition in z", "condition in s", "cell_type in s"),
        *("pareto k", "pareto k, refined", "amortisation gap", "looseness of the ELBO", "training"),
    ]


@pytest.mark.parametrize(
    ("changes", "verdict", "reading", "advice"),
    [
        (
            {"usage": usage(n_s=0), "structure": None, "condition_in_x": probe_of(0.02)},
            "look",
            "One blob.*nothing salient to find",
            "no setting of the model",
        ),
        (
            {"usage": usage(n_s=0), "structure": None, "condition_in_z": probe_of(0.8)},
            "bad",
            "One blob.*no dimension of s.*went into the background latent.*90% right",
            r"add penalties=\[MMD",
        ),
        (
            {
                "usage": usage(n_s=0),
                "structure": None,
                "condition_in_z": probe_of(0.8),
                "penalties": {"MMD": 3.0},
            },
            "bad",
            "went into the background latent",
            r"raise the weight of MMD \(now 3\)",
        ),
        (
            {"salient_nats": 0.1, "penalties": {"Wasserstein": 100.0}},
            "bad",
            "One blob.*decoder ignores s.*has not found it",
            "lower the weight of Wasserstein",
        ),
        (
            {"condition_in_s": probe_of(0.0), "condition_in_x": probe_of(0.02)},
            "look",
            "One blob.*nothing salient to find.*variation that both populations have",
            "no setting of the model",
        ),
        (
            {"condition_in_s": probe_of(0.1)},
            "look",
            "background cells lie among the treated ones",
            "map only the treated cells; add wasserstein_penalty=1",
        ),
        (
            {"condition_in_s": probe_of(0.5)},
            "look",
            "in part",
            "EscapingPerturbation",
        ),
        (
            {"structure": Structure(0.01, 2)},
            "good",
            "carries the condition.*one cloud",
            "for subgroups",
        ),
        (
            {"shared_in_s": {"cell_type": probe_of(0.9)}},
            "look",
            "3 groups in s, but these follow cell_type",
            "HSIC",
        ),
    ],
)
def test_the_answer_to_one_blob(
    changes: dict[str, Any], verdict: str, reading: str, advice: str
) -> None:
    found = salient_map(dataclasses.replace(GOOD, **changes))
    assert found.diagnostic == "salient map"
    assert found.verdict == verdict
    assert pd.Series([found.reading]).str.contains(reading).all(), found.reading
    assert pd.Series([found.advice]).str.contains(advice).all(), found.advice


def test_nothing_is_advised_that_the_model_already_has() -> None:
    with_all = {"MMD": 30.0, "HSIC": 10.0, "Wasserstein": 10.0}
    for penalties, preset in (({}, True), ({"MMD": 30.0}, True), (with_all, False)):
        changes = {"condition_in_z": probe_of(0.8), "penalties": penalties}
        advice = table_of(**changes).loc["condition in z", "advice"]
        assert ("from_preset" in advice) == preset
        found = salient_map(
            dataclasses.replace(GOOD, usage=usage(n_s=0), structure=None, **changes)
        )
        assert ("from_preset" in found.advice) == preset
        assert ("add penalties=[MMD" in advice) == (not penalties)
    for prior, advised in (("StandardNormal", True), ("PerConditionNormal", False)):
        row = table_of(treatments_in_s=probe_of(0.0), salient_prior=prior).loc["treatments in s"]
        assert ("PerConditionNormal" in row["advice"]) == advised
        assert "more cells per treatment" in row["advice"]
    escaping = dataclasses.replace(
        GOOD, condition_in_s=probe_of(0.5), salient_prior="EscapingPerturbation"
    )
    assert salient_map(escaping).advice == "more epochs, more genes that respond"


def test_other_faults_are_named() -> None:
    assert table_of(condition_in_z=probe_of(0.3)).loc["condition in z", "verdict"] == "look"
    assert table_of(condition_in_z=probe_of(0.8)).loc["condition in z", "verdict"] == "bad"
    lucky = probe_of(0.3) | {"upper_chance": 0.8}  # shuffled labels do as well
    assert table_of(condition_in_z=lucky).loc["condition in z", "verdict"] == "good"
    high_k = table_of(guide=closeness(0.9)).loc["pareto k"]
    assert (high_k["verdict"], high_k["value"]) == ("look", 0.9)
    assert "refine=True" in high_k["advice"]
    assert table_of(guide=closeness(1.5)).loc["pareto k", "verdict"] == "bad"
    loose = table_of(guide=closeness(elbo=-330.0), refined=closeness(elbo=-300.5))
    assert loose.loc["looseness of the ELBO", ["value", "verdict"]].tolist() == [30.0, "bad"]
    assert loose.loc["amortisation gap", ["value", "verdict"]].tolist() == [29.5, "bad"]
    still = table_of(refined=closeness(0.9)).loc["pareto k, refined"]
    assert (still["verdict"], still["advice"]) == ("look", "more steps, such as refine=100")
    untrained = table_of(refined=None, guide=closeness(0.9))
    assert not {"pareto k, refined", "amortisation gap"} & set(untrained.index)
    assert "refine" not in untrained.loc["pareto k", "advice"]
    assert "1 of 4" in table_of(usage=usage(n_z=1)).loc["unused background dimensions", "reading"]
    assert table_of(usage=usage(n_z=0)).loc["unused background dimensions", "verdict"] == "bad"
    falling = table_of(elbo=np.linspace(500, 300, 100)).loc["training"]
    assert (falling["verdict"], falling["advice"]) == ("look", "more epochs")
    overfit = table_of(elbo=np.abs(np.arange(100) - 30.0) + 100).loc["training"]
    assert overfit["verdict"] == "bad"
    assert "best at epoch 30 (counted from 0 to 99)" in overfit["reading"]
    assert "the weights of that epoch were not put back" in overfit["reading"]
    assert "training" not in table_of(elbo=np.empty(0)).index
    treatments = table_of(treatments_in_s=probe_of(0.0)).loc["treatments in s"]
    assert treatments["verdict"] == "look"
    assert table_of(batch_in_z={"donor": probe_of(0.7)}).loc["donor in z", "verdict"] == "bad"


def test_the_best_epoch_is_the_one_of_the_history_and_of_its_plot() -> None:
    """Counted from 0, whatever epochs were looked at."""
    from matplotlib.figure import Figure

    from pyro_contrastive.plotting import plot_history

    every_third = pd.Index(range(2, 30, 3), name="epoch")
    elbo = pd.Series(np.abs(every_third - 14.0) + 100, every_third)
    reading = table_of(elbo=elbo).loc["training", "reading"]
    assert "best at epoch 14 (counted from 0 to 29)" in reading
    axes = Figure().subplots()
    plot_history({"elbo_validation": elbo.to_frame("elbo_validation")}, ax=axes)
    assert "best held-out: 100 at epoch 14" in axes.get_legend_handles_labels()[1]


def test_overfitting_is_named_and_whether_it_was_undone() -> None:
    held_out = pd.Series(np.abs(np.arange(100) - 30.0) + 100, name="elbo_validation")
    undone = table_of(elbo=held_out, restored_epoch=30).loc["training"]
    assert (undone["verdict"], undone["advice"]) == ("good", "")
    assert undone["reading"].startswith(
        "Overfitted: the held-out negative ELBO was best at epoch 30"
    )
    assert "weights of that epoch were put back" in undone["reading"]
    near = table_of(elbo=held_out, restored_epoch=31).loc["training"]
    assert (near["verdict"], "epoch 31 were put back" in near["reading"]) == ("bad", True)
    late = table_of(elbo=held_out, restored_epoch=90).loc["training"]
    assert (late["verdict"], late["advice"]) == ("bad", "fewer epochs")
    settled = table_of(restored_epoch=98).loc["training"]
    assert (settled["verdict"], "epoch 98 (from 0)" in settled["reading"]) == ("good", True)


def test_the_model_gives_its_history_with_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    from training_helpers import make_model, train

    model = make_model()
    train(model, 9, check_val_every_n_epoch=3)
    found = elbo_by_epoch(model._history)
    assert found.index.tolist() == [2, 5, 8]
    assert found.tolist() == model.history["elbo_validation"]["elbo_validation"].tolist()


def test_groups_differ_from_a_cloud() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3))
    assert abs(salient_structure(cloud, 0).excess) < 0.07
    groups = rng.normal(size=(300, 3)) + 6 * np.eye(3)[np.arange(300) % 3]
    found = salient_structure(groups, 0)
    assert found.excess > 0.2
    assert found.n_groups == 3


def test_both_populations_are_in_the_sample() -> None:
    codes = np.repeat([0, 2], [900, 100])
    cells = balanced_sample(codes, np.arange(1000), 200, 0)
    assert np.bincount(codes[cells]).tolist() == [100, 0, 100]
    with pytest.raises(ValueError, match="5 target cells"):
        balanced_sample(np.repeat([0, 1], [50, 5]), np.arange(55), 20, 0)


def counts(effect: float, n: int = 100, n_genes: int = 20) -> ad.AnnData:
    """Poisson counts; half of the cells are treated, which changes three genes."""
    rng = np.random.default_rng(0)
    treated = np.arange(2 * n) >= n
    rate = np.full((2 * n, n_genes), 5.0)
    rate[:, :3] *= np.exp(effect * treated)[:, None]
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control")})
    obs.index = obs.index.astype(str)
    return ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)


def collapse(encoder: torch.nn.Module) -> None:
    with torch.no_grad():
        encoder.mean.weight.zero_()
        encoder.mean.bias.zero_()
        encoder.log_variance.weight.zero_()
        encoder.log_variance.bias.zero_()


def untrained(adata: ad.AnnData, **more: Any) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, **KEYS)
    torch.manual_seed(0)
    sizes = {"n_hidden": 8, "n_background_latent": 2, "n_salient_latent": 2}
    return ContrastiveVI(adata, **(sizes | {"likelihood": Poisson()} | more))


def test_a_collapsed_salient_latent_where_there_is_a_response() -> None:
    model = untrained(counts(1.5), wasserstein_penalty=100.0)
    collapse(model.module.guide.s_encoder)
    collapse(model.module.guide.z_encoder)
    row = model.diagnose(**FAST).loc["salient map"]
    assert row["verdict"] == "bad"
    assert "One blob" in row["reading"]
    assert "has not found it" in row["reading"]
    assert "lower the weight of Wasserstein" in row["try"]


def test_a_collapsed_salient_latent_where_there_is_nothing_to_find() -> None:
    model = untrained(counts(0.0))
    collapse(model.module.guide.s_encoder)
    table = model.diagnose(**FAST)
    assert list(table.columns) == COLUMNS
    assert "nothing salient to find" in table.loc["salient map", "reading"]
    assert table.loc["unused salient dimensions", "verdict"] == "bad"
    assert table.loc["condition in s", "verdict"] == "bad"
    assert table.loc["condition in z", "verdict"] == "good"
    model.module.train()
    state = torch.get_rng_state()
    again = model.diagnose(**FAST)
    pd.testing.assert_frame_equal(table, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.module.modules())


def linear_model(groups: bool, orthogonal: bool = True) -> ContrastiveVI:
    """A model with the exact posterior for a guide, of data it would make."""
    rng = np.random.default_rng(0)
    n = 150
    treated = np.arange(2 * n) >= n
    latents = rng.normal(size=(2 * n, N_Z + N_S))
    # Exactly 0 in background cells; in treated cells away from it, and in two groups or one.
    centres = np.where(np.arange(2 * n) % 2, 3.0, 7.0) if groups else np.full(2 * n, 4.0)
    latents[:, N_Z] = treated * (centres + 0.3 * rng.normal(size=2 * n))
    latents[:, N_Z + 1] *= treated
    weights = loadings(orthogonal)
    x = latents @ weights.numpy().T + NOISE * rng.normal(size=(2 * n, len(weights)))
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control")})
    obs["type"] = np.where(latents[:, 0] > 0, "high", "low")
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(x.astype(np.float32), obs=obs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, labels_key="type", **KEYS)
        model = ContrastiveVI(
            adata,
            n_background_latent=N_Z,
            n_salient_latent=N_S,
            likelihood=Gaussian(log1p=False),
            n_layers_decoder=0,
        )
    model.module.double()
    set_loadings(model.module, weights)
    model.module.guide = TreatedOnly(weights).double()
    return model


class TreatedOnly(ExactGuide):
    """The exact posterior, with s of background cells at 0, as a penalty would have it."""

    def encode(self, batch):
        moments = super().encode(batch)
        mean, variance = moments["s"]
        mean = torch.where(batch.is_target.unsqueeze(-1), mean, 0.0)
        variance = torch.where(batch.is_target.unsqueeze(-1), variance, 0.01)
        return moments | {"s": (mean, variance)}


@pytest.mark.slow
@pytest.mark.parametrize("groups", [True, False])
def test_a_salient_latent_that_works(groups: bool) -> None:
    table = linear_model(groups).diagnose(n_permutations=3, n_khat_cells=10)
    row = table.loc["salient map"]
    assert row["verdict"] == "good"
    assert ("about 2 groups" if groups else "one cloud") in row["reading"]
    for name in ("condition in z", "condition in s", "type in s", "pareto k"):  # untrained
        assert table.loc[name, "verdict"] == "good", name
    assert table.loc["looseness of the ELBO", "value"] == pytest.approx(0, abs=0.05)


@pytest.mark.slow
def test_nuts_and_calibration_are_added_on_request() -> None:
    model = linear_model(groups=False)
    accuracy = model.posterior_accuracy
    # Shorter chains than the default: what is tested here is that the rows are there.
    model.posterior_accuracy = lambda *a, **k: accuracy(  # type: ignore[method-assign]
        *a, n_draws=40, n_warmup=20, n_steps=5, **k
    )
    table = model.diagnose(nuts_cells=3, calibration_cells=200, n_cells=60, **FAST)
    assert table.loc["calibration", "verdict"] == "good"
    assert table.loc["error of z", "value"] < 0.6
    assert 0.6 < table.loc["width of z", "value"] < 1.6
    assert "NUTS" in table.loc["error of z", "reading"]


def test_what_needs_conditions_says_so() -> None:
    adata = counts(1.0, n=15)
    ContrastiveVI.setup_anndata(adata)
    model = ContrastiveVI(adata, n_hidden=8)
    with pytest.raises(ValueError, match="knows no conditions"):
        model.diagnose()
    with pytest.raises(ValueError, match="give the indices of a few"):
        model.posterior_accuracy()
    with pytest.raises(ValueError, match="n_draws of at least 4"):
        model.posterior_accuracy(indices=[0], n_draws=1)
    with pytest.raises(ValueError, match="'guide', 'refined' or 'nuts'"):
        model.simulation_based_calibration(method="hmc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="10 simulations"):
        model.simulation_based_calibration(n_simulations=3)


def test_leakage_of_every_label() -> None:
    model = linear_model(groups=True)
    table = model.leakage(labels_keys="type", n_permutations=2).set_index(["latent", "of"])
    assert table.loc[("background", "type"), "balanced_accuracy"] > 0.8
    assert table.loc[("salient", "type"), "balanced_accuracy"] < 0.7
    assert table.loc[("salient", "condition"), "auc"] > 0.95
    assert table.loc[("salient", "type"), "n_cells"] == 150


LIKELIHOODS: dict[str, Any] = {
    "zinb": ZeroInflatedNegativeBinomial,
    "nb by batch": lambda: NegativeBinomial("gene-batch"),
    "zip": ZeroInflatedPoisson,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}


def varied(name: str) -> ContrastiveVI:
    """Cells of two batches and two treatments, and a model with one of the likelihoods."""
    adata = counts(1.0, n=40, n_genes=12)
    adata.obs["condition"] = np.array(["control"] * 40 + ["one"] * 20 + ["two"] * 20)
    adata.obs["donor"] = np.where(np.arange(80) % 2, "d1", "d2")
    if name == "bernoulli":
        adata.X = (adata.X > 4).astype(np.float32)
    if name == "gaussian":
        adata.X = np.log1p(adata.X)
    more: dict[str, Any] = {}
    if name == "zinb":
        more = {"use_observed_lib_size": False, "dispersion_prior": dist.Gamma(2.0, 1.0)}
    if name == "zip":
        more = {"salient_prior": PrivateSalient(3, 2)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, batch_key="donor", **KEYS)
        torch.manual_seed(0)
        return ContrastiveVI(
            adata,
            n_hidden=8,
            n_background_latent=2,
            n_salient_latent=2,
            likelihood=LIKELIHOODS[name](),
            **more,
        )


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in LIKELIHOODS if n != "zinb"]


@pytest.mark.parametrize("name", ["zinb", *SLOW])
def test_every_likelihood_is_diagnosed(name: str) -> None:
    model = varied(name)
    table = model.diagnose(**FAST)
    assert {"donor in s", "donor in z", "treatments in s"} <= set(table.index)
    assert np.isfinite(table["value"]).all()
    assert model.pareto_k(indices=[0, 1, 79], n_samples=30, seed=0)["log_p"].notna().all()
    ranks = model.simulation_based_calibration(n_simulations=20, n_draws=9, seed=0).ranks
    assert ("library" in ranks) == (name == "zinb")
    assert ranks["log_likelihood"].between(0, 9).all()
    found = model.posterior_accuracy(indices=[0, 79], n_samples=30, nuts=False, n_steps=20, seed=0)
    assert (found.cells["amortisation_gap"] > -0.1).all()  # 30 draws have some noise
    assert found.cells["amortisation_gap"].mean() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_nuts_runs_on_every_likelihood(name: str) -> None:
    model = varied(name)
    found = model.posterior_accuracy(
        indices=[0, 79], n_samples=30, n_draws=15, n_warmup=15, n_steps=100, seed=0
    )
    assert np.isfinite(found.latents[["nuts_mean", "nuts_sd"]]).all().all()
    fitted = found.summary().loc["refined"]
    assert (fitted["mean_error"] < 1.5).all()


def test_that_a_model_is_untrained_comes_first() -> None:
    table = varied("zip").diagnose(**FAST)
    assert table.index[0] == "training"
    assert table["verdict"].iloc[0] == "bad"
    assert "not been trained" in table["reading"].iloc[0]
