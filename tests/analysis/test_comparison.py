"""Models compared on the same cells."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.stats
import torch

from pyro_contrastive import (
    Bernoulli,
    ContrastiveVI,
    Gaussian,
    NegativeBinomial,
    Poisson,
    compare_models,
)
from pyro_contrastive.analysis.comparison import CellEstimates, compare, estimate
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}
SMALL: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 2, "n_salient_latent": 2}


def estimates(psis: list[float], k: float = 0.1) -> CellEstimates:
    values = np.array(psis)
    return CellEstimates(values, values, np.full(len(psis), k), np.full(len(psis), 0.01), 1000)


def test_the_table_by_hand() -> None:
    table = compare({"a": estimates([-5.0, -7.0, -3.0]), "b": estimates([-4.0, -4.0, -4.0])}, {})
    assert list(table.index) == ["b", "a"]
    row = table.loc["a"]
    assert row["elpd_psis"] == -15.0
    assert row["elpd_diff"] == -3.0
    # Differences -1, -3, 1: their standard deviation is 2.
    assert row["diff_se"] == pytest.approx(2 * np.sqrt(3))
    assert row["se"] == pytest.approx(2 * np.sqrt(3))
    assert row["monte_carlo_se"] == pytest.approx(np.sqrt(0.03))
    assert row["per_cell"] == -5.0
    assert "Not clearly worse than the best" in row["reading"]
    assert table.loc["b", "diff_se"] == 0
    assert table["reliable"].all()


def test_high_k_is_said_aloud() -> None:
    rng = np.random.default_rng(0)
    good = estimates(list(rng.normal(-10, 1, 50)))
    bad = estimates(list(good.psis - 3 + rng.normal(0, 0.1, 50)), k=0.9)
    table = compare({"good": good, "bad": bad}, {"bad": "A note."})
    assert not table.loc["bad", "reliable"]
    assert table.loc["bad", "share_high_k"] == 1.0
    reading = table.loc["bad", "reading"]
    assert "Clearly worse" in reading
    assert "Unreliable: Pareto k is above 0.67 in 100% of the cells" in reading
    assert reading.endswith("A note.")
    assert "is reliable" in table.loc["good", "reading"]
    assert "Try refine=True" in reading
    refined = compare({"good": good, "bad": bad}, {}, n_steps=30).loc["bad", "reading"]
    assert "refined in 30 steps; try refine=90" in refined  # not what was done already
    assert "refine=True" not in refined


def test_estimates_of_known_weights() -> None:
    """Log-normal weights: the mean is exp(sd^2 / 2)."""
    found = estimate(np.random.default_rng(0).normal(-100, 0.5, (20, 4000)))
    np.testing.assert_allclose(found.psis, -100 + 0.125, atol=0.05)
    exact_variance = (np.exp(0.25) - 1) / 4000
    np.testing.assert_allclose(found.variance, exact_variance, rtol=0.3)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = simulate(SimulationSettings(n_background=30, n_target=30, n_genes=20))
    adata.layers["logs"] = np.log1p(adata.X.toarray())
    adata.layers["open"] = (adata.X.toarray() > 3).astype(np.float32)
    return adata


def untrained(adata: ad.AnnData, likelihood: Any, layer: str | None = None, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, layer=layer, **KEYS)
        torch.manual_seed(0)
        return ContrastiveVI(adata, likelihood=likelihood, **(SMALL | more))


def trained(adata: ad.AnnData, likelihood: Any, seed: int = 0, **more: Any) -> Any:
    model = untrained(adata, likelihood, **more)
    model.train(max_epochs=3, train_size=0.7, seed=seed, enable_progress_bar=False)
    return model


def test_two_models_on_cells_held_out_from_both(cells: ad.AnnData) -> None:
    models = {"nb": trained(cells, NegativeBinomial()), "poisson": trained(cells, Poisson())}
    found = compare_models(models, n_samples=50)
    held_out = models["nb"].validation_indices
    assert found.table["n_cells"].tolist() == [len(held_out)] * 2
    assert found.table["n_trained_on"].tolist() == [0, 0]
    own = found.cells.query("model == 'nb'")
    assert own["cell"].tolist() == cells.obs_names[held_out].tolist()
    assert found.table.loc["nb", "elpd_psis"] == pytest.approx(own["psis"].sum())
    direct = models["nb"].get_marginal_ll(indices=held_out, n_mc_samples=50, seed=0)
    assert found.table.loc["nb", "elpd_iw"] / len(held_out) == pytest.approx(direct, rel=1e-5)
    again = compare_models(models, n_samples=50)
    assert found.table.equals(again.table)
    assert "reading" in found._repr_html_()


def test_refinement_raises_the_estimate_and_lowers_k(cells: ad.AnnData) -> None:
    models = {"nb": trained(cells, NegativeBinomial()), "poisson": trained(cells, Poisson())}
    some = np.arange(10)
    plain = compare_models(models, indices=some, n_samples=50).table
    refined = compare_models(models, indices=some, n_samples=50, refine=True).table
    unreliable = refined.loc[~refined["reliable"], "reading"]
    assert unreliable.str.contains("refined in 30 steps").all()
    assert (refined["elpd_iw"] > plain["elpd_iw"].reindex(refined.index) + 10).all()
    assert (refined["median_k"] < plain["median_k"].reindex(refined.index)).all()


def test_an_untrained_model_is_not_refined(cells: ad.AnnData) -> None:
    models = {"a": untrained(cells, Poisson()), "b": untrained(cells, Poisson(), n_hidden=6)}
    with pytest.raises(ValueError, match="has not been trained"):
        compare_models(models, indices=[0, 1], n_samples=50, refine=True)
    table = compare_models(models, indices=[0, 1], n_samples=50).table
    assert table["n_trained_on"].isna().all()
    assert table["reading"].str.contains("not known whether").all()


def test_training_cells_are_pointed_out(cells: ad.AnnData) -> None:
    models = {"nb": trained(cells, NegativeBinomial()), "poisson": trained(cells, Poisson())}
    seen = models["nb"].train_indices[:5]
    table = compare_models(models, indices=seen, n_samples=30).table
    assert table["n_trained_on"].tolist() == [5, 5]
    assert table["reading"].str.contains("trained on 5 of these cells").all()
    copy = cells[::-1].copy()  # known by name, in another order
    where = [copy.obs_names.get_loc(name) for name in cells.obs_names[seen]]
    other = compare_models(models, copy, where, n_samples=30).table
    assert other["n_trained_on"].tolist() == [5, 5]


def test_what_cannot_be_compared_is_refused(cells: ad.AnnData) -> None:
    nb = untrained(cells, NegativeBinomial())
    some = [0, 1]
    with pytest.raises(ValueError, match="two models or more"):
        compare_models({"nb": nb}, indices=some)
    gaussian = untrained(cells, Gaussian(), layer="logs")
    with pytest.raises(ValueError, match="give numbers a density"):
        compare_models({"nb": nb, "gaussian": gaussian}, indices=some)
    with pytest.raises(ValueError, match=r"different numbers \(layers X and open\)"):
        compare_models({"nb": nb, "open": untrained(cells, Bernoulli(), layer="open")}, cells, some)
    fewer = untrained(cells[:, :15].copy(), Poisson())
    with pytest.raises(ValueError, match="different genes"):
        compare_models({"nb": nb, "fewer": fewer}, cells, some)
    with pytest.raises(ValueError, match="not known which cells"):
        compare_models({"nb": nb, "again": nb})


def test_no_common_held_out_cell_is_an_error(cells: ad.AnnData) -> None:
    model = trained(cells, Poisson())
    everything = untrained(cells, Poisson())
    everything.train(max_epochs=1, train_size=1.0, seed=0, enable_progress_bar=False)
    with pytest.raises(ValueError, match="No cell was held out"):
        compare_models({"a": model, "b": everything})


def test_a_library_that_only_some_models_observe_is_warned_of(cells: ad.AnnData) -> None:
    observed = untrained(cells, Poisson())
    inferred = untrained(cells, Poisson(), use_observed_lib_size=False)
    with pytest.warns(UserWarning, match="favours the former"):
        compare_models(
            {"observed": observed, "inferred": inferred}, indices=[0, 1, 2], n_samples=30
        )


def test_genes_may_come_in_another_order(cells: ad.AnnData) -> None:
    order = np.random.default_rng(0).permutation(cells.n_vars)
    models = {
        "one": untrained(cells, Poisson()),
        "other": untrained(cells[:, order].copy(), Poisson()),
    }
    table = compare_models(models, cells, [0, 1, 2], n_samples=30).table
    for name, own in (("one", cells), ("other", cells[:, order].copy())):
        direct = models[name].get_marginal_ll(own, indices=[0, 1, 2], n_mc_samples=30, seed=0)
        assert table.loc[name, "elpd_iw"] / 3 == pytest.approx(direct, rel=1e-5)
    assert table.loc["one", "elpd_iw"] != pytest.approx(table.loc["other", "elpd_iw"], rel=1e-5)


def test_log_normal_reference_of_the_delta_method() -> None:
    """The Monte Carlo error of log-mean-exp, against its spread over repetitions."""
    rng = np.random.default_rng(0)
    found = estimate(rng.normal(0, 0.7, (400, 500)))
    spread = found.iw.std()
    assert np.sqrt(found.variance.mean()) == pytest.approx(spread, rel=0.2)
    assert scipy.stats.kstest((found.iw - 0.245) / spread, "norm").pvalue > 1e-4


def test_models_with_other_splits_are_warned_of(cells: ad.AnnData) -> None:
    # Each holds out 30 % of the cells: of the same seed the same, of others 9 % in common.
    models = {"a": trained(cells, Poisson()), "b": trained(cells, Poisson(), seed=1)}
    with pytest.warns(UserWarning, match="held out different cells: only .* same seed="):
        found = compare_models(models, n_samples=30)
    shared = np.intersect1d(models["a"].validation_indices, models["b"].validation_indices)
    assert found.table["n_cells"].tolist() == [len(shared)] * 2


def test_it_prints_as_its_table(cells: ad.AnnData) -> None:
    models = {"a": untrained(cells, Poisson()), "b": untrained(cells, Poisson())}
    found = compare_models(models, indices=np.arange(8), n_samples=30)
    assert repr(found) == f"{found.table.to_string()}\n(cells: 16 rows)"
