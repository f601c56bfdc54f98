"""Files of other kinds than .h5ad are read, or named with a line that turns them into one."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from stand_ins import STUDY, small_cells

from pyro_contrastive.report import inputs
from pyro_contrastive.report.inputs import check_columns, read_counts


def hdf5(*groups: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for group in groups:
                file.create_group(group)

    return make


def text(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data) and None


def folder(*files: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in files:
            (path / name).touch()

    return make


def cut_short(path: Path) -> None:
    small_cells().write_h5ad(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zipped(path: Path) -> None:
    plain = path.with_name("plain")
    small_cells().write_h5ad(plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def without_index(path: Path) -> None:
    small_cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]


RDS = gzip.compress(b"X\n\x00\x00\x00\x03")
KINDS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "x.loom": (hdf5("matrix", "row_attrs", "col_attrs"), ["a loom file", "read_loom("]),
    "x.h5seurat": (hdf5("assays/RNA", "meta.data"), ["an h5Seurat file", "SeuratDisk::Convert("]),
    "x.h5mu": (hdf5("mod/rna", "mod/adt", "obs", "var"), ["MuData", "adt, rna", '.mod["adt"]']),
    "molecules.h5": (hdf5("umi", "barcode_idx"), ["molecule_info", "filtered_feature_bc_matrix"]),
    "other.h5": (hdf5("a", "b"), ["without obs and var (available: a, b)"]),
    "misnamed.h5ad": (hdf5("matrix", "row_attrs", "col_attrs"), ["a loom file"]),
    "cut.h5ad": (cut_short, ["damaged or truncated", "download it again"]),
    "no_index.h5ad": (without_index, ["cannot be read as an .h5ad file", "damaged"]),
    "empty.h5ad": (text(b""), ["is empty"]),
    "zipped.h5ad.gz": (zipped, ["gzip", "gunzip"]),
    "x.csv": (text("cell,a,b\n1,2,3\n"), ["a text file", "read_csv("]),
    "x.tsv": (text("cell\ta\tb\n1\t2\t3\n"), ["a text file", "read_text("]),
    "x.csv.gz": (text(gzip.compress(b"cell,a\n1,2\n" * 99)), ["a text file", "read_csv("]),
    "text.h5ad": (text("not counts"), ["a text file, not an .h5ad file"]),
    "page.h5ad": (text("<!DOCTYPE html><html>"), ["a web page"]),
    "lfs.h5ad": (text("version https://git-lfs.github.com/spec/v1\n"), ["git lfs pull"]),
    "noise.h5ad": (text(os.urandom(8) + b"\xff\x00" * 99), ["an unknown kind", "damaged"]),
    "x.rds": (text(RDS), ["an R object", "writeH5AD("]),
    "matrix.mtx": (text("%%MatrixMarket matrix\n"), ["(.mtx)", "read_10x_mtx("]),
    "matrix.mtx.gz": (text(gzip.compress(b"%%MatrixMarket matrix\n")), ["(.mtx)"]),
    "x.zip": (text(b"PK\x03\x04"), ["a zip archive"]),
    "x.pkl": (text(b"\x80\x04\x95"), ["a pickle"]),
    "tenx": (folder("matrix.mtx.gz", "barcodes.tsv.gz"), ["10x matrix", "read_10x_mtx("]),
    "model": (folder("config.json", "model.safetensors"), ["a saved model"]),
    "files": (folder("a.h5ad", "notes"), ["a folder", "It contains: a.h5ad"]),
    "folder.h5ad": (folder(), ["a folder", "zarr store"]),
    "mudata.zarr": (folder("zarr.json", "mod"), ["MuData", "read_zarr("]),
    "spatial.zarr": (folder(".zgroup", "tables"), ["without obs and var", "tables"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_are_named(name: str, tmp_path: Path) -> None:
    make, hints = KINDS[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_counts(path)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    for hint in hints:
        assert hint in message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_cells().write_h5ad(tmp_path / "x.h5ad")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "x.h5ad")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"Permission denied: 'x\.h5ad'"):
        read_counts(tmp_path / "x.h5ad")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_counts(tmp_path / "y.h5ad")


def test_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "x.h5ad"
    small_cells().write_h5ad(path)
    write = "import h5py, sys, time; f = h5py.File(sys.argv[1], 'a'); print(flush=True); input()"
    command = [sys.executable, "-c", write, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match="is open for writing in another program"):
            read_counts(path)
        other.communicate(b"\n")


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_cells().write_h5ad(tmp_path / "x.h5ad")

    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ad, "read_h5ad", fail)
    with pytest.raises(ValueError, match="not enough memory to read"):
        read_counts(tmp_path / "x.h5ad")


@pytest.mark.parametrize("name", ["x.zarr", "x.h5ad"])
def test_a_zarr_store_is_read_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr's formats
        small_cells().write_zarr(tmp_path / name)
        data = read_counts(tmp_path / name)
    np.testing.assert_array_equal(data.X, small_cells().X)
    assert data.obs["arm"].astype(str).tolist() == small_cells().obs["arm"].tolist()


def test_a_zarr_store_without_the_package_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "x.zarr"
    store.mkdir()
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    (store / ".zattrs").write_text('{"encoding-type": "anndata"}')
    for part in ("obs", "var"):
        (store / part).mkdir()
        (store / part / ".zgroup").write_text('{"zarr_format": 2}')
    monkeypatch.setattr(inputs, "find_spec", lambda name: None if name == "zarr" else True)
    with pytest.raises(ValueError, match="pip install zarr"):
        read_counts(store)


def tenx(path: Path) -> np.ndarray:
    """Write Cell Ranger's format of 3 cells and 2 genes; returns the counts."""
    counts = np.array([[1, 0], [2, 3], [0, 4]], dtype=np.int32)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["data"], matrix["indices"] = np.array([1, 2, 3, 4], np.int32), [0, 0, 1, 1]
        matrix["indptr"], matrix["shape"] = [0, 1, 3, 4], [2, 3]
        matrix["barcodes"] = np.array([b"AA-1", b"CC-1", b"GG-1"])
        features = matrix.create_group("features")
        for name, values in {"id": [b"E1", b"E2"], "name": [b"g1", b"g2"]}.items():
            features[name] = np.array(values)
        features["feature_type"] = np.array([b"Gene Expression"] * 2)
        features["genome"] = np.array([b"hg38"] * 2)
    return counts


def test_a_10x_file_is_read_and_its_missing_conditions_are_explained(tmp_path: Path) -> None:
    pytest.importorskip("scanpy")
    counts = tenx(tmp_path / "x.h5")
    data = read_counts(tmp_path / "x.h5")
    np.testing.assert_array_equal(data.X.toarray(), counts)
    with pytest.raises(
        ValueError, match=r"obs, which has no columns.*adata\.obs\['arm'\] = .*save"
    ):
        check_columns(data, STUDY)


@pytest.mark.parametrize("groups", [["matrix"], ["matrix", "droplet_latents"]])
def test_10x_files_without_scanpy(
    groups: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hdf5(*groups)(tmp_path / "x.h5")
    kind = "CellBender" if len(groups) > 1 else "10x"
    with pytest.raises(ValueError, match=f"cannot be read as a {kind} .h5 file"):
        read_counts(tmp_path / "x.h5")  # there are no counts in it
    monkeypatch.setattr(inputs, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"a {kind} \.h5 file, which scanpy reads: pip install"):
        read_counts(tmp_path / "x.h5")


def test_a_file_that_refers_to_another_one_is_refused_unread(tmp_path):
    path, other = tmp_path / "in.h5ad", tmp_path / "other.h5ad"
    small_cells().write_h5ad(path)
    small_cells().write_h5ad(other)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink(str(other), "/X")
    with pytest.raises(ValueError, match="'X' is an external link") as error:
        read_counts(path)
    assert "damaged" not in str(error.value)
