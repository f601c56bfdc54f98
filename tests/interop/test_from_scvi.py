"""Models of scvi-tools' ContrastiveVI, read from memory and from files it wrote."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.interop.scvi_archive import RefusedObjectError
from pyro_contrastive.interop.scvi_files import read_scvi

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning:lightning",
    "ignore::UserWarning:scvi",
    "ignore::UserWarning:torch",
)

N_CELLS, N_GENES = 40, 11
SIZES = {"n_hidden": 7, "n_background_latent": 3, "n_salient_latent": 2}


@pytest.fixture(scope="module")
def external() -> Any:
    """Import scvi-tools (slow, so once)."""
    return pytest.importorskip("scvi.external")


def make_adata(batches: Any = None) -> ad.AnnData:
    rng = np.random.default_rng(1)
    adata = ad.AnnData(rng.poisson(3.0, (N_CELLS, N_GENES)).astype(np.float32))
    adata.var_names = [f"gene {i}" for i in range(N_GENES)]
    adata.obs_names = [f"cell {i}" for i in range(N_CELLS)]
    adata.layers["counts"] = adata.X + rng.poisson(1.0, adata.shape)
    adata.obs["cell_type"] = rng.choice(["T", "B"], N_CELLS)
    adata.obs["age"] = rng.random(N_CELLS)
    adata.obs["sex"] = rng.choice(["f", "m"], N_CELLS)
    if batches is not None:
        adata.obs["batch"] = rng.permutation(np.resize(batches, N_CELLS))
    return adata


def make_scvi(external: Any, adata: ad.AnnData, setup: Any = None, **settings: Any) -> Any:
    """Make a model whose weights and batch-norm statistics differ from the initial ones."""
    keys = {"batch_key": "batch"} if "batch" in adata.obs else {}
    external.ContrastiveVI.setup_anndata(adata, **(keys | (setup or {})))
    model = external.ContrastiveVI(adata, **(SIZES | settings))
    with torch.no_grad():
        for name, buffer in model.module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    model.module.eval()
    model.is_trained_ = True  # otherwise scvi-tools does not return latents
    return model


def convert(path_or_model: Any, adata: ad.AnnData | None = None) -> ContrastiveVI:
    return ContrastiveVI.from_scvi(path_or_model, adata)


def check_same_latents(reference: Any, ours: ContrastiveVI) -> None:
    for kind in ("salient", "background"):
        expected = reference.get_latent_representation(representation_kind=kind)
        got = ours.get_latent_representation(representation_kind=kind)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.fixture
def saved(external: Any, tmp_path: Path) -> Path:
    """Save a small model, with a history as scvi-tools records it."""
    model = make_scvi(external, make_adata())
    model.history_ = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}
    model.save(str(tmp_path / "saved"))
    return tmp_path / "saved"


def change(folder: Path, **attributes: Any) -> None:
    """Write the file again with other attributes."""
    content = torch.load(folder / "model.pt", weights_only=False)
    content["attr_dict"] |= attributes
    torch.save(content, folder / "model.pt")


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("batches", [None, ["x"], ["x", "y", "z"]])
@pytest.mark.parametrize("observed", [True, False])
def test_latents_are_those_of_scvi_tools(
    external: Any, tmp_path: Path, n_layers: int, batches: Any, observed: bool
) -> None:
    adata = make_adata(batches)
    reference = make_scvi(external, adata, n_layers=n_layers, use_observed_lib_size=observed)
    reference.save(str(tmp_path / "saved"))
    for source in (reference, tmp_path / "saved", str(tmp_path / "saved" / "model.pt")):
        ours = convert(source, adata)
        check_same_latents(reference, ours)
        assert ours.is_trained
        assert ours.genes == adata.var_names.tolist()
        assert ours.settings["n_layers"] == n_layers
        if not observed:
            expected = reference.module.library_log_means.reshape(-1)
            assert torch.equal(ours.module.model.library_prior.log_means, expected)


def test_batches_keep_the_order_of_their_codes(external: Any, tmp_path: Path) -> None:
    adata = make_adata()
    levels = ["south", "east", "unused", "north"]
    batch = np.resize(["south", "north", "north", "east"], N_CELLS)
    adata.obs["batch"] = pd.Categorical(batch, categories=levels)
    reference = make_scvi(external, adata)
    reference.save(str(tmp_path / "saved"))
    for source in (reference, tmp_path / "saved"):
        assert read_scvi(source).setup.categories == {"batch": levels}
        check_same_latents(reference, convert(source, adata))


@pytest.mark.parametrize(
    "levels",
    [np.array([3, 1, 20]), np.array([0.5, 2.0]), np.array([True, False])],
    ids=lambda levels: levels.dtype.name,
)
def test_batches_need_not_be_strings(external: Any, tmp_path: Path, levels: Any) -> None:
    adata = make_adata(levels)
    reference = make_scvi(external, adata)
    reference.save(str(tmp_path / "saved"))
    for source in (reference, tmp_path / "saved"):
        check_same_latents(reference, convert(source, adata))


def test_covariates_and_size_factors_are_left_out(external: Any, tmp_path: Path) -> None:
    adata = make_adata(["x", "y"])
    setup = {
        "layer": "counts",
        "labels_key": "cell_type",
        "size_factor_key": "age",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
    }
    reference = make_scvi(external, adata, setup, wasserstein_penalty=np.float64(3.0))
    reference.save(str(tmp_path / "saved"))
    for source in (reference, tmp_path / "saved"):
        ours = convert(source, adata)
        check_same_latents(reference, ours)
        assert ours.setup.layer == "counts"
        assert ours.setup.labels_key == "cell_type"
        assert ours.setup.categories["cell_type"] == ["B", "T"]
        assert ours.setup.size_factor_key is None
        assert ours.setup.categorical_covariate_keys == ()
        assert ours.setup.continuous_covariate_keys == ()
        assert [type(p).__name__ for p in ours.module.penalties] == ["Wasserstein"]


def test_a_trained_model_goes_on(external: Any, tmp_path: Path) -> None:
    adata = make_adata()
    cells = {"background_indices": list(range(20)), "target_indices": list(range(20, N_CELLS))}
    external.ContrastiveVI.setup_anndata(adata)
    reference = external.ContrastiveVI(adata, **SIZES)
    assert not convert(reference).is_trained
    reference.train(
        **cells, max_epochs=2, batch_size=10, accelerator="cpu", enable_progress_bar=False
    )
    reference.save(str(tmp_path / "saved"))
    from_file = convert(tmp_path / "saved", adata)
    assert from_file.is_trained
    assert from_file.history == {}
    ours = convert(reference, adata)
    check_same_latents(reference, ours)
    assert isinstance(ours.module.objective, TraceMeanField_ELBO)
    expected = reference.history["elbo_train"]["elbo_train"].to_numpy(dtype=float)
    np.testing.assert_array_equal(ours.history["elbo_train"]["elbo_train"], expected)
    ours.train(**cells, max_epochs=1, accelerator="cpu")
    assert ours.history["elbo_train"].index.tolist() == [0, 1, 2]
    ours.save(tmp_path / "ours")
    again = ContrastiveVI.load(tmp_path / "ours", adata)
    kind = {"representation_kind": "salient"}
    np.testing.assert_array_equal(
        again.get_latent_representation(**kind), ours.get_latent_representation(**kind)
    )


def test_without_data_a_model_waits_for_them(saved: Path) -> None:
    model = convert(saved)
    assert model.adata is None
    with pytest.raises(ValueError, match="give adata="):
        model.get_latent_representation()
    assert model.get_latent_representation(make_adata()).shape == (N_CELLS, 2)


def test_data_with_other_genes_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="lacks 1 of the 11 genes"):
        convert(saved, make_adata()[:, 1:].copy())


def test_reading_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    convert(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_of_later_pickle_protocols_are_read(
    external: Any, tmp_path: Path, protocol: int
) -> None:
    adata = make_adata([4, 2])
    reference = make_scvi(external, adata)
    reference.history_ = {"elbo_train": pd.DataFrame({"elbo_train": [2.0]})}
    reference.save(str(tmp_path / "saved"), save_kwargs={"pickle_protocol": protocol})
    check_same_latents(reference, convert(tmp_path / "saved", adata))


def test_a_file_from_a_gpu_is_read_on_the_cpu(saved: Path) -> None:
    file = saved / "model.pt"
    expected = convert(saved).module.state_dict()
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = records["model/data.pkl"]
    device, other = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    assert pickled.count(device) == 1
    with zipfile.ZipFile(file, "w") as archive:
        for name, record in (records | {"model/data.pkl": pickled.replace(device, other)}).items():
            archive.writestr(name, record)
    for name, value in convert(saved).module.state_dict().items():
        assert torch.equal(value, expected[name])


def test_parameters_of_other_models_in_the_file_are_passed_over(
    external: Any, tmp_path: Path
) -> None:
    pyro.param("mine", torch.ones(2), constraint=pyro.distributions.constraints.positive)
    reference = make_scvi(external, make_adata())
    reference.save(str(tmp_path / "saved"))
    check_same_latents(reference, convert(tmp_path / "saved", make_adata()))


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("name", ["history_", "registry_", "something_"])
def test_a_file_that_would_run_code_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "it ran"
    change(saved, **{name: {"model_name": Call(os.system, f"touch '{marker}'")}})
    with pytest.raises(RefusedObjectError, match=r"names \w+\.system, .* scvi-tools"):
        read_scvi(saved)
    assert not marker.exists()
    torch.load(saved / "model.pt", weights_only=False)
    assert marker.exists()  # so the file does run code when unpickled


def test_functions_of_numpy_and_pandas_are_not_called(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    write = Call(np.savetxt, str(marker), [1.0])
    change(saved, history_={"x": write, "y": Call(pd.read_csv, str(marker))})
    assert read_scvi(saved).is_trained
    assert not marker.exists()
    change(saved, history_=None, init_params_={"non_kwargs": write, "kwargs": {}})
    marker.unlink()  # `change` is a careless reader
    with pytest.raises(ValueError, match=r"damaged or incomplete .*numpy.*savetxt"):
        read_scvi(saved)
    assert not marker.exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, torch.load, torch.hub.load])
def test_other_functions_are_refused_by_name(saved: Path, function: Any) -> None:
    change(saved, something_=Call(function, "os"))
    with pytest.raises(RefusedObjectError, match=function.__name__):
        read_scvi(saved)


def test_a_tensor_larger_than_its_record_is_refused(saved: Path) -> None:
    change(saved, something_=torch.zeros(1).expand(10**12))
    with pytest.raises(ValueError, match="larger than its record"):
        read_scvi(saved)


def test_another_model_of_scvi_tools_is_named(external: Any, tmp_path: Path) -> None:
    scvi_model = pytest.importorskip("scvi.model")
    adata = make_adata()
    scvi_model.SCVI.setup_anndata(adata)
    other = scvi_model.SCVI(adata, n_hidden=4)
    other.save(str(tmp_path / "saved"))
    for source in (other, tmp_path / "saved"):
        with pytest.raises(ValueError, match="is a SCVI of scvi-tools; only its ContrastiveVI"):
            read_scvi(source)


def test_what_is_no_model_is_named(saved: Path) -> None:
    with pytest.raises(TypeError, match=r"not a anndata\.\S*AnnData"):
        read_scvi(make_adata())
    with pytest.raises(TypeError, match=r"not a pyro_contrastive\.\S*ContrastiveVI"):
        read_scvi(convert(saved))


def test_models_with_a_prefix_are_found(external: Any, tmp_path: Path) -> None:
    reference = make_scvi(external, make_adata())
    reference.save(str(tmp_path), prefix="first_", overwrite=True)
    check_same_latents(reference, convert(tmp_path, make_adata()))
    reference.save(str(tmp_path), prefix="second_", overwrite=True)
    with pytest.raises(ValueError, match=r"several models \(first_model.pt, second_model.pt\)"):
        read_scvi(tmp_path)
    check_same_latents(reference, convert(tmp_path / "second_model.pt", make_adata()))


def test_a_missing_file_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_scvi(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no model\.pt"):
        read_scvi(tmp_path)
    convert(saved).save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"use ContrastiveVI\.load"):
        read_scvi(tmp_path / "ours")


def test_a_damaged_file_is_said_to_be_damaged(saved: Path) -> None:
    file = saved / "model.pt"
    content = file.read_bytes()
    for damaged in (b"", b"text", content[:-100], content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            read_scvi(saved)
    for pickled in (b"\x80\x02}q\x00(X", b"\x80\x02}r\xff\xff\xff\x7f."):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model/data.pkl", pickled)
        with pytest.raises(ValueError, match="is damaged"):
            read_scvi(saved)
    torch.save({"weights": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="lacks model_state_dict"):
        read_scvi(saved)


def test_a_compressed_file_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + b"N" * 10**6)
    with pytest.raises(ValueError, match="is compressed"):
        read_scvi(saved)


def test_settings_of_another_model_are_named(saved: Path) -> None:
    change(saved, init_params_={"non_kwargs": {"n_hidden": 7, "n_heads": 2}, "kwargs": {}})
    with pytest.raises(ValueError, match=r"does not have .*n_heads"):
        read_scvi(saved)
    change(saved, init_params_={"non_kwargs": {"n_hidden": 7}, "kwargs": {}})
    with pytest.raises(ValueError, match=r"incomplete .*n_background_latent"):
        read_scvi(saved)


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    settings = SIZES | {
        "n_layers": 1,
        "dropout_rate": 0.1,
        "use_observed_lib_size": True,
        "wasserstein_penalty": 0,
    }
    change(saved, init_params_={"non_kwargs": settings | {"n_hidden": 8}, "kwargs": {}})
    with pytest.raises(ValueError, match="do not fit"):
        convert(saved)
