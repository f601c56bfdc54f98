"""Cells under a treatment they were never given: whose salient latent they take, and from where."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import N_GENES, make_vae

from pyro_contrastive import MMD, ContrastiveVI
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import counterfactuals as analysis
from pyro_contrastive.analysis.counterfactuals import (
    Intervention,
    counterfactual_expression,
    draw_salient,
)
from pyro_contrastive.analysis.decoding import decode_cells
from pyro_contrastive.analysis.query import Decoding, Query
from pyro_contrastive.data import CellData
from pyro_contrastive.methods import effects as methods

BACKGROUND, DRUG1, DRUG2 = np.arange(4), np.arange(4, 7), np.arange(7, 10)
SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}


@pytest.fixture
def data() -> CellData:
    rng = np.random.default_rng(0)
    rates = np.ones((10, N_GENES))
    rates[DRUG1, :4] = 30
    rates[DRUG2, 4:8] = 30
    counts = rng.poisson(rates).astype(np.float32)
    return CellData(counts, condition=np.repeat([0, 1, 2], [4, 3, 3]))


@pytest.fixture
def vae():
    """A module whose salient latents lie far apart, and change much of what is decoded."""
    made = make_vae().eval()
    with torch.no_grad():
        made.guide.s_encoder.mean.weight.mul_(8)
        made.model.decoder.blocks[0].linear.weight[:, 3:].mul_(3)
    return made


def counterfactual(vae, data, condition, indices, donors, seed=0, **kwargs):
    with seeded(seed):
        query = Query(vae, data, indices, decoding=Decoding(**kwargs))
        return counterfactual_expression(query, Intervention(condition, donors))


@pytest.mark.parametrize("cells", [BACKGROUND, DRUG2])
def test_cells_not_given_a_treatment_take_the_salient_latents_of_cells_that_were(vae, data, cells):
    drawn = counterfactual(vae, data, 1, cells, Query(vae, data, DRUG1), n_samples=6000)
    n = 6000
    with torch.no_grad():
        z_mean, z_variance = vae.guide.encode(data.cells(cells))["z"]
        s_mean, s_variance = vae.guide.encode(data.cells(DRUG1))["s"]
        who = torch.randint(3, (n, len(cells)))
        z = z_mean + z_variance.sqrt() * torch.randn(n, *z_mean.shape)
        s = s_mean[who] + s_variance[who].sqrt() * torch.randn(n, len(cells), 2)
        expected = vae.model.decode(z, s, data.cells(cells))["scale"].mean(0).numpy()
    assert drawn == pytest.approx(expected, abs=0.004)
    from_prior = counterfactual(vae, data, 1, cells, None, n_samples=6000)
    other = counterfactual(vae, data, 2, cells, Query(vae, data, DRUG2), n_samples=6000)
    assert np.abs(from_prior - expected).max() > 0.02
    if cells is BACKGROUND:
        assert np.abs(other - expected).max() > 0.02


def test_every_draw_of_every_cell_has_a_donor_of_its_own(vae, data):
    donors = Query(vae, data, DRUG1)
    with torch.no_grad(), seeded(0):
        s = draw_salient(donors, 50, 20)
        mean, variance = vae.guide.encode(data.cells(DRUG1))["s"]
    assert s.shape == (50, 20, 2)
    distance = ((s.unsqueeze(2) - mean) / variance.sqrt()).square().sum(-1)  # [50, 20, donors]
    nearest = distance.argmin(-1)
    for axis in (0, 1):
        assert (nearest.float().var(axis) > 0).all()
    shares = torch.bincount(nearest.flatten(), minlength=3) / 1000
    assert shares.numpy() == pytest.approx(np.full(3, 1 / 3), abs=0.1)


def test_those_that_were_given_it_and_the_untreated_need_no_donors(vae, data, monkeypatch):
    def refuse(*_):
        raise AssertionError("asked for a donor")

    monkeypatch.setattr(analysis, "draw_salient", refuse)
    donors = Query(vae, data, DRUG1)
    with seeded(0):
        (own,) = decode_cells(Query(vae, data, DRUG1))
    assert np.array_equal(counterfactual(vae, data, 1, DRUG1, donors), own)
    with seeded(0):
        (without,) = decode_cells(Query(vae, data, np.arange(10)), salient=(False,))
    assert np.array_equal(counterfactual(vae, data, 0, np.arange(10), donors), without)
    with pytest.raises(AssertionError, match="asked for a donor"):
        counterfactual(vae, data, 1, BACKGROUND, donors)


def test_seeds(vae, data):
    one, same, other = (
        counterfactual(vae, data, 1, BACKGROUND, Query(vae, data, DRUG1), seed=s) for s in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def two_drugs(n_cells: int = 90, n_genes: int = 12) -> ad.AnnData:
    """The first drug raises genes 0-2 fourfold, the second genes 3-5; the controls neither."""
    rng = np.random.default_rng(0)
    condition = np.repeat(["control", "drug1", "drug2"], n_cells)
    rates = np.full((3 * n_cells, n_genes), 10.0)
    rates[condition == "drug1", :3] *= 4
    rates[condition == "drug2", 3:6] *= 4
    counts = rng.poisson(rates * rng.lognormal(0, 0.2, (3 * n_cells, 1))).astype(np.float32)
    adata = ad.AnnData(counts, obs=pd.DataFrame({"condition": condition}).rename(index=str))
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return adata


@pytest.fixture
def asked(monkeypatch):
    """Record which donors are asked for."""
    made: list[Query | None] = []

    def recorded(query, intervention):
        made.append(intervention.donors)
        return counterfactual_expression(query, intervention)

    monkeypatch.setattr(methods, "counterfactual_expression", recorded)
    return made


def test_donors_are_cells_of_the_treatment_that_trained(asked, tmp_path):
    adata = two_drugs(20)
    model = ContrastiveVI(adata, **SMALL)
    model.train(max_epochs=1, train_size=0.5, enable_progress_bar=False, seed=0)
    model.get_counterfactual_expression("drug2", indices=[0])
    expected = np.intersect1d(model.train_indices, np.arange(40, 60))
    assert 0 < len(expected) < 20
    assert asked[-1].cells.tolist() == expected.tolist()
    model.get_counterfactual_expression("drug2", adata[:20].copy())  # of the model's own data
    assert asked[-1].cells.tolist() == expected.tolist()
    model.get_counterfactual_expression("control")
    assert asked[-1] is None
    model.save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model", adata)
    loaded.get_counterfactual_expression("drug2", indices=[0])
    assert asked[-1].cells.tolist() == expected.tolist()
    waiting = ContrastiveVI.load(tmp_path / "model")
    waiting.get_counterfactual_expression("drug2", adata[::-1].copy(), indices=[0])
    assert asked[-1].cells.tolist() == list(range(20))  # not known which of them trained


def test_a_model_without_data_takes_donors_of_the_data_given(tmp_path, asked):
    adata = two_drugs(10)
    ContrastiveVI(adata, **SMALL).save(tmp_path / "model")
    loaded = ContrastiveVI.load(tmp_path / "model")
    loaded.get_counterfactual_expression("drug1", adata, indices=[0, 1])
    assert asked[-1].cells.tolist() == list(range(10, 20))
    controls = adata[:10].copy()
    with pytest.raises(ValueError, match=r"no cells of 'drug1'.*salient_source='prior'"):
        loaded.get_counterfactual_expression("drug1", controls)
    with pytest.warns(UserWarning, match="the same for every treatment"):
        table = loaded.get_counterfactual_expression("drug1", controls, salient_source="prior")
    assert table.shape == (10, 12)


def test_populations_given_to_train_are_donors_too(asked):
    adata = two_drugs(20)
    ContrastiveVI.setup_anndata(adata)
    model = ContrastiveVI(adata, **SMALL)
    model.train(np.arange(20), np.arange(20, 50), max_epochs=1, enable_progress_bar=False)
    with pytest.warns(UserWarning, match="1 of these cells were neither"):
        model.get_counterfactual_expression(1, indices=[0, 59])
    assert set(asked[-1].cells) <= set(range(20, 50))
    assert len(asked[-1].cells) == 27


@pytest.mark.slow
def test_a_treatment_does_to_others_what_it_did_to_those_that_were_given_it():
    adata = two_drugs()
    model = ContrastiveVI(
        adata, n_hidden=16, n_background_latent=2, wasserstein_penalty=10.0, penalties=[MMD(30.0)]
    )
    plan = {"lr": 5e-3, "eps": 1e-8}
    model.train(max_epochs=60, batch_size=32, plan_kwargs=plan, enable_progress_bar=False, seed=0)

    def change(condition: str, cells: np.ndarray, source: str) -> np.ndarray:
        """Log2 fold change of each gene, as against genes that neither drug changes."""
        given, without = (
            model.get_counterfactual_expression(c, indices=cells, salient_source=source, seed=0)
            for c in (condition, "control")
        )
        log_fold = np.log2(given.mean() / without.mean()).to_numpy()
        return log_fold - log_fold[6:].mean()

    for name, raised, others in (("drug1", [0, 1, 2], [3, 4, 5]), ("drug2", [3, 4, 5], [0, 1, 2])):
        for cells in (np.arange(90), np.arange(90, 270)):  # untreated; of both treatments
            found = change(name, cells, "aggregate_posterior")
            assert found[raised] == pytest.approx(np.full(3, 2.0), abs=0.7)
            assert found[others] == pytest.approx(np.zeros(3), abs=0.5)
        with pytest.warns(UserWarning, match="the same for every treatment"):
            mixed = change(name, np.arange(90), "prior")
        assert mixed[others].min() > 0.5  # the default prior cannot tell the two apart
