"""Cells on disk, and reading them in very small pieces."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive.observed import on_disk
from pyro_contrastive.observed.stored_rows import StoredRows
from pyro_contrastive.testing import SimulationSettings, simulate

AT_A_TIME = 16
PER_STEP = 20


def cells(n_background: int = 50, n_target: int = 70, n_genes: int = 12) -> ad.AnnData:
    """Cells of both conditions in no order, in two lanes, of three donors."""
    settings = SimulationSettings(n_background, n_target, n_genes, mean_total=60)
    made = simulate(settings, seed=1)
    made = ad.AnnData(made.X, obs=made.obs[["condition"]])
    made = made[np.random.default_rng(0).permutation(made.n_obs)].copy()
    made.obs_names = [f"cell{i}" for i in range(made.n_obs)]
    made.obs["lane"] = pd.Categorical(np.resize(["a", "b"], made.n_obs))
    made.obs["who"] = pd.Categorical(np.resize(["u", "v", "w"], made.n_obs))
    return made


def read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let few cells be read at a time; return a list to which their numbers will be added."""
    monkeypatch.setattr(on_disk, "MOST_CELLS_AT_A_TIME", AT_A_TIME)
    monkeypatch.setattr(on_disk, "FEWEST_CELLS_AT_A_TIME", AT_A_TIME)
    monkeypatch.setattr(on_disk, "READS_PER_WINDOW", 1)
    monkeypatch.setattr(on_disk, "FEWEST_PER_BLOCK", 2)
    monkeypatch.setattr(on_disk, "FEWEST_BLOCKS", 4)
    monkeypatch.setattr("pyro_contrastive.observed.stored_rows.GAP", 0)
    monkeypatch.setattr("pyro_contrastive.analysis.query.DEFAULT_BATCH_SIZE", PER_STEP)
    seen: list[int] = []
    plain = StoredRows.rows

    def rows(self, cells):
        seen.append(len(cells))
        return plain(self, cells)

    monkeypatch.setattr(StoredRows, "rows", rows)
    return seen


def write(adata: ad.AnnData, path: Path) -> Path:
    """Write a file of the kind that its name says."""
    if path.suffix == ".zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anndata 0.12, that version 3 is not its default
            with ad.settings.override(zarr_write_format=3):
                adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path
