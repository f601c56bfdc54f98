"""Every method works with every likelihood, ours or a user's, or says why it has no meaning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from every_likelihood import KEYS, LAYERS, MADE, NO_EXPRESSION, NO_LIBRARY

from pyro_contrastive import (
    ContrastiveVI,
    Gaussian,
)
from pyro_contrastive.data import load_kang

N_CELLS, N_GENES = 40, 25


@dataclass
class Fitted:
    name: str
    model: ContrastiveVI
    adata: ad.AnnData


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    kang = load_kang()
    rng = np.random.default_rng(0)
    by_condition = [np.flatnonzero(kang.obs["condition"] == c) for c in ("control", "stimulated")]
    rows = np.concatenate(
        [rng.choice(found, N_CELLS // 2, replace=False) for found in by_condition]
    )
    genes = np.argsort(-np.asarray(kang.X.mean(axis=0)).ravel(), kind="stable")[:N_GENES]
    chosen = ad.AnnData(
        kang.X[rows][:, genes].copy(),
        obs=kang.obs.iloc[rows][["condition"]].copy(),
        var=pd.DataFrame(index=kang.var_names[genes]),
    )
    chosen.obs["lane"] = np.resize(["a", "b"], N_CELLS)
    counts = chosen.X.toarray()
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    chosen.layers["logs"] = logs.astype(np.float32)
    chosen.layers["scaled"] = ((logs - logs.mean(0)) / logs.std(0)).astype(np.float32)
    chosen.layers["open"] = (chosen.X > 0).astype(np.float32)
    return chosen


@pytest.fixture(scope="module", params=MADE)
def fitted(request: pytest.FixtureRequest, cells: ad.AnnData) -> Fitted:
    adata = cells.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(
            adata, layer=LAYERS.get(request.param), batch_key="lane", **KEYS
        )
    torch.manual_seed(0)
    model = ContrastiveVI(
        adata,
        n_hidden=16,
        n_background_latent=3,
        n_salient_latent=2,
        likelihood=MADE[request.param](),
    )
    model.train(max_epochs=2, batch_size=16, seed=0, enable_progress_bar=False)
    return Fitted(request.param, model, adata)


def data_of(fitted: Fitted) -> np.ndarray:
    layer = LAYERS.get(fitted.name)
    return fitted.adata.X.toarray() if layer is None else np.asarray(to_dense(fitted, layer))


def to_dense(fitted: Fitted, layer: str) -> np.ndarray:
    values = fitted.adata.layers[layer]
    return values if isinstance(values, np.ndarray) else values.toarray()


def test_training_and_latents(fitted):
    history = fitted.model.history
    for name in ("elbo_train", "elbo_validation", "reconstruction_loss_train"):
        assert np.isfinite(history[name].to_numpy()).all()
        assert len(history[name]) == 2
    for kind, width in (("background", 3), ("salient", 2)):
        latent = fitted.model.get_latent_representation(representation_kind=kind)
        assert latent.shape == (N_CELLS, width)
        assert (latent.std(axis=0) > 0).all()


def test_likelihoods_of_cells(fitted):
    model = fitted.model
    elbo = model.get_elbo(return_mean=False, seed=0)
    error = model.get_reconstruction_error(return_mean=False, seed=0)["reconstruction_loss"]
    marginal = model.get_marginal_ll(n_mc_samples=200, return_mean=False, seed=0)
    for values in (elbo, error, marginal):
        assert values.shape == (N_CELLS,)
        assert np.isfinite(values).all()
    # The ELBO is what the data have left after paying the KL divergences, and bounds log p(x).
    assert (elbo < -error).all()
    assert marginal.mean() > elbo.mean()


def test_expression(fitted):
    model = fitted.model
    calls = {
        "expression": lambda: model.get_normalized_expression(seed=0),
        "effect": lambda: model.get_treatment_effect(
            indices=range(N_CELLS), n_samples=40, refine=False, seed=0
        ),
        "counterfactual": lambda: model.get_counterfactual_expression("control", seed=0),
        "de": lambda: model.differential_expression(groupby="condition", seed=0),
    }
    if fitted.name in NO_EXPRESSION:
        for name, call in calls.items():
            if fitted.name == "without scale" and name in {"effect", "counterfactual"}:
                table = call()  # its distribution has a mean
                assert np.isfinite(table["mean"] if name == "effect" else table).all(axis=None)
                continue
            site = "mean_scale" if name in {"effect", "counterfactual"} else "scale"
            with pytest.raises(ValueError, match=f"has no '{site}': normalised expression has no"):
                call()
        return
    expression = calls["expression"]()
    for values in expression.values():
        assert values.shape == (N_CELLS, N_GENES)
        assert (values >= 0).all(axis=None)
    sums = expression["salient"].sum(axis=1)
    assert np.allclose(sums, 1, atol=1e-5) == (fitted.name != "gaussian")
    untreated = calls["counterfactual"]()
    background = (fitted.adata.obs["condition"] == "control").to_numpy()
    assert untreated.shape == (N_CELLS, N_GENES)
    effect = calls["effect"]()
    assert (effect["mean"][background] == 0).all(axis=None)
    treated = {name: values[~background].to_numpy() for name, values in effect.items()}
    assert np.isfinite(treated["mean"]).all()
    assert (treated["lower"] <= treated["upper"]).all()
    assert (treated["mean"] != 0).any(axis=1).all()
    table = calls["de"]()
    assert len(table) == 2 * N_GENES
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()
    assert ("raw_normalized_mean1" in table) == (fitted.name not in NO_LIBRARY)


def test_library_size(fitted):
    model = fitted.model
    if fitted.name in NO_LIBRARY:
        with pytest.raises(ValueError, match="Gaussian has no library size"):
            model.get_latent_library_size()
        for size in ("latent", 1e4):
            with pytest.raises(ValueError, match=rf"library_size={size!r} has no meaning with Gau"):
                model.get_normalized_expression(library_size=size)
        return
    totals = data_of(fitted).sum(axis=1)
    assert model.get_latent_library_size().ravel() == pytest.approx(totals)
    if fitted.name in NO_EXPRESSION:
        with pytest.raises(ValueError, match="has no 'rate'"):
            model.get_normalized_expression(library_size="latent")
        return
    rates = model.get_salient_normalized_expression(library_size="latent", seed=0)
    assert rates.sum(axis=1).to_numpy() == pytest.approx(totals, rel=1e-4)
    scaled = model.get_salient_normalized_expression(library_size=1e4, seed=0)
    assert scaled.sum(axis=1).to_numpy() == pytest.approx(1e4, rel=1e-4)


def test_cells_can_be_drawn(fitted):
    likelihood = fitted.model.module.model.likelihood
    library = None if fitted.name in NO_LIBRARY else 2000.0
    drawn = fitted.model.module.sample(
        30, condition=1, library=library, return_latents=True, seed=0
    )
    x = drawn["x"]
    assert x.shape == (30, N_GENES)
    real = fitted.name in NO_LIBRARY
    assert (x != x.round()).any() == real
    assert real or likelihood.support.check(x).all()
    assert (x.max() <= 1) == (fitted.name == "bernoulli")
    assert ("scale" in drawn) == (fitted.name not in NO_EXPRESSION)
    assert ("rate" in drawn) == (fitted.name not in NO_EXPRESSION | NO_LIBRARY)


def test_saved_and_loaded_it_says_the_same(fitted, tmp_path):
    fitted.model.save(tmp_path / "model")
    made = type(fitted.model.module.model.likelihood)
    own = {"likelihood": made()} if made.__module__ == "every_likelihood" else {}
    loaded = ContrastiveVI.load(tmp_path / "model", adata=fitted.adata, **own)
    old, new = (m.module.model.likelihood for m in (fitted.model, loaded))
    assert type(new) is type(old)
    assert (new.arguments(), new.support, new.pseudocount) == (
        old.arguments(),
        old.support,
        old.pseudocount,
    )
    models = fitted.model, loaded
    before, after = (m.get_latent_representation() for m in models)
    np.testing.assert_array_equal(before, after)
    before, after = (m.get_marginal_ll(n_mc_samples=3, seed=0, return_mean=False) for m in models)
    np.testing.assert_array_equal(before, after)
    library = None if fitted.name in NO_LIBRARY else 500.0
    before, after = (m.module.sample(9, library=library, seed=0) for m in models)
    assert torch.equal(before, after)
    if fitted.name not in NO_EXPRESSION:
        before, after = (m.get_salient_normalized_expression(seed=0) for m in models)
        pd.testing.assert_frame_equal(before, after)


def test_fold_changes_of_a_gaussian_are_differences_of_its_means(cells):
    adata = cells.copy()
    with pytest.warns(UserWarning, match="does not hold raw counts"):
        ContrastiveVI.setup_anndata(adata, layer="logs", **KEYS)
    model = ContrastiveVI(adata, n_hidden=8, likelihood=Gaussian())
    head = model.module.model.likelihood.layers["mean"]
    head.bias.data += 3  # far above 0, where expression is not cut off
    head.bias.data[0] -= 30  # nowhere near expressed
    start = model.get_salient_normalized_expression(n_samples=50, seed=1)
    head.bias.data[1] -= float(np.log1p(start.iloc[:, 1]).mean())  # in half of the draws
    given = {"idx1": np.arange(20, 40), "idx2": np.arange(20), "seed": 0}
    with np.errstate(all="raise"):
        table = model.differential_expression(**given)

    def log_means(rows: slice) -> np.ndarray:
        return np.log1p(model.get_salient_normalized_expression(n_samples=200, seed=1))[rows].mean()

    expected = (log_means(slice(20, 40)) - log_means(slice(0, 20))) / np.log(2)
    found = table["lfc_mean"].reindex(expected.index)
    assert (found - expected).abs().max() < 0.05
    assert (expected.abs() > 0.1).any()
    silent = table.loc[adata.var_names[0]]
    assert silent["lfc_mean"] == 0
    assert silent["proba_de"] == 0
    assert silent["pseudocounts"] == 1
    with pytest.raises(ValueError, match=r"threshold_counts=0\.5 has no effect with Gaussian"):
        model.differential_expression(threshold_counts=0.5, **given)
    effect = model.get_treatment_effect(n_samples=40, seed=0)["mean"]
    # Expression that comes and goes is no change of log2(1e-5) or so.
    barely = adata.var_names[1]
    assert effect[barely].abs().max() < 1
    assert table["lfc_max"][barely] - table["lfc_min"][barely] < 4
    assert effect[barely].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zinb", "nb", "poisson", "zip", "bernoulli", "gaussian"])
def test_the_shell_fits_every_likelihood(name, cells, tmp_path):
    from typer.testing import CliRunner

    from pyro_contrastive.cli import app

    file, out = tmp_path / "cells.h5ad", tmp_path / "out"
    cells.write_h5ad(file)
    options = {
        "--condition-key": "condition",
        "--background": "control",
        "--layer": LAYERS.get(name),
        "--likelihood": name,
        "--max-epochs": "2",
        "--embedding": "pca",
        "--out": str(out),
    }
    arguments = [part for option in options.items() if option[1] for part in option]
    result = CliRunner().invoke(app, ["fit", str(file), *arguments])
    assert result.exit_code == 0, result.output
    page = (out / "index.html").read_text()
    assert type(MADE[name]()).__name__ in page
    assert ("mean value, target" in page) == (name == "gaussian")
    adata = ad.read_h5ad(out / "cells_latents.h5ad")
    loaded = ContrastiveVI.load(out / "model", adata=adata)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), adata.obsm["X_salient"], atol=1e-5
    )
