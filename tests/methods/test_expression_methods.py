"""Normalised expression by name: tables, scales, draws, batches, covariates, arguments."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pytest
from small_model import GENES, SMALL, make

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis import counterfactuals, decoding, query


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
    with pytest.raises(ValueError, match="must be 'salient', 'background' or None"):
        model.get_specific_normalized_expression(expression_type="both")


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


def test_draws_follow_the_global_seed(adata) -> None:
    model = make(adata)
    pyro.set_rng_seed(3)
    one = model.get_salient_normalized_expression()
    other = model.get_salient_normalized_expression()
    pyro.set_rng_seed(3)
    again = model.get_salient_normalized_expression()
    assert one.equals(again)
    assert not one.equals(other)


def test_memory_does_not_grow_with_the_number_of_draws(adata, monkeypatch) -> None:
    model = make(adata)
    sizes = []
    monkeypatch.setattr(query, "DRAWS_AT_A_TIME", 40)
    draw = decoding.draw_posterior

    def recorded(vae, batch, n_samples=1, **kwargs):
        sizes.append(len(batch) * n_samples)
        return draw(vae, batch, n_samples, **kwargs)

    for module in (decoding, counterfactuals):
        monkeypatch.setattr(module, "draw_posterior", recorded)
    model.get_normalized_expression(n_samples=10)
    model.get_treatment_effect(n_samples=40)
    assert max(sizes) <= 40
