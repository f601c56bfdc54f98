"""Stores that are damaged, or change while they are read, end in clear errors."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from disk_helpers import cells, read_in_pieces, write
from scipy.sparse import csc_matrix, csr_matrix

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive.data import open_on_disk
from pyro_contrastive.observed.stored_rows import StoredRows

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
TRAIN = {
    "max_epochs": 3,
    "batch_size": 6,
    "seed": 0,
    "enable_progress_bar": False,
    "accelerator": "cpu",
    "plan_kwargs": {"record_steps": False},
}


def setup(adata: ad.AnnData) -> None:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")


def model_of(adata: ad.AnnData) -> ContrastiveVI:
    setup(adata)
    settings.seed = 0
    return ContrastiveVI(adata, **SMALL)


def happens_at(monkeypatch: pytest.MonkeyPatch, number: int, what) -> None:
    """Let something happen just before a store is read for the n-th time."""
    plain, calls = StoredRows.rows, []

    def rows(self, some):
        calls.append(None)
        if len(calls) == number:
            what()
        return plain(self, some)

    monkeypatch.setattr(StoredRows, "rows", rows)


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _rewrite(file: Path) -> None:
    other = cells()
    other.X = other.X * 2
    write(other, file.with_name("other.h5ad"))
    os.replace(file.with_name("other.h5ad"), file)


@pytest.mark.parametrize(
    ("suffix", "what", "message"),
    [
        ("h5ad", _truncate, "was changed since it was opened"),
        ("h5ad", _rewrite, "was changed since it was opened"),
        ("h5ad", os.remove, "is not there any more"),
        ("zarr", shutil.rmtree, "is not there any more"),
        ("zarr", lambda f: next((f / "X/data/c").glob("[0-9]*")).unlink(), "was changed since"),
    ],
)
def test_a_store_that_changes_while_it_trains_a_model(tmp_path, monkeypatch, suffix, what, message):
    read_in_pieces(monkeypatch)
    file = write(cells(), tmp_path / f"cells.{suffix}")
    model = model_of(open_on_disk(file))
    n_threads = threading.active_count()
    happens_at(monkeypatch, 10, lambda: what(file))
    with pytest.raises(InvalidFileError, match=message):
        model.train(**TRAIN)
    assert threading.active_count() <= n_threads + ("zarr" in suffix)  # zarr keeps one of its own
    with pytest.raises(InvalidFileError, match=message):
        model.get_latent_representation()


def test_an_interrupted_training_leaves_no_thread(tmp_path, monkeypatch):
    read_in_pieces(monkeypatch)
    model = model_of(open_on_disk(write(cells(), tmp_path / "cells.h5ad")))
    n_threads = threading.active_count()

    def interrupt():
        raise KeyboardInterrupt

    happens_at(monkeypatch, 12, interrupt)
    assert model.train(**TRAIN).interrupted
    assert threading.active_count() == n_threads


def test_missing_chunks_are_not_read_as_zeros(tmp_path):
    file = write(cells(), tmp_path / "cells.zarr")
    next((file / "X/data/c").glob("[0-9]*")).unlink()
    with pytest.raises(InvalidFileError, match="1 of 1 chunks of 'data' are missing"):
        open_on_disk(file)


def test_a_truncated_file_is_not_opened(tmp_path):
    file = write(cells(), tmp_path / "cells.h5ad")
    _truncate(file)
    with pytest.raises((InvalidFileError, OSError)):
        open_on_disk(file)


def _ends(group):
    group["indptr"][3] = 10_000


def _columns(group):
    group["indices"][40] = 4_000


def _long_columns(group):
    """Columns of 64 bits, one of which would be a column of the matrix in 32."""
    indices = group["indices"][:].astype(np.int64)
    indices[40] = 2**32 + 1
    del group["indices"]
    group["indices"] = indices


def _short(group):
    values = group["data"][:-5]
    del group["data"]
    group["data"] = values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_ends, "the ends of its rows do not fit"),
        (_columns, "in columns that it does not have"),
        (_long_columns, "in columns that it does not have"),
        (_short, "the ends of its rows do not fit"),
    ],
)
def test_a_matrix_whose_parts_do_not_fit(tmp_path, damage, message):
    file = write(cells(), tmp_path / "cells.h5ad")
    with h5py.File(file, "a") as root:
        damage(root["X"])
    with pytest.raises(InvalidFileError, match=message):
        setup(open_on_disk(file))


def test_values_that_are_no_counts_are_named_wherever_they_are(tmp_path, monkeypatch):
    read_in_pieces(monkeypatch)
    adata = cells()
    dense = adata.X.toarray()
    dense[101, 4] = 0.5
    adata.X = csr_matrix(dense)
    found = open_on_disk(write(adata, tmp_path / "cells.h5ad"))
    with pytest.warns(UserWarning, match=r"1 of its values are not.*0.5, cell 'cell101', gene '4'"):
        setup(found)
    with pytest.raises(ValueError, match=r"1 not integers.*0.5, cell 'cell101', gene '4'"):
        ContrastiveVI(found, **SMALL)
    dense[101, 4] = np.nan
    adata.X = csr_matrix(dense)
    found = open_on_disk(write(adata, tmp_path / "nan.h5ad"))
    with pytest.raises(ValueError, match=r"missing or infinite.*cell 'cell101', gene '4'"):
        setup(found)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, np.float64])
def test_counts_of_any_type_are_read_as_in_memory(tmp_path, dtype):
    adata = cells()
    file = tmp_path / "cells.h5ad"
    with h5py.File(file, "w") as root:
        ad.io.write_elem(root, "/", ad.AnnData(obs=adata.obs, var=adata.var))
        ad.io.write_elem(root, "X", csr_matrix(adata.X.shape, dtype=np.float32))
        del root["X/data"], root["X/indices"], root["X/indptr"]
        for name in ("indices", "indptr"):
            root["X"][name] = getattr(adata.X, name)
        root["X/data"] = adata.X.data.astype(dtype)
    found = model_of(open_on_disk(file))
    setup(adata)
    np.testing.assert_allclose(
        found.get_latent_representation(),
        found.get_latent_representation(adata),
        rtol=1e-5,
        atol=1e-6,
    )


def test_matrices_that_cannot_be_read_by_cells_say_what_to_do(tmp_path):
    for name, matrix in (("csc", csc_matrix(cells().X)), ("dense", cells().X.toarray())):
        adata = cells()
        adata.X = matrix
        file = write(adata, tmp_path / f"{name}.h5ad")
        with pytest.raises(ValueError, match=r"stored by cells.*csr_matrix\(adata.X\)"):
            open_on_disk(file)
        backed = ad.read_h5ad(file, backed="r")
        with pytest.raises(ValueError, match=r"stored by cells.*to_memory"):
            setup(backed)
        backed.file.close()


def test_stores_of_other_genes_are_not_joined(tmp_path):
    one, other = cells(), cells()
    other.var_names = [*other.var_names[:-1], "another"]
    files = write(one, tmp_path / "one.h5ad"), write(other, tmp_path / "other.zarr")
    with pytest.raises(ValueError, match=r"1 genes are only in the latter, e.g. \['another'\]"):
        open_on_disk(*files)
    moved = write(cells()[:, ::-1].copy(), tmp_path / "moved.h5ad")
    with pytest.raises(ValueError, match="the same genes in another order"):
        open_on_disk(files[0], moved)
    model = model_of(open_on_disk(files[0]))
    with pytest.raises(ValueError, match="lacks 1 of the 12 genes"):
        model.get_latent_representation(open_on_disk(files[1]))


def test_names_that_repeat_between_stores_are_told_apart(tmp_path):
    one = cells(5, 6)
    other = one.copy()
    other.obs["lane"] = other.obs["lane"].cat.rename_categories({"b": "c"})
    other.obs["only here"] = 1
    files = write(one, tmp_path / "one.h5ad"), write(other, tmp_path / "other.h5ad")
    joined = open_on_disk(*files)
    assert joined.obs_names[[0, 11]].tolist() == ["cell0-0", "cell0-1"]
    assert joined.obs["lane"].cat.categories.tolist() == ["a", "b", "c"]
    assert list(joined.obs) == ["condition", "lane", "who"]
    np.testing.assert_array_equal(
        joined.X.to_memory().toarray(), np.concatenate([one.X.toarray(), other.X.toarray()])
    )


def test_query_cells_of_a_backed_file(tmp_path):
    file = write(cells()[:, ::-1].copy(), tmp_path / "cells.h5ad")
    model = model_of(cells())
    backed = ad.read_h5ad(file, backed="r")
    query = model.prepare_query_anndata(backed)
    np.testing.assert_array_equal(query.X.toarray(), cells().X.toarray())
    backed.file.close()


def test_layers_and_missing_places(tmp_path):
    adata = cells()
    adata.layers["counts"], adata.X = adata.X.copy(), np.zeros(adata.shape, dtype=np.float32)
    file = write(adata, tmp_path / "cells.h5ad")
    found = open_on_disk(file, layer="counts")
    np.testing.assert_array_equal(found.X[3:5].toarray(), adata.layers["counts"][3:5].toarray())
    with pytest.raises(KeyError, match=r"no layer 'raw'; the layers are \['counts'\]"):
        open_on_disk(file, layer="raw")
    with pytest.raises(FileNotFoundError, match="no file"):
        open_on_disk(tmp_path / "none.h5ad")
    with pytest.raises(TypeError, match="at least one file"):
        open_on_disk()
