"""What cannot be written again is refused before the training, with the line that mends it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from stand_ins import STUDY, StandInModel, small_cells, tree

from pyro_contrastive.report import folder as folder_module
from pyro_contrastive.report import trial
from pyro_contrastive.report.folder import reserve_folder
from pyro_contrastive.report.inputs import check_columns
from pyro_contrastive.report.results import write_results
from pyro_contrastive.report.study import FitSettings
from pyro_contrastive.report.trial import check_results_can_be_written


def check(data: ad.AnnData, out: Path) -> None:
    model = StandInModel(data.n_obs)
    with reserve_folder(out, STUDY.name, overwrite=False) as folder:
        check_results_can_be_written(model, data, folder, STUDY, n_latents=6)
        assert not list(folder.new.iterdir())


def raw_var(data: ad.AnnData, name: str, values: Any) -> None:
    data.raw = data.copy()
    data.raw.var[name] = values


def raw_varm(data: ad.AnnData, name: str) -> None:
    data.raw = data.copy()
    data.raw.varm[name] = np.ones((data.n_vars, 2))


def column_named_as_index(data: ad.AnnData) -> None:
    data.obs["sample"] = range(data.n_obs)
    data.obs.index.name = "sample"


def two_columns(data: ad.AnnData) -> None:
    data.obs = pd.concat([data.obs, data.obs[["kind"]]], axis=1)


MIXED = [1, "a", None, 2.5, "b"]
FAULTS: dict[str, tuple[Callable[[ad.AnnData], Any], str]] = {
    "reserved": (lambda a: a.obs.insert(0, "_index", 1), "obs['_index']"),
    "mixed": (lambda a: a.var.insert(0, "m", MIXED), "var['m']"),
    "dates": (lambda a: a.obs.insert(0, "day", pd.Timestamp("2020-01-01")), "obs['day']"),
    "categories": (lambda a: a.var.insert(0, "c", pd.Categorical(MIXED)), "var['c']"),
    "number": (lambda a: a.obs.insert(0, 5, 1), "obs[5]"),
    "no name": (lambda a: a.obs.insert(0, "", 1), "obs['']"),
    "no text": (lambda a: a.obs.insert(0, "t", "a\udce9"), "obs['t']"),
    "index": (column_named_as_index, "obs['sample']"),
    "twice": (two_columns, "obs['kind'], the name of several columns,"),
    "raw": (lambda a: raw_var(a, "_index", 1), "raw.var['_index']"),
    "mixed raw": (lambda a: raw_var(a, "m", MIXED), "raw.var['m']"),
    "raw.varm": (lambda a: raw_varm(a, "p/q"), "raw.varm['p/q']"),
    "slash": (lambda a: a.uns.update({"a/b": 1}), "uns['a/b']"),
    "deep": (lambda a: a.uns.update(d={"e": {"f": object(), "g": 1}}), "uns['d']['e']['f']"),
    "key": (lambda a: a.uns.update(d={3: 1}), "uns['d'][3]"),
    "obsm": (lambda a: a.obsm.update({"X/u": np.ones((40, 2))}), "obsm['X/u']"),
    "varm": (lambda a: a.varm.update(o=np.array([MIXED] * 5, dtype=object)), "varm['o']"),
    "obsp": (lambda a: a.obsp.update({"d/e": np.ones((40, 40))}), "obsp['d/e']"),
    "layer": (lambda a: a.layers.update({"a/b": a.X}), "layers['a/b']"),
    "objects": (lambda a: a.layers.update(o=np.array([MIXED] * 40, dtype=object)), "layers['o']"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_element_is_named_with_a_line_that_mends_it(name: str, tmp_path: Path) -> None:
    spoil, label = FAULTS[name]
    data = small_cells()
    spoil(data)
    with pytest.raises(ValueError, match=r"cannot be written to an \.h5ad file") as caught:
        check(data, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"adata.{label} cannot be written")
    line = re.search(r"Fix it in Python, (.*), and save the data", message)
    assert line is not None
    exec(line[1], {"adata": data, "scipy": scipy})
    check(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_of_every_kind_that_can_be_written_pass_and_stay_as_they_are(tmp_path: Path) -> None:
    data = small_cells()
    data.obs["text"] = ["x", "y"] * 20
    data.obs["flag"] = True
    data.layers["sparse"] = scipy.sparse.csc_matrix(data.X)
    data.obsm["frame"] = pd.DataFrame({"a": np.arange(40)}, index=data.obs_names)
    data.varm["PCs"] = np.ones((5, 2))
    data.obsp["distances"] = scipy.sparse.eye(40, format="csr")
    data.uns["log1p"] = {"base": None}
    data.uns["rank"] = {"names": np.array([("a", "b")], dtype=[("0", "O"), ("1", "O")])}
    data.raw = data.copy()
    before = data.copy()
    check(data, tmp_path)
    pd.testing.assert_frame_equal(data.obs, before.obs)
    assert data.obs["text"].dtype == before.obs["text"].dtype
    assert set(data.obsm) == {"frame"}
    np.testing.assert_array_equal(data.X, before.X)


def test_latents_of_another_fit_are_not_overwritten() -> None:
    data = small_cells()
    data.obsm["X_salient"] = np.ones((40, 2))
    with pytest.raises(ValueError, match=r"already has X_salient in obsm.*del adata\.obsm\['X_sal"):
        check_columns(data, STUDY)
    del data.obsm["X_salient"]
    check_columns(data, STUDY)


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def test_too_little_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 3_210_000)
    with pytest.raises(
        OSError, match=r"need about 8\.\d MB, but only 3\.2 MB are free on the disk of"
    ):
        check(small_cells(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_space_is_about_what_the_results_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    n = 3_000
    counts = rng.negative_binomial(1, 0.3, size=(n, 300)).astype(np.float32)
    obs = pd.DataFrame({"arm": np.tile(["ctrl", "drug"], n // 2), "kind": "B"})
    obs.loc[: n // 2, "kind"] = "T"
    obs.index = obs.index.astype(str)
    data = ad.AnnData(counts, obs=obs, layers={"sparse": scipy.sparse.csr_matrix(counts)})
    monkeypatch.setattr(trial, "_PAGE_BYTES", 0)
    disk(monkeypatch, 0)
    with pytest.raises(OSError, match="need about") as caught:
        check(data, tmp_path / "a")
    found = re.search(r"about ([\d.]+) MB", str(caught.value))
    assert found is not None
    model, settings = StandInModel(n), FitSettings()
    write_results(model, data, tmp_path / "b", STUDY, settings=settings, seconds=1, method="pca")
    files = tree(tmp_path / "b")
    written = sum(len(files[name]) for name in ("cells_latents.h5ad", "latents.csv"))
    assert float(found[1]) * 1e6 == pytest.approx(written, rel=0.25)


def test_a_disk_that_is_full_is_not_taken_for_bad_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("Can't write data (errno = 28, error message = 'No space left on device')")

    monkeypatch.setattr(trial, "write_h5ad", fail)
    with pytest.raises(OSError, match="no space is left on the disk of folder"):
        check(small_cells(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
