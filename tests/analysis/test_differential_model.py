"""Differential expression of a model: what is decoded, and what a fitted one finds."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.special import expit

from pyro_contrastive import ContrastiveVAE, ContrastiveVI
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.differential import differential_expression, draw_scales
from pyro_contrastive.analysis.differential_groups import group_pairs, with_targets
from pyro_contrastive.analysis.differential_settings import DifferentialSettings, batches_to_decode
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.testing import SimulationSettings, simulate

TEN_DRAWS = DifferentialSettings(n_samples_overall=10)
CERTAIN = {"n_hidden": 32, "n_background_latent": 2, "n_salient_latent": 2}


def certain_vae(**kwargs: object) -> ContrastiveVAE:
    """Make a model with next to no posterior variance, and a salient latent far from 0."""
    vae = ContrastiveVAE(4, **(CERTAIN | kwargs)).eval()
    for encoder in (vae.guide.z_encoder, vae.guide.s_encoder):
        torch.nn.init.constant_(encoder.log_variance.bias, -20.0)
        torch.nn.init.zeros_(encoder.log_variance.weight)
    torch.nn.init.normal_(vae.guide.z_encoder.mean.weight, std=2.0)
    torch.nn.init.constant_(vae.guide.s_encoder.mean.bias, 3.0)
    torch.nn.init.normal_(vae.model.likelihood.layers["scale"].weight, std=0.2)
    return vae


def decoded(vae: ContrastiveVAE, data: CellData, cell: int, salient: float) -> np.ndarray:
    """Decode the posterior means of a cell, the salient one multiplied by 0 or 1."""
    batch = data.cells(np.array([cell]))
    with torch.no_grad():
        moments = vae.guide.encode(batch)
        heads = vae.model.decode(moments["z"][0], salient * moments["s"][0], batch)
    return heads["scale"][0].numpy()


@pytest.fixture
def counts() -> CellData:
    x = np.random.default_rng(0).poisson(4, (6, 4)).astype(np.float32)
    return CellData(sp.csr_matrix(x), condition=np.array([0, 0, 0, 1, 1, 2]))


def test_in_a_mixed_group_each_cell_is_decoded_by_its_own_condition(counts):
    vae = certain_vae()
    background, target = decoded(vae, counts, 0, 0.0), decoded(vae, counts, 3, 1.0)
    others = decoded(vae, counts, 0, 1.0), decoded(vae, counts, 3, 0.0)
    assert min(abs(a - b).max() for a in (background, target) for b in others) > 0.03
    rng = np.random.default_rng(0)
    draws = draw_scales(Query(vae, counts, np.array([0, 3])), [], TEN_DRAWS, rng)

    def rows_like(scale: np.ndarray) -> int:
        return int((abs(draws - scale).max(axis=1) < 0.01).sum())

    assert min(rows_like(background), rows_like(target)) > 0
    assert rows_like(background) + rows_like(target) == len(draws)
    assert [rows_like(scale) for scale in others] == [0, 0]


def test_the_mean_of_the_counts_is_compared_on_request(counts):
    """Dropout included: scale times the probability that a zero is not structural."""
    vae = certain_vae()
    torch.nn.init.normal_(vae.model.likelihood.layers["dropout"].weight)
    batch = counts.cells(np.array([3]))
    with torch.no_grad():
        moments = vae.guide.encode(batch)
        heads = vae.model.decode(moments["z"][0], moments["s"][0], batch)
    kept = expit(-heads["dropout"][0].double().numpy())
    assert kept.max() - kept.min() > 0.1
    settings = DifferentialSettings(n_samples_overall=10, quantity="mean")
    query = Query(vae, counts, np.array([3]))
    draws = draw_scales(query, [], settings, np.random.default_rng(0))
    expected = np.tile(heads["scale"][0].numpy() * kept, (10, 1))
    np.testing.assert_allclose(draws, expected, atol=0.01)
    with pytest.raises(ValueError, match="quantity must be 'scale' or 'mean', not 'counts'"):
        DifferentialSettings(quantity="counts")


def test_target_idx_overrides_the_condition(counts):
    vae = certain_vae()
    swapped = with_targets(counts, pd.DataFrame(index=range(6)), [0, 1, 2])
    for cell, salient in ((0, 1.0), (3, 0.0)):
        rng = np.random.default_rng(0)
        draws = draw_scales(Query(vae, swapped, np.array([cell])), [], TEN_DRAWS, rng)
        expected = np.tile(decoded(vae, counts, cell, salient), (10, 1))
        np.testing.assert_allclose(draws, expected, atol=0.01)


def test_batch_correction_takes_out_what_only_the_batch_does():
    x = np.random.default_rng(0).poisson(4, (1, 4)).astype(np.float32)
    twice = CellData(  # the same cell, in one batch and in the other
        np.concatenate([x, x]), condition=np.zeros(2, dtype=np.int64), batch=np.array([0, 1])
    )
    vae = certain_vae(n_batch=2)
    # The last inputs of a first layer are the batch: strong in the decoder, off in the encoders.
    for part, strength in (
        (vae.model.decoder, 3.0),
        (vae.guide.z_encoder, 0.0),
        (vae.guide.s_encoder, 0.0),
    ):
        first = next(p for p in part.parameters() if p.shape == (32, 6))
        torch.nn.init.normal_(first[:, 4:], std=strength)
    pairs = group_pairs(pd.DataFrame(index=range(2)), idx1=[0])

    def table(*, correct: bool, **options: object) -> pd.DataFrame:
        batches = batches_to_decode(["p", "q"], batch_correction=correct)
        settings = DifferentialSettings(n_samples_overall=600, **options)
        with seeded(0):
            query = Query(vae, twice, np.arange(2))
            return differential_expression(query, pairs, list("wxyz"), settings, batches=batches)

    raw, corrected = table(correct=False), table(correct=True)
    assert raw["lfc_mean"].abs().max() > 0.2
    assert corrected["lfc_mean"].abs().max() < 0.03
    permuted = table(correct=True, use_permutation=True, m_permutation=3000)
    assert permuted["lfc_mean"].abs().max() < 0.03


@pytest.fixture(scope="module")
def simulated() -> tuple[ad.AnnData, np.ndarray]:
    """Cells, of which the treated have the levels of 6 pairs of genes swapped; true log2 changes.

    Swapped, so that the levels of all other genes stay what they are when normalised.
    """
    sizes = SimulationSettings(
        n_background=200, n_target=200, n_genes=60, effect=0.15, mean_total=5000
    )
    adata = simulate(sizes, seed=1)
    treated = (adata.obs["condition"] == "treated").to_numpy()
    scale = adata.layers["scale"].astype(np.float64)
    by_level = scale.mean(axis=0).argsort()
    pairs = np.concatenate([by_level[10:16], by_level[45:51]])
    scale[np.ix_(treated, pairs)] = scale[np.ix_(treated, np.roll(pairs, 6))]
    rng = np.random.default_rng(0)
    adata.X = sp.csr_matrix(rng.poisson(adata.obs["library"].to_numpy()[:, None] * scale)).astype(
        np.float32
    )
    change = np.log2(scale[treated]).mean(axis=0) - np.log2(scale[~treated]).mean(axis=0)
    adata.obs["donor"] = pd.Categorical(np.resize(["p", "q"], adata.n_obs))
    return adata, change


@pytest.fixture(scope="module")
def fitted(simulated) -> ContrastiveVI:
    adata, _ = simulated
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", batch_key="donor"
    )
    torch.manual_seed(0)
    model = ContrastiveVI(adata, n_hidden=32, n_background_latent=3, n_salient_latent=2)
    model.train(
        max_epochs=60,
        batch_size=32,
        plan_kwargs={"lr": 5e-3, "eps": 1e-8},
        seed=0,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    return model


def compare(model: ContrastiveVI, seed: int | None = 0, **cells: object) -> pd.DataFrame:
    """Run what ContrastiveVI.differential_expression runs."""
    adata = model.adata
    settings = DifferentialSettings(n_samples_overall=1000)
    pairs = group_pairs(adata.obs, **cells)
    data = with_targets(model.setup.extract(adata), adata.obs, None)
    with seeded(seed):
        query = Query(model.module, data, np.arange(len(data)))
        return differential_expression(query, pairs, adata.var_names, settings)


@pytest.mark.slow
def test_known_response_is_found(fitted, simulated):
    adata, truth = simulated
    before = adata.copy()
    table = compare(fitted, groupby="condition", group1="treated", group2="control")
    found = table.loc[adata.var_names]
    assert np.corrcoef(found["lfc_mean"], truth)[0, 1] > 0.8
    response = abs(truth) > 1
    assert response.sum() == 12
    tagged = found["is_de_fdr_0.05"].to_numpy()
    assert tagged[response].mean() > 0.8
    assert tagged[~response].mean() < 0.05
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert adata.uns == before.uns
    assert set(adata.layers) == set(before.layers)


@pytest.mark.slow
def test_controls_do_not_differ_from_controls(fitted, simulated):
    half = np.arange(200) % 4 < 2
    table = compare(fitted, idx1=np.flatnonzero(half), idx2=np.flatnonzero(~half))
    assert table["is_de_fdr_0.05"].sum() <= 1


@pytest.mark.slow
def test_seed_makes_it_reproducible_and_leaves_the_global_state_alone(fitted):
    cells = {"groupby": "condition", "group1": "treated"}
    state = torch.get_rng_state()
    first, again, other = (compare(fitted, seed, **cells) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    pd.testing.assert_frame_equal(first, again)
    assert not first["scale1"].equals(other["scale1"])
    unseeded = compare(fitted, None, **cells)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    pd.testing.assert_frame_equal(compare(fitted, None, **cells), unseeded)
