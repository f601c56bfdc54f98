"""A script written for scvi-tools' ContrastiveVI runs here: same names, arguments and results."""

from __future__ import annotations

import inspect
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.testing import SimulationSettings, simulate

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning:lightning",
    "ignore::UserWarning:scvi",
    "ignore::UserWarning:torch",
)

LEFT_OUT = {
    # scvi-tools' own registry of AnnData; here a record in adata.uns: see get_setup_arg.
    "adata_manager data_registry deregister_manager get_anndata_manager get_from_registry "
    "get_state_registry load_registry register_manager registry transfer_fields "
    "update_setup_method_args view_registry view_setup_method_args",
    "convert_legacy_save",  # no file of ours is that old; files of scvi-tools: from_scvi
    "differential_abundance",  # not implemented there
    # Data on disk, from scvi-tools 1.5 on. Its ContrastiveVI inherits the name but cannot train
    # that way: its splitter of the two populations needs an AnnData.
    "setup_annbatch",
    "get_normalized_function_name get_var_names run_id run_name",  # for its own machinery
}
DIFFERENT = {
    ("get_normalized_expression", "silent"),  # a bar appears only after some seconds
    ("train", "background_indices"),  # not needed where the condition is registered
    ("train", "target_indices"),
    ("train", "early_stopping"),  # None: on with the fast schedule, which scvi-tools does not have
}
REFUSED = {  # mostly by Python: an unexpected keyword
    "load": "backup_url datamodule allowed_classes_names_list",
    "save": "save_kwargs legacy_mudata_format datamodule",
    "setup_anndata": "kwargs",  # options of its registry
    "train": "trainer_kwargs",  # of Lightning; train refuses them with an explanation
}


@pytest.fixture(scope="module")
def reference() -> Any:
    """Import scvi-tools (slow, so once)."""
    return pytest.importorskip("scvi.external").ContrastiveVI


def test_every_public_name_is_here(reference):
    left_out = {name for names in LEFT_OUT for name in names.split()}
    theirs = {name for name in dir(reference) if not name.startswith("_")}
    model = make(ContrastiveVI, make_adata())
    missing = {name for name in theirs - left_out if not hasattr(model, name)}
    assert not missing


def test_every_argument_is_here_in_its_place_with_its_default(reference):
    shared = [n for n in dir(reference) if not n.startswith("_") and hasattr(ContrastiveVI, n)]
    methods = [n for n in shared if callable(getattr(reference, n))]
    assert len(methods) > 10
    for method in (*methods, "__init__"):
        theirs, ours = (
            inspect.signature(getattr(c, method)).parameters for c in (reference, ContrastiveVI)
        )
        kept = [n for n in theirs if n not in REFUSED.get(method, "").split()]
        assert list(ours)[: len(kept)] == kept or method in {"differential_expression", "save"}
        for name in kept:
            assert ours[name].kind == theirs[name].kind, (method, name)
            if (method, name) not in DIFFERENT:
                assert ours[name].default == theirs[name].default, (method, name)


def make_adata() -> ad.AnnData:
    adata = simulate(SimulationSettings(n_background=30, n_target=40, n_genes=12), seed=0)
    adata.obs_names = [f"cell{i}" for i in range(70)]
    adata.var_names = [f"gene{i}" for i in range(12)]
    adata.obs["lane"] = pd.Categorical(np.resize(["a", "b"], 70))
    adata.layers["counts"] = adata.X.copy()
    return adata


def make(model_class: Any, adata: ad.AnnData, **kwargs: Any) -> Any:
    model_class.setup_anndata(adata, layer="counts", batch_key="lane")
    return model_class(adata, n_hidden=8, n_background_latent=3, n_salient_latent=2, **kwargs)


BACKGROUND, TARGET = list(range(30)), list(range(30, 70))


def use(model: Any, adata: ad.AnnData) -> dict[str, Any]:
    """Do what users do; return what they get."""
    got: dict[str, Any] = {}
    model.train(
        background_indices=BACKGROUND,
        target_indices=TARGET,
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        train_size=0.8,
        validation_size=0.2,
        shuffle_set_split=True,
        batch_size=16,
        early_stopping=True,
        early_stopping_monitor="elbo_validation",
        early_stopping_patience=20,
        early_stopping_min_delta=0.1,
        early_stopping_mode="min",
        early_stopping_warmup_epochs=1,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        plan_kwargs={"lr": 1e-3, "n_epochs_kl_warmup": 1, "weight_decay": 1e-6, "eps": 0.01},
    )
    got["history"] = {k: v for k, v in model.history.items() if k in HISTORY}
    for kind in ("salient", "background"):
        got[kind] = model.get_latent_representation(representation_kind=kind)
        got[f"{kind}, some"] = model.get_latent_representation(adata, [31, 5, 40], False, 2, kind)
    some_genes = ["gene7", "gene2"]
    variants: list[dict[str, Any]] = [
        {},
        {"return_numpy": True},
        {"gene_list": some_genes, "library_size": "latent"},
        {"n_samples": 3, "library_size": 1e4},
        {"n_samples": 3, "return_mean": False},
        {"indices": [31, 5], "transform_batch": "a", "batch_size": 1},
        {"transform_batch": ["a", "b"], "return_numpy": False},
        {"n_samples_overall": 9, "n_samples": 2, "return_mean": False, "return_numpy": True},
    ]
    for kwargs in variants:
        got[f"both {kwargs}"] = model.get_normalized_expression(**kwargs)
        got[f"salient {kwargs}"] = model.get_salient_normalized_expression(**kwargs)
        got[f"one {kwargs}"] = model.get_specific_normalized_expression(
            **kwargs, expression_type="background"
        )
    got["mixed"] = model.get_specific_normalized_expression(
        adata, indices=[31, 5], indices_to_return_salient=TARGET
    )
    condition, few = {"groupby": "condition", "group1": "treated"}, {"n_samples_overall": 50}
    comparisons: list[dict[str, Any]] = [
        condition,
        {"groupby": "condition", "group1": ["treated"], "group2": "control", "all_stats": False},
        {"groupby": "lane"},
        {"idx1": (adata.obs["lane"] == "a").to_numpy(), "target_idx": TARGET},
        {"idx1": TARGET[:9], "idx2": BACKGROUND[:9], "batch_size": 4, "n_samples": 2},
        {"idx1": "condition == 'treated'", "idx2": "condition == 'control'", "fdr_target": 0.1},
        condition | {"mode": "vanilla"},
        condition | {"delta": 0.5, "test_mode": "two", "cred_interval_lvls": [0.5]},
        condition | {"batch_correction": True, "use_permutation": True, "m_permutation": 50},
        condition | {"batch_correction": True, "batchid1": ["a"], "batchid2": ["b"]},
        condition | {"target_idx": (adata.obs["condition"] == "treated").to_numpy()},
    ]
    for kwargs in comparisons:
        table = model.differential_expression(adata, silent=True, **kwargs, **few)
        assert set(table.index) == set(adata.var_names)
        # Genes with few counts are marked and come last; in scvi-tools they can be tagged.
        table = table.drop(columns="not_tested", errors="ignore")
        got[f"differential {kwargs}"] = table.reset_index(drop=True)  # sorted by noise
    got["numbers"] = {k: int(model.summary_stats[k]) for k in ("n_vars", "n_batch", "n_cells")}
    got["split"] = [len(model.train_indices), len(model.validation_indices)]
    got["told"] = [model.get_setup_arg(k) for k in ("layer", "batch_key", "labels_key")]
    got["trained"] = (model.is_trained, model.is_trained_, str(model.device))
    return got


HISTORY = {
    f"{name}_{part}"
    for part in ("train", "validation")
    for name in ("elbo", "reconstruction_loss", "kl_local", "kl_global")
} | {"validation_loss"}


def shape_of(value: Any) -> Any:
    """Everything about a result but its numbers."""
    if isinstance(value, dict):
        return {name: shape_of(v) for name, v in value.items()}
    if isinstance(value, pd.DataFrame):
        names = list(value.index), value.index.name, list(value.columns)
        return "frame", value.shape, *names, [dtype.kind for dtype in value.dtypes]
    if isinstance(value, np.ndarray):
        return "array", value.shape, value.dtype
    return value


@pytest.mark.parametrize("observed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_one_script_gives_the_same_kinds_of_results(reference, observed, tmp_path):
    results = []
    for name, model_class in (("theirs", reference), ("ours", ContrastiveVI)):
        adata = make_adata()
        model = make(
            model_class, adata, use_observed_lib_size=observed, wasserstein_penalty=1, n_layers=2
        )
        got = use(model, adata)
        if name == "ours" or not observed:  # scvi-tools fails where the library size is observed
            got["library sizes"] = model.get_latent_library_size()
        got["library draws"] = model.get_latent_library_size(adata, [3, 1], give_mean=False)
        folder = tmp_path / name
        model.save(folder, overwrite=True, save_anndata=True, compression="lzf")
        with pytest.raises((ValueError, FileExistsError)):
            model.save(folder)
        for given in ({}, {"adata": adata, "accelerator": "cpu", "device": "auto"}):
            loaded = model_class.load(folder, **given)
            same = loaded.get_latent_representation(), model.get_latent_representation()
            np.testing.assert_allclose(*same, atol=1e-5)
        results.append(got)
    theirs, ours = results
    for name, value in theirs.items():
        expected, found = shape_of(value), shape_of(ours[name])
        if name == "history":  # floats held as objects there
            assert {k: v[:5] for k, v in found.items()} == {k: v[:5] for k, v in expected.items()}
            assert set(found) == HISTORY
        elif "'n_samples_overall'" not in name:  # else each drew its own cells
            assert found == expected, name
        else:
            assert str(type(ours[name])) == str(type(value))


def test_summaries(capsys, tmp_path):
    adata = make_adata()
    adata.obs["lane"] = adata.obs["lane"].astype(str).replace({"a": "[red]a"})
    adata.obs["kind"] = np.resize(["x", "y", "z"], 70)
    ContrastiveVI.setup_anndata(
        adata, batch_key="lane", labels_key="kind", condition_key="condition", background="control"
    )
    model = ContrastiveVI(adata, n_hidden=8)
    assert model.summary_string == repr(model)
    assert model.summary_stats.to_dict() == {
        "n_batch": 2,
        "n_cells": 70,
        "n_extra_categorical_covs": 0,
        "n_extra_continuous_covs": 0,
        "n_labels": 3,
        "n_vars": 12,
    }
    assert model.summary_stats.n_vars == 12
    with pytest.raises(KeyError, match=r"'lane' is not an argument.*batch_key"):
        model.get_setup_arg("lane")
    model.view_anndata_setup(hide_state_registries=True)
    short = capsys.readouterr().out
    assert "lane" in short
    assert "[red]a" not in short
    model.view_anndata_setup(adata)
    assert "lane: [red]a" in capsys.readouterr().out  # not taken for a colour
    with pytest.raises(ValueError, match="not registered"):
        model.view_anndata_setup(make_adata())
    model.save(tmp_path / "model")
    ContrastiveVI.view_setup_args(tmp_path / "model")
    assert capsys.readouterr().out == short
    with pytest.raises(FileNotFoundError, match="no config"):
        ContrastiveVI.view_setup_args(tmp_path)
    with pytest.raises(ValueError, match="prefix"):
        ContrastiveVI.view_setup_args(tmp_path / "model", prefix="one_")


def test_write_options_that_would_have_no_effect_are_refused(tmp_path):
    model = make(ContrastiveVI, make_adata())
    with pytest.raises(TypeError, match=r"unexpected.*datamodule"):
        model.save(tmp_path / "model", save_anndata=True, datamodule=1)
    with pytest.raises(TypeError, match=r"compression.*save_anndata=True"):
        model.save(tmp_path / "model", compression="lzf")
    assert not list(tmp_path.iterdir())


def test_an_untrained_model_compares_groups_with_a_warning():
    adata = make_adata()
    model = make(ContrastiveVI, adata)
    quick: dict[str, Any] = {"n_samples_overall": 50, "silent": True, "seed": 0, "groupby": "lane"}
    with pytest.warns(UserWarning, match="untrained"):
        table = model.differential_expression(**quick)
    told = model.differential_expression(**quick, target_idx=np.arange(70))
    pd.testing.assert_frame_equal(table, told)
