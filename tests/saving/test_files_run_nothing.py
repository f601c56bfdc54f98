"""No file makes the process run, import or read anything that is not in it."""

from __future__ import annotations

import inspect
import itertools
import json
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_files import as_format_1, edit_config

import pyro_contrastive
from pyro_contrastive import MMD, ContrastiveVI, FixedPrior, InvalidFileError
from pyro_contrastive.components.component import Component
from pyro_contrastive.components.library_parts import PART_KINDS, library_parts
from pyro_contrastive.data.files import read_h5ad, read_zarr
from pyro_contrastive.priors.fixed import FIXED
from pyro_contrastive.saving import saved_config
from pyro_contrastive.testing import SimulationSettings, simulate


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Make a small saved model, with its data."""
    adata = simulate(SimulationSettings(n_background=12, n_target=12, n_genes=6, mean_total=60))
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    model = ContrastiveVI(
        adata, n_hidden=4, n_background_latent=2, n_salient_latent=2, penalties=[MMD()]
    )
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, save_anndata=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """Copy it, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def name_part(folder: Path, keyword: str, name: str, arguments: Any = None) -> None:
    """Write another class, and arguments, into the configuration."""

    def rename(config: dict[str, Any]) -> None:
        spec: Any = {"class": name, "arguments": arguments or {}}
        config["components"][keyword] = [spec] if keyword == "penalties" else spec

    edit_config(folder, rename)


# What a configuration can name

FOREIGN = [
    "os:system",
    "builtins:eval",
    "helper:ZINB",
    "kang_model.helper:ZINB",
    "pyro_contrastive:os",
    "pyro_contrastive:ContrastiveVI",
    "pyro_contrastive:Component",
    "pyro_contrastive:Likelihood",
    "pyro_contrastive:__loader__",
    "pyro_contrastive.likelihoods:NegativeBinomial.__init__",
    "pyro_contrastive:likelihoods.NegativeBinomial",
    "pyro_contrastive:os:NegativeBinomial",
    "pyro_contrastive_helper:NegativeBinomial",
    "pyro_contrastive/../helper:NegativeBinomial",
    "__main__:NegativeBinomial",
    ":NegativeBinomial",
    "NegativeBinomial",
    "pyro_contrastive:N\u0435gativeBinomial",  # a Cyrillic e
    "pyro_contrastive:NegativeBinomial\x1b[2K",
    "pyro_contrastive:",
    "",
]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("keyword", ["likelihood", "salient_prior", "penalties"])
def test_what_is_not_the_librarys_own_is_refused(folder, keyword, name):
    name_part(folder, keyword, name, {"command": "touch /tmp/ran"})
    with pytest.raises(
        ValueError, match=r"not a part of pyro_contrastive\. .*Pass your own"
    ) as caught:
        ContrastiveVI.load(folder)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_a_module_next_to_the_configuration_is_not_imported(folder, tmp_path, monkeypatch):
    helper = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass ZINB: ...\n"
    (folder / "helper.py").write_text(helper)
    name_part(folder, "likelihood", "model.helper:ZINB")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"ZINB \(from module 'model.helper'\) is not a part"):
        ContrastiveVI.load("model")
    assert not (tmp_path / "ran").exists()
    __import__("model.helper")  # it could have been
    assert (tmp_path / "ran").exists()
    monkeypatch.delitem(sys.modules, "model.helper")
    monkeypatch.delitem(sys.modules, "model")


@pytest.mark.parametrize(
    "name",
    [
        "pyro_contrastive.likelihoods:NegativeBinomial",
        "pyro_contrastive.likelihoods.negative_binomial:NegativeBinomial",
        "pyro_contrastive.since_moved:NegativeBinomial",  # nothing is imported for it
    ],
)
def test_files_of_earlier_versions_name_modules_of_the_library(folder, name):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.dropout" not in k},
        folder / "model.safetensors",
    )
    as_format_1(folder)
    name_part(folder, "likelihood", name)
    name_part(folder, "penalties", "pyro_contrastive.penalties.kernels:MMD", {"weight": 2.0})
    loaded = ContrastiveVI.load(folder).module
    assert type(loaded.model.likelihood) is pyro_contrastive.NegativeBinomial
    assert [(type(p), p.weight) for p in loaded.penalties] == [(MMD, 2.0)]
    assert "pyro_contrastive.since_moved" not in sys.modules


LIBRARY = library_parts()
KINDS = {
    "Likelihood": "likelihood",
    "Prior": "salient_prior",
    "ContrastiveGuide": "guide",
    "Penalty": "penalties",
}


@pytest.mark.parametrize(
    ("keyword", "name"),
    [(KINDS[k], n) for k, o in itertools.permutations(LIBRARY, 2) for n in sorted(LIBRARY[o])],
)
def test_a_part_of_the_wrong_kind_is_refused(folder, keyword, name):
    name_part(folder, keyword, f"pyro_contrastive:{name}")
    with pytest.raises(ValueError, match=rf"names {name} for {keyword}, which is a .* is needed"):
        ContrastiveVI.load(folder)


def test_the_parts_that_can_be_named_are_those_of_the_library_and_fixed():
    public = {n: getattr(pyro_contrastive, n) for n in pyro_contrastive.__all__}
    parts = {n for n, v in public.items() if isinstance(v, type) and issubclass(v, Component)}
    for kind, named in LIBRARY.items():
        base = public[kind]
        found = {n for n in parts if issubclass(public[n], base)}
        assert set(named) == (found - {kind} if inspect.isabstract(base) else found)
        for name, cls in named.items():
            assert cls is public[name]
            assert cls.__module__.startswith("pyro_contrastive.")
        with pytest.raises(TypeError, match="does not support item assignment"):
            named["Popen"] = subprocess.Popen
    assert set(PART_KINDS.values()) == set(LIBRARY)


# What a configuration can hold


def reach(config: Any, path: str, value: Any) -> None:
    *way, last = path.split("/")
    for step in way:
        config = config[step]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("components", []),
        ("components/likelihood", "pyro_contrastive:Poisson"),
        ("components/likelihood", []),
        ("components/likelihood", {"class": 3, "arguments": {}}),
        ("components/likelihood", {"class": "pyro_contrastive:Poisson"}),
        ("components/likelihood", {"class": "pyro_contrastive:Poisson", "arguments": [1]}),
        ("components/likelihood", {"class": "pyro_contrastive:Poisson", "arguments": None}),
        ("components/penalties", {"class": "pyro_contrastive:MMD", "arguments": {}}),
        ("components/elbo", {"class": "pyro_contrastive:MMD", "arguments": {}}),
        ("settings", 3),
        ("settings/n_hidden", "8"),
        ("settings/n_hidden", 8.5),
        ("settings/elbo_kwargs", ["num_particles"]),
        ("settings/likelihood", None),
        ("settings/n_input", 8),
        ("elbo", "jit"),
        ("elbo", ["trace"]),
        ("setup", []),
        ("setup/genes", 3),
        ("setup/no_such", 3),
        ("setup/categories", [1]),
        ("setup/categories", {"condition": "control"}),
        ("setup/layer", {"counts": 1}),
        ("setup/batch_key", "nowhere"),
        ("setup/batch_key", ["nowhere"]),
        ("setup/size_factor_unit", float("nan")),
        ("setup/categorical_covariate_keys", "lane"),
        ("conditions", [1]),
        ("conditions", {"data": [], "index": [], "columns": ["code"]}),
        ("is_trained", "yes"),
        ("trained_on", {}),
    ],
)
def test_a_configuration_that_was_not_written_by_save_is_refused(folder, path, value):
    edit_config(folder, lambda config: reach(config, path, value))
    with pytest.raises(ValueError, match=r"config.json is damaged or incomplete \("):
        ContrastiveVI.load(folder)


def test_a_configuration_nested_too_deep_is_refused(folder):
    (folder / "config.json").write_text("[" * 1_000_000)
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        ContrastiveVI.load(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings/elbo_kwargs", {"no_such": 1}),
        ("settings/n_hidden", 0),
    ],
)
def test_settings_that_make_no_model_are_refused(folder, path, value):
    edit_config(folder, lambda config: reach(config, path, value))
    with pytest.raises(ValueError, match=r"No model can be made from the saved settings"):
        ContrastiveVI.load(folder)


def test_arguments_that_do_not_fit_are_refused(folder):
    name_part(folder, "likelihood", "pyro_contrastive:Poisson", {"forward": "os.system"})
    with pytest.raises(ValueError, match=r"Poisson could not be made again .*likelihood=\.\.\."):
        ContrastiveVI.load(folder)


HUGE = 3 * 10**9


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings/n_hidden", HUGE),
        ("settings/n_layers", HUGE),
        ("components/background_prior", ("VampPrior", {"n_input": 6, "n_components": HUGE})),
        ("components/background_prior", ("MixtureOfGaussians", {"n_latent": HUGE})),
        ("components/salient_prior", ("PrivateSalient", {"n_conditions": 2, "n_latent": HUGE})),
        ("components/salient_prior", ("SparseSalient", {"n_latent": HUGE})),
        ("components/salient_prior", ("NormalizingFlowPrior", {"n_latent": 2, "n_flows": HUGE})),
        ("components/salient_prior", ("NormalizingFlowPrior", {"n_latent": 2, "n_hidden": HUGE})),
        ("components/penalties", ("TotalCorrelation", {"n_layers": HUGE})),
        ("components/penalties", ("TotalCorrelation", {"n_hidden": HUGE})),
        ("components/penalties", ("SalientClassifier", {"n_salient_latent": HUGE})),
    ],
)
def test_a_configuration_cannot_ask_for_more_than_was_saved(folder, path, value):
    if isinstance(value, tuple):
        spec: Any = {"class": f"pyro_contrastive:{value[0]}", "arguments": value[1]}
        value = [spec] if path.endswith("penalties") else spec
    edit_config(folder, lambda config: reach(config, path, value))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"far larger than the .* saved|must be at most"):
        ContrastiveVI.load(folder)
    assert time.process_time() - start < 10  # not the hours that it asks for


# Distributions


def univariate() -> dict[str, Any]:
    """Make every distribution of Pyro that a fixed prior takes, by trying numbers for each."""
    values = [torch.tensor(v) for v in (0.5, 1.0, 2.0, 3.0)]
    found: dict[str, Any] = {}
    for name in dir(dist):
        cls = getattr(dist, name)
        constraints = getattr(cls, "arg_constraints", None)
        if not isinstance(cls, type) or not isinstance(constraints, dict):
            continue
        n_first = min(len(constraints), 4)
        for names in (list(constraints)[:n] for n in range(n_first, 0, -1)):
            for chosen in itertools.product(values, repeat=len(names)):
                try:
                    made = cls(**dict(zip(names, chosen, strict=True)))
                    FixedPrior(made, 3)
                except Exception:  # there are many ways not to be made of these numbers
                    continue
                found.setdefault(name, made)
                break
    return found


def test_every_distribution_that_a_fixed_prior_takes_is_made_again(recwarn):
    # Without the list there would be as many: those on the line or its positive half.
    found = univariate()
    assert set(found) == set(FIXED)
    for name, made in found.items():
        written = json.loads(json.dumps(FixedPrior(made, 3).spec()))
        again = FixedPrior.from_arguments(written["arguments"])
        assert type(again._make(**{n: getattr(again, f"_{n}") for n in again._names})) is type(made)
        assert again.arguments() == FixedPrior(made, 3).arguments(), name


def test_the_list_leaves_out_no_distribution(monkeypatch, recwarn):
    class All(dict):
        def __contains__(self, name: object) -> bool:
            return True

    monkeypatch.setattr("pyro_contrastive.priors.fixed.FIXED", All(FIXED))
    assert set(univariate()) == set(FIXED)


@pytest.mark.parametrize(
    "name", ["enable_validation", "torch", "Uniform", "Distribution", "__name__", "torch.Normal"]
)
def test_other_names_of_pyro_are_not_called(folder, name):
    before = dist.is_validation_enabled()
    arguments = {"distribution": name, "parameters": {"is_validate": 0.0}, "n_latent": 2}
    name_part(folder, "salient_prior", "pyro_contrastive:FixedPrior", arguments)
    with pytest.raises(ValueError, match=f"'{name}' is not one of the distributions of a fixed"):
        ContrastiveVI.load(folder)
    assert dist.is_validation_enabled() == before


def test_a_distribution_of_ones_own_is_not_taken_for_pyros():
    class Laplace(torch.distributions.Laplace):
        pass

    with pytest.raises(TypeError, match="Laplace cannot be used directly"):
        FixedPrior(Laplace(0.0, 1.0), 3)
    FixedPrior(torch.distributions.Laplace(0.0, 1.0), 3)


# What files can lead to


def other_file(tmp_path: Path) -> Path:
    path = tmp_path / "private.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.arange(3.0)
    return path


def link(file: h5py.File, other: Path) -> None:
    file["uns/deep/er"] = h5py.ExternalLink(str(other), "/secret")


def storage(file: h5py.File, other: Path) -> None:
    where = [(str(other), 0, 12)]
    file.create_dataset("uns/deep/er", shape=(3,), dtype="f4", external=where)


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(other), "/secret", shape=(3,))
    file.create_virtual_dataset("uns/deep/er", layout)


@pytest.mark.parametrize(
    ("refer", "message"),
    [(link, "external link, to '/secret'"), (storage, "in another file"), (virtual, "virtual")],
)
def test_data_that_lie_in_another_file_are_refused(folder, tmp_path, refer, message):
    other = other_file(tmp_path)
    with h5py.File(folder / "adata.h5ad", "r+") as file:
        file.create_group("uns/deep").attrs.update(
            {"encoding-type": "dict", "encoding-version": "0.1.0"}
        )
        refer(file, other)
    edit_config(folder, lambda config: None)
    message = rf"adata.h5ad: 'uns/deep/er' .*{message}.*private.h5'"
    for read in (ContrastiveVI.load, lambda f: read_h5ad(f / "adata.h5ad")):
        with pytest.raises(ValueError, match=message):
            read(folder)


def test_links_of_an_unknown_kind_are_refused(folder):
    path = folder / "adata.h5ad"
    with h5py.File(path, "r+") as file:
        file["uns/other"] = h5py.ExternalLink("elsewhere.h5", "/secret")
    # h5py makes none: number 64, external links, becomes 65, of those that programs define.
    raw, before = path.read_bytes(), b"\x40\x05other"
    assert raw.count(before) == 1
    path.write_bytes(raw.replace(before, b"\x41\x05other"))
    with pytest.raises(ValueError, match=r"'uns/other' is a link of an unknown kind \(number 65\)"):
        read_h5ad(path)


ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def test_links_within_a_file_are_fine(folder):
    path = folder / "adata.h5ad"
    with h5py.File(path, "r+") as file:
        file["uns/same"] = h5py.SoftLink("/obs/condition")
        file["uns/again"] = file["obs/condition"]
        file["uns/numbers"] = np.arange(3.0)
        file["uns/numbers"].attrs.update(ARRAY)
        layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
        layout[:] = h5py.VirtualSource(".", "/uns/numbers", shape=(3,))
        file.create_virtual_dataset("uns/virtual", layout)
        file["uns/virtual"].attrs.update(ARRAY)
    edit_config(folder, lambda config: None)
    read = read_h5ad(path)
    assert list(read.uns["same"]) == list(read.uns["again"]) == list(read.obs["condition"])
    np.testing.assert_array_equal(read.uns["virtual"], [0.0, 1.0, 2.0])
    assert ContrastiveVI.load(folder).adata.shape == read.shape


def test_a_file_of_many_objects_is_checked_quickly(tmp_path):
    path = tmp_path / "many.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for i in range(20):
            group = file.create_group(f"group{i}")
            for j in range(100):
                group[f"numbers{j}"] = j
        file["group19/last"] = h5py.ExternalLink("other.h5", "/x")
    start = time.process_time()
    with pytest.raises(ValueError, match="'group19/last' is an external link"):
        read_h5ad(path)
    assert time.process_time() - start < 0.5  # 10,000 take half a second


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "adata.h5ad"])
def test_files_of_a_model_that_lie_elsewhere_are_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link to .*elsewhere, outside"):
        ContrastiveVI.load(folder)
    if name == saved_config.CONFIG:
        with pytest.raises(ValueError, match="symbolic link"):
            ContrastiveVI.view_setup_args(folder)


def test_links_to_a_model_and_within_it_are_fine(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (folder / "config.json").rename(folder / "renamed.json")
    (folder / "config.json").symlink_to("renamed.json")
    assert ContrastiveVI.load(tmp_path / "link").adata is not None


def test_data_that_were_not_written_by_anndata_are_named(folder):
    with h5py.File(folder / "adata.h5ad", "r+") as file:
        file["uns/itself"] = file["uns"]  # a circle
    edit_config(folder, lambda config: None)
    with pytest.raises(ValueError, match=r"adata.h5ad is damaged"):
        ContrastiveVI.load(folder)
    (folder / "adata.h5ad").write_text("no data")
    with pytest.raises(ValueError, match=r"adata.h5ad is damaged"):
        ContrastiveVI.load(folder)


def test_sparse_matrices_with_indices_outside_are_refused(folder):
    with h5py.File(folder / "adata.h5ad", "r+") as file:
        file["X/indices"][3] = 10**6  # scipy would write a million places further
    with pytest.raises(InvalidFileError, match=r"adata\.h5ad is damaged: X is not a sparse matrix"):
        read_h5ad(folder / "adata.h5ad")


def test_datasets_that_are_far_larger_than_their_file_are_refused(folder):
    with h5py.File(folder / "adata.h5ad", "r+") as file:
        file.create_dataset("uns/zeros", shape=(10**9,), chunks=(10**6,), dtype="f4")
    with pytest.raises(InvalidFileError, match=r"'uns/zeros' takes 4,000,000,000 bytes in memory"):
        read_h5ad(folder / "adata.h5ad")


# Zarr


@pytest.fixture(scope="module")
def written(saved, tmp_path_factory) -> Path:
    """Write the data of the model as a Zarr folder."""
    pytest.importorskip("zarr")
    path = tmp_path_factory.mktemp("written") / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats that are older than others
        ad.read_h5ad(saved / "adata.h5ad").write_zarr(path)
    return path


@pytest.fixture
def store(written, tmp_path) -> Path:
    """Copy it, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "cells.zarr"))


def test_a_zarr_folder_is_read(store, saved):
    np.testing.assert_array_equal(
        read_zarr(store).X.toarray(), read_h5ad(saved / "adata.h5ad").X.toarray()
    )
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_zarr(store / "nowhere")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_zarr_folder_that_leads_outside_is_refused(store, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir() if kind == "folder" else outside.write_bytes(b"")
    (store / "uns" / "link").symlink_to(outside)
    with pytest.raises(ValueError, match=r"uns/link is a symbolic link to .*outside, outside"):
        read_zarr(store)


class Touch:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("consolidated", [True, False])
def test_pickled_values_of_a_zarr_folder_are_not_read(store, tmp_path, consolidated):
    array = store / "uns" / "evil"
    array.mkdir()
    meta = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": [{"id": "pickle"}],
    }
    name = ".zmetadata" if consolidated else ".zarray"
    written = {"metadata": {"uns/evil/.zarray": meta}} if consolidated else meta
    (array / name).write_text(json.dumps(written))
    (array / "0").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(ValueError, match=rf"{name} has values stored as 'pickle'"):
        read_zarr(store)
    assert not (tmp_path / "ran").exists()


def test_metadata_of_a_zarr_folder_that_are_damaged_are_named(store):
    (store / "uns" / "zarr.json").write_text("[")
    with pytest.raises(ValueError, match=r"uns/zarr.json is damaged"):
        read_zarr(store)


def test_arrays_that_are_far_larger_than_their_folder_are_refused(store):
    (path,) = [p for p in (store / "X" / "indices").iterdir() if "zar" in p.name]
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"shape": [10**10]}))
    with pytest.raises(InvalidFileError, match="speaks of 80,000,000,000 bytes, and there are"):
        read_zarr(store)
