"""A disk that is full costs the file, not the process."""

from __future__ import annotations

import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

from pyro_contrastive._tools.tolerant_file import TolerantFile
from pyro_contrastive.data.files import read_h5ad, write_h5ad


def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (60, 50)).astype(np.float32)))
    adata.obs["kind"] = np.resize(["a", "b"], 60)
    adata.layers["half"] = adata.X.toarray() / 2
    adata.obsm["X_pca"] = rng.normal(size=(60, 3))
    adata.uns["deep"] = {"er": np.arange(3)}
    adata.raw = adata.copy()
    return adata


def fill_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let there be room for so many bytes in every file."""
    write = FileIO.write

    def limited(self: FileIO, data: Any) -> int:
        left = room - self.tell()
        if left <= 0:
            raise OSError(28, "No space left on device")
        return write(self, memoryview(data)[:left])

    monkeypatch.setattr(TolerantFile, "_to_disk", limited)


def n_open() -> int:
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_what_is_written_is_what_anndata_writes(tmp_path, options):
    adata = cells()
    write_h5ad(adata, tmp_path / "ours.h5ad", **options)
    adata.write_h5ad(tmp_path / "theirs.h5ad", **options)
    contents = []
    for name in ("ours", "theirs"):
        with h5py.File(tmp_path / f"{name}.h5ad") as file:
            found: dict[str, Any] = {"/": dict(file.attrs)}
            file.visititems(lambda k, v: found.update({k: (dict(v.attrs), values(v))}))  # noqa: B023
        contents.append(found)
    np.testing.assert_equal(*contents)


def values(item: Any) -> Any:
    return (item[()], item.dtype, item.compression) if isinstance(item, h5py.Dataset) else None


@pytest.mark.parametrize("name", ["X", "raw/X"])
def test_sparse_matrices_can_be_written_as_dense_ones(tmp_path, name):
    adata = cells()
    write_h5ad(adata, tmp_path / "ours.h5ad", as_dense=[name])
    with h5py.File(tmp_path / "ours.h5ad") as file:
        np.testing.assert_array_equal(file[name][()], adata.X.toarray())
        assert isinstance(file["raw/X" if name == "X" else "X"], h5py.Group)
    assert sparse.issparse(adata.X)
    with pytest.raises(ValueError, match="as_dense can name 'X' and 'raw/X'"):
        write_h5ad(adata, tmp_path / "ours.h5ad", as_dense=["layers"])


@pytest.mark.parametrize("room", [0, 100, 3000, 10_000, 25_000])
def test_a_full_disk_is_an_error_and_leaves_nothing_open(tmp_path, monkeypatch, room):
    before = n_open()
    with monkeypatch.context() as patch:
        fill_up(patch, room)
        with pytest.raises(OSError, match="No space left"):
            write_h5ad(cells(), tmp_path / "cells.h5ad", compression="gzip")
    assert n_open() == before
    write_h5ad(cells(), tmp_path / "cells.h5ad", compression="gzip")
    assert read_h5ad(tmp_path / "cells.h5ad").shape == (60, 50)


def test_after_a_failure_everything_can_still_be_read(tmp_path, monkeypatch):
    fill_up(monkeypatch, 70_000)
    rng = np.random.default_rng(0)
    expected = bytearray(200_000)
    with TolerantFile(tmp_path / "file") as file:
        for _ in range(200):
            at, data = int(rng.integers(0, 190_000)), rng.bytes(int(rng.integers(1, 10_000)))
            expected[at : at + len(data)] = data
            file.seek(at)
            assert file.write(data) == len(data)
        for at in (0, 60_000, 65_530, 131_000):
            found = bytearray(9000)
            file.seek(at)
            assert file.readinto(found) == 9000
            assert found == expected[at : at + 9000]
        with pytest.raises(OSError, match="No space left"):
            file.raise_failure()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of the size of files")
def test_the_process_ends_as_usual_after_a_file_that_may_not_grow(tmp_path):
    code = """
import resource, numpy as np, anndata as ad
from pyro_contrastive.data.files import write_h5ad
adata = ad.AnnData(np.random.default_rng(0).poisson(3.0, (2000, 300)).astype("f4"))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    write_h5ad(adata, "cells.h5ad")
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.stdout, done.stderr) == ("27\n", "")
