"""Training on cells on disk: the same cells, balanced and shuffled, read some at a time."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from disk_helpers import AT_A_TIME, cells, read_in_pieces, write

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.data import load_kang, open_on_disk
from pyro_contrastive.data.disk import counts_on_disk
from pyro_contrastive.training.blocks import BlockBatches
from pyro_contrastive.training.splits import PairedBatches, Population

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
PLAIN = {"plan_kwargs": {"record_steps": False}, **QUIET}


def fit(adata: ad.AnnData, seed: int = 0, **kwargs) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    settings.seed = seed
    model = ContrastiveVI(adata, **SMALL)
    model.train(**{"max_epochs": 2, "seed": seed, "batch_size": 6, **PLAIN, **kwargs})
    return model


@pytest.mark.parametrize("sizes", [(50, 70), (3, 117), (60, 60)])
def test_an_epoch_has_every_cell_of_the_larger_population_once(tmp_path, monkeypatch, sizes):
    read_in_pieces(monkeypatch)
    adata = open_on_disk(write(cells(*sizes), tmp_path / "cells.h5ad"))
    is_target = (adata.obs["condition"] != "control").to_numpy()
    source = counts_on_disk(adata, None)
    population = Population(np.flatnonzero(~is_target), np.flatnonzero(is_target))
    batches = BlockBatches(source, population, 6, np.random.default_rng(0))
    in_memory = PairedBatches(population, 6, np.random.default_rng(0))
    epochs = [list(batches.epoch()) for _ in range(3)]
    expected = [len(step) for step in in_memory.epoch()]
    larger = is_target if sizes[1] >= sizes[0] else ~is_target
    n_smaller = []
    for steps in epochs:
        assert [len(step) for step in steps] == expected
        for step in steps:  # balanced, as far as there are enough
            n_larger = int(larger[step].sum())
            assert len(step) - n_larger == min(n_larger, *sizes)
        of_larger = np.concatenate([step[larger[step]] for step in steps])
        assert sorted(of_larger) == np.flatnonzero(larger).tolist()
        n_smaller += [step[~larger[step]] for step in steps]
    times = np.bincount(np.concatenate(n_smaller), minlength=len(larger))[~larger]
    assert times.max() - times.min() <= 1  # used up before any cell comes again
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))


@pytest.mark.parametrize("share", [(0, 1), (0, 2), (1, 2)], ids=["alone", "first", "second"])
def test_a_window_comes_from_many_blocks_and_blocks_are_read_in_one_piece(
    tmp_path, monkeypatch, share
):
    read_in_pieces(monkeypatch)
    adata = open_on_disk(write(cells(2000, 2000), tmp_path / "cells.h5ad"))
    source = counts_on_disk(adata, None)
    population = Population(np.arange(2000), np.arange(2000, 4000))
    steps = list(BlockBatches(source, population, 4, np.random.default_rng(0), *share).epoch())
    window = np.sort(np.concatenate(steps[:2]))
    pieces = np.split(window, np.flatnonzero(np.diff(window) > 1) + 1)
    assert len(window) == AT_A_TIME
    assert max(map(len, pieces)) >= source.cells_per_block >= 2
    assert len(pieces) >= 4
    # Neighbours do not stay together from one epoch to the next.
    assert len({int(step[0]) // 100 for step in steps}) > 15


@pytest.mark.parametrize("sizes", [(50, 70), (3, 117)])
def test_processes_share_out_the_cells_of_an_epoch(tmp_path, monkeypatch, sizes):
    read_in_pieces(monkeypatch)
    adata = open_on_disk(write(cells(*sizes), tmp_path / "cells.h5ad"))
    is_target = (adata.obs["condition"] != "control").to_numpy()
    source = counts_on_disk(adata, None)
    population = Population(np.flatnonzero(~is_target), np.flatnonzero(is_target))
    n_processes = 2
    samplers = [
        BlockBatches(source, population, 4, np.random.default_rng(0), i, n_processes)
        for i in range(n_processes)
    ]
    for _ in range(3):
        shares = [[step[is_target[step]] for step in each.epoch()] for each in samplers]
        assert len(shares[0]) == len(shares[1]) == samplers[0].steps_per_epoch
        together = np.concatenate([step for share in shares for step in share])
        assert sorted(together) == population.target.tolist()


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_training_reads_few_cells_at_a_time(tmp_path, monkeypatch, suffix):
    read = read_in_pieces(monkeypatch)
    model = fit(open_on_disk(write(cells(), tmp_path / f"cells.{suffix}")))
    assert np.isfinite(model.history["elbo_validation"].to_numpy()).all()
    # The first of the evaluated cells, and those noted for sampling, are at most 1,000 at once.
    noted = len(model.train_indices)
    assert sorted(read)[-2] <= AT_A_TIME
    assert max(read) <= noted


def test_the_same_seed_gives_the_same_fit_and_the_split_of_cells_in_memory(tmp_path, monkeypatch):
    read_in_pieces(monkeypatch)
    file = write(cells(), tmp_path / "cells.h5ad")
    one, other = fit(open_on_disk(file)), fit(open_on_disk(file))
    in_memory = fit(ad.read_h5ad(file))
    for name, value in one.module.state_dict().items():
        np.testing.assert_array_equal(value, other.module.state_dict()[name], err_msg=name)
    np.testing.assert_array_equal(one.train_indices, in_memory.train_indices)
    np.testing.assert_array_equal(one.held_out_indices, in_memory.held_out_indices)


def test_the_fast_schedule_starts_from_the_same_gene_summary(tmp_path, monkeypatch):
    read_in_pieces(monkeypatch)
    file = write(cells(), tmp_path / "cells.zarr")
    data = []
    for adata in (ad.read_zarr(file), open_on_disk(file)):
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        data.append(ContrastiveVI(adata, **SMALL)._data(None))
    some = np.random.default_rng(0).permutation(120)[:90]
    summaries = [each.gene_summary(some) for each in data]
    for name in ("mean", "variance", "share", "inverse_dispersion"):
        one, other = (getattr(summary, name) for summary in summaries)
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.slow
def test_held_out_elbo_is_that_of_cells_in_memory(tmp_path, monkeypatch):
    # Cells are sorted, but too few to show what blocks that are too large would cost: see
    # benchmarks/results/disk.md for that.
    read_in_pieces(monkeypatch)
    monkeypatch.setattr("pyro_contrastive.observed.on_disk.MOST_CELLS_AT_A_TIME", 1_024)
    monkeypatch.setattr("pyro_contrastive.observed.on_disk.FEWEST_CELLS_AT_A_TIME", 1_024)
    monkeypatch.setattr("pyro_contrastive.observed.on_disk.FEWEST_BLOCKS", 256)
    adata = load_kang()
    by_type = adata.obs.sort_values(["cell_type_coarse", "condition"]).index
    file = write(adata[by_type].copy(), tmp_path / "cells.h5ad")
    values = [
        [
            fit(adata, seed, max_epochs=6, batch_size=64).history["elbo_validation"].iloc[-1, 0]
            for seed in range(3)
        ]
        for adata in (ad.read_h5ad(file), open_on_disk(file))
    ]
    spread = np.ptp(values[0]) + np.ptp(values[1])
    assert abs(np.mean(values[0]) - np.mean(values[1])) < spread
