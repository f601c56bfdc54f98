"""One value per cell: masks and labels whose index is in another order than the cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from ppc_helpers import checked

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.leakage import probe
from pyro_contrastive.analysis.separation import label_mixing, score_labels, score_latents
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.plotting import plot_embedding, plot_pareto_k
from pyro_contrastive.testing import SimulationSettings, simulate

NAMES = pd.Index(["a", "b", "c", "d"])
VALUES = [True, False, False, True]
MASK = pd.Series(VALUES, NAMES)
SHUFFLED = MASK.iloc[[2, 0, 3, 1]]
NUMBERS = pd.Index(["3", "0", "1", "2"])


@pytest.mark.parametrize(
    "given",
    [
        MASK,
        SHUFFLED,
        SHUFFLED.astype("boolean"),
        SHUFFLED.astype(object),
        SHUFFLED.astype("category"),
        MASK.reset_index(drop=True),  # no names: by position
        MASK.set_axis([0, 1, 2, 3]),
        MASK.to_numpy(),
        VALUES,
        pd.array(VALUES, dtype="boolean"),
        pd.Series([0, 3], ["d", "x"]),  # integers are positions, whatever their index
        pd.Series([0, 3], dtype="Int64"),
        np.array([0, 3], dtype=object),
    ],
)
def test_masks_are_aligned_and_positions_are_not(given: Any) -> None:
    assert as_indices(given, NAMES).tolist() == [0, 3]


def test_names_that_are_numbers() -> None:
    by_name = pd.Series(VALUES, [3, 0, 1, 2])
    assert as_indices(by_name, NUMBERS).tolist() == [0, 3]
    assert as_indices(by_name.iloc[[1, 0, 3, 2]], NUMBERS).tolist() == [0, 3]
    in_order = pd.Index(["0", "1", "2", "3"])
    assert as_indices(pd.Series(VALUES), in_order).tolist() == [0, 3]
    # By name or by position? Either is possible, and they are different cells.
    with pytest.raises(ValueError, match="so that it is ambiguous"):
        as_indices(pd.Series(VALUES), NUMBERS)


def test_names_that_repeat() -> None:
    names = pd.Index(["a", "a", "b", "c"])
    assert as_indices(pd.Series(VALUES, names), names).tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"names repeat, e\.g\. 'a'.*to_numpy"):
        as_indices(pd.Series(VALUES, names[::-1]), names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (MASK.set_axis(["a", "b", "c", "x"]), "1 of the 4 cells are not in it, e.g. 'd'"),
        (MASK.set_axis([1, 2, 3, 4]), "4 of the 4 cells are not in it"),
        (MASK.set_axis(pd.MultiIndex.from_product([[0, 1], [0, 1]])), "not in it"),
        (MASK.iloc[:3], r"mask of shape \(3,\)"),
        (MASK.astype("boolean").where(MASK, pd.NA), "missing in 2 cells"),
        (MASK.reindex(["a", "b", "c", "x"]), "missing in 1 cells"),
        (MASK.to_frame("mask"), r"indices is a DataFrame; give one column of it.*\['mask'\]"),
        (sp.csr_matrix(np.array(VALUES)[:, None]), r"sparse matrix of shape \(4, 1\).*ravel"),
        (["a", "d"], r"list of integers.*obs_names\.isin"),
        (pd.Series([0.0, 3.0]), "list of integers"),
    ],
)
def test_what_cannot_be_aligned_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_indices(given, NAMES)


def test_arrays_with_labels_of_their_own_are_refused() -> None:
    class DataArray:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            return np.array(VALUES)

    DataArray.__module__ = "xarray.core.dataarray"
    with pytest.raises(ValueError, match="DataArray, whose labels would be ignored"):
        as_indices(DataArray(), NAMES)


# In methods


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    adata = simulate(SimulationSettings(n_background=15, n_target=15, n_genes=8), seed=0)
    adata.obs_names = [f"c{i}" for i in range(30)]
    adata.obs["type"] = np.resize(["T", "B", "B"], 30)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)


@pytest.fixture
def mask(model: ContrastiveVI) -> pd.Series:
    return model.adata.obs["type"].sample(frac=1, random_state=0) == "T"


@pytest.mark.parametrize(
    "method",
    [
        lambda m, cells: m.get_latent_representation(indices=cells),
        lambda m, cells: m.get_elbo(indices=cells, return_mean=False, seed=0),
        lambda m, cells: m.get_specific_normalized_expression(
            indices_to_return_salient=cells, seed=0, return_numpy=True
        ),
        lambda m, cells: m.differential_expression(
            idx1=cells, idx2=~cells, n_samples_overall=20, seed=0, silent=True
        )["raw_mean1"].sort_index(),
        lambda m, cells: m.differential_expression(
            groupby="type", target_idx=cells, n_samples_overall=20, seed=0, silent=True
        )["lfc_mean"].sort_index(),
    ],
)
def test_methods_take_the_cells_that_are_named(model, mask, method) -> None:
    in_order = model.adata.obs["type"] == "T"
    np.testing.assert_array_equal(method(model, mask), method(model, in_order))


def test_training_takes_the_cells_that_are_named() -> None:
    adata = simulate(SimulationSettings(n_background=15, n_target=15, n_genes=8), seed=0)
    adata.obs_names = [f"c{i}" for i in range(30)]
    ContrastiveVI.setup_anndata(adata)
    model = ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    shuffled = adata.obs["condition"].sample(frac=1, random_state=0)
    held_out = pd.Series(np.arange(30) % 3 == 0, adata.obs_names).sample(frac=1, random_state=1)
    model.train(
        shuffled == "control",
        shuffled != "control",
        max_epochs=1,
        datasplitter_kwargs={"external_indexing": [~held_out, held_out]},
        enable_progress_bar=False,
    )
    told = model._conditions["code"].reindex(adata.obs_names)
    assert (told.to_numpy() == (adata.obs["condition"] != "control").to_numpy()).all()
    assert model.validation_indices.tolist() == list(range(0, 30, 3))
    with pytest.raises(ValueError, match=r"external_indexing\[1\] is a mask of shape \(3,\)"):
        model.train(
            shuffled == "control",
            shuffled != "control",
            datasplitter_kwargs={"external_indexing": [~held_out, held_out[:3]]},
        )


# Labels beside a latent that has names


def latent_and_labels() -> tuple[pd.DataFrame, pd.Series]:
    """Two groups of cells that are far apart; the labels in another order."""
    labels = pd.Series(np.repeat(["x", "y"], 30), [f"c{i}" for i in range(60)], name="label")
    values = (
        np.random.default_rng(0).normal(size=(60, 2)) + 50 * (labels == "y").to_numpy()[:, None]
    )
    return pd.DataFrame(values, labels.index), labels.sample(frac=1, random_state=0)


def test_scores_bring_labels_into_the_order_of_the_latent() -> None:
    latent, labels = latent_and_labels()
    assert score_labels(latent, labels, n_neighbors=10)["NMI"] == 1.0
    assert label_mixing(latent, labels, n_neighbors=10) == 0.0
    assert probe(latent, labels, n_permutations=0)["balanced_accuracy"] == 1.0
    table = score_latents(latent, latent, labels, background_category="x", n_neighbors=10)
    mixing = table.query("measure == 'mixing'")["value"]
    assert mixing.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="labels is a Series whose index is not that"):
        score_labels(latent, labels.add_prefix("other "), n_neighbors=10)
    # Without names on either side, the order is that of the values.
    assert label_mixing(latent.to_numpy(), labels, n_neighbors=10) > 0.5
    assert label_mixing(latent.reset_index(drop=True), labels.sort_index(), n_neighbors=10) > 0


def test_figures_bring_labels_into_the_order_of_the_cells(untouched_matplotlib) -> None:
    latent, labels = latent_and_labels()
    axes = plot_embedding(latent, labels, legend=False)
    drawn = axes.collections[0]
    right = np.asarray(drawn.get_offsets())[:, 0] > 25
    colors = drawn.get_facecolors()
    assert len(np.unique(colors[right], axis=0)) == len(np.unique(colors[~right], axis=0)) == 1
    k = pd.Series(latent[0].to_numpy() / 100, latent.index)
    points = [line for line in plot_pareto_k(k, labels).lines if line.get_marker() == "o"]
    # One group is near 0 and the other near 0.5.
    assert [len(line.get_xdata()) for line in points] == [30, 30]
    assert max(np.ptp(line.get_xdata()) for line in points) < 0.25


def test_groups_of_a_check_are_brought_into_the_order_of_the_cells() -> None:
    names = [f"c{i}" for i in range(20)]
    groups = pd.Series(np.repeat(["few", "many"], 10), names)
    counts = np.repeat([1.0, 9.0], 10)[:, None] + np.zeros((20, 3))
    check = checked(
        counts.astype(np.float32),
        np.repeat(counts[None], 20, axis=0),
        groups={"depth": groups.sample(frac=1, random_state=0)},
        cell_names=names,
        statistics=["mean"],
        seed=0,
    )
    found = check.genes.query("group_by == 'depth'").groupby("group", observed=True)["observed"]
    assert found.mean().to_dict() == {"few": 1.0, "many": 9.0}
