"""``pyro-contrastive fit`` with counts that stay in their file."""

from __future__ import annotations

from io import FileIO

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from disk_helpers import PER_STEP, cells, read_in_pieces, write
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from pyro_contrastive import ContrastiveVI
from pyro_contrastive._tools.tolerant_file import TolerantFile
from pyro_contrastive.cli import app
from pyro_contrastive.data import open_on_disk
from pyro_contrastive.data.files import write_h5ad
from pyro_contrastive.report import inputs
from pyro_contrastive.report.tables import response_table


def test_counts_are_copied_a_few_cells_at_a_time(tmp_path, monkeypatch):
    read = read_in_pieces(monkeypatch)
    adata = cells()
    found = open_on_disk(write(adata, tmp_path / "cells.zarr"))
    found.obsm["X_salient"] = np.zeros((120, 2))
    write_h5ad(found, tmp_path / "copy.h5ad", compression="gzip")
    assert len(read) > 5
    assert max(read) <= PER_STEP
    copy = ad.read_h5ad(tmp_path / "copy.h5ad")
    np.testing.assert_array_equal(copy.X.toarray(), adata.X.toarray())
    pd.testing.assert_frame_equal(copy.obs, adata.obs)
    assert copy.obsm["X_salient"].shape == (120, 2)


@pytest.mark.parametrize("are_counts", [True, False])
def test_the_table_of_the_response_is_that_of_a_matrix_in_memory(tmp_path, monkeypatch, are_counts):
    read_in_pieces(monkeypatch)
    adata = cells()
    if not are_counts:
        adata.X = csr_matrix(np.log1p(adata.X.toarray()))
    is_target = (adata.obs["condition"] != "control").to_numpy()
    found = open_on_disk(write(adata, tmp_path / "cells.h5ad"))
    table = response_table(found, is_target)
    values = pd.DataFrame(adata.X.toarray().astype(float), columns=adata.var_names)
    logs = np.log1p(values.mul(10_000 / values.sum(axis=1), axis=0)) if are_counts else values
    sides = logs[is_target], logs[~is_target]
    error = sum(side.var(ddof=0) / len(side) for side in sides) ** 0.5
    strongest = ((sides[0].mean() - sides[1].mean()) / error).abs().sort_values(ascending=False)
    assert table.index.tolist() == strongest.index[: len(table)].tolist()
    of_target = values[is_target][table.index]
    np.testing.assert_allclose(table.iloc[:, 1], of_target.mean(), rtol=1e-6)
    np.testing.assert_allclose(table["% of target cells"], 100 * (of_target > 0).mean())
    pd.testing.assert_frame_equal(table, response_table(adata, is_target))


def test_large_files_stay_on_disk_and_the_flag_decides(tmp_path, monkeypatch):
    file = write(cells(), tmp_path / "cells.zarr")
    assert isinstance(inputs.read_cells(file)[0].X, csr_matrix)
    monkeypatch.setattr(inputs, "_memory", lambda: 3.0)
    assert not isinstance(inputs.read_cells(file)[0].X, csr_matrix)
    assert isinstance(inputs.read_cells(file, on_disk=False)[0].X, csr_matrix)
    assert inputs._size(file) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_fit_from_disk(tmp_path, monkeypatch, suffix):
    read = read_in_pieces(monkeypatch)
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    file = write(adata, tmp_path / f"cells.{suffix}")
    out = tmp_path / "out"
    arguments = ["fit", str(file), "--out", str(out), "--on-disk", "--layer", "counts"]
    arguments += ["--condition-key", "condition", "--background", "control"]
    arguments += ["--label-key", "lane", "--max-epochs", "3", "--null-shuffles", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for name in ("index.html", "latents.csv", "genes.csv", "scores.csv"):
        assert (out / name).exists(), name
    (written,) = out.glob("*.h5ad")
    copy = ad.read_h5ad(written)
    np.testing.assert_array_equal(copy.X.toarray(), adata.X.toarray())
    model = ContrastiveVI.load(str(out / "model"), adata=copy)
    latent = model.get_latent_representation()
    np.testing.assert_allclose(copy.obsm["X_salient"], latent, rtol=1e-3, atol=1e-4)
    assert np.median(read) <= PER_STEP


def test_a_full_disk_ends_the_copying_of_counts(tmp_path, monkeypatch):
    read = read_in_pieces(monkeypatch)
    found = open_on_disk(write(cells(1000, 1000), tmp_path / "cells.h5ad"))
    write_h5ad(found, tmp_path / "copy.h5ad")
    n_reads = len(read)
    room = (tmp_path / "copy.h5ad").stat().st_size // 2

    def limited(self: TolerantFile, data: memoryview) -> int:
        if self.tell() + len(data) > room:
            raise OSError(28, "No space left on device")
        return FileIO.write(self, data)

    monkeypatch.setattr(TolerantFile, "_to_disk", limited)
    with pytest.raises(OSError, match="No space left"):
        write_h5ad(found, tmp_path / "copy.h5ad")
    assert 0 < len(read) - n_reads < n_reads  # the rest was not read, and not kept in memory


def test_counts_on_disk_are_not_written_as_dense_ones(tmp_path):
    found = open_on_disk(write(cells(), tmp_path / "cells.h5ad"))
    with pytest.raises(ValueError, match="as_dense: counts on disk are written"):
        write_h5ad(found, tmp_path / "copy.h5ad", as_dense=["X"])
