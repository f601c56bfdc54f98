"""Counts are hidden from the encoders in training, and in nothing else."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from every_guide import MADE
from helpers import make_vae
from training_helpers import column, make_adata, make_model, same, train, weights

from pyro_contrastive import CellBatch, ContrastiveVI, Poisson
from pyro_contrastive.data import load_kang
from pyro_contrastive.networks import MoleculeDropout
from pyro_contrastive.observed import sparse_rows
from pyro_contrastive.training import TrainingPlan
from pyro_contrastive.training.hidden_counts import rate_for

N_DRAWS = 40_000


class Roots(Poisson):
    """A likelihood whose encoders see square roots."""

    def encoder_input(self, x):
        return x.sqrt()


def dropout(rate: float) -> MoleculeDropout:
    made = MoleculeDropout()
    made.rate = rate
    return made


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize("count", [1.0, 2.0, 5.0])
def test_a_count_is_hidden_if_all_of_its_molecules_are_lost(rate, count) -> None:
    torch.manual_seed(0)
    counts = torch.full((N_DRAWS,), count)
    found = dropout(rate)(torch.log1p(counts), counts)
    # What is left of the cell by thinning its molecules, drawn by NumPy.
    left = np.random.default_rng(0).binomial(int(count), 1 - rate, N_DRAWS)
    error = 5 * (0.25 / N_DRAWS) ** 0.5
    assert float((found == 0).float().mean()) == pytest.approx((left == 0).mean(), abs=2 * error)
    assert float(found.mean()) == pytest.approx(np.log1p(count), rel=0.05)
    assert len(found.unique()) <= 2


def test_zeros_stay_zero_and_all_is_seen_in_evaluation_or_at_rate_0() -> None:
    values = torch.rand(5, 3)
    assert torch.equal(dropout(0.5)(values * 0, values * 0), values * 0)
    assert dropout(0.0)(values, values) is values
    assert dropout(0.5).eval()(values, values) is values


def observed_dropout(vae) -> list[tuple[bool, float, torch.Tensor, torch.Tensor]]:
    """Note every call: whether it was in training, the rate, the counts and the result."""
    calls = []

    def note(part, given, found):
        calls.append((part.training, part.rate, given[1], found))

    vae.guide.molecule_dropout.register_forward_hook(note)
    return calls


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("kind", MADE)
def test_every_guide_hides_counts_whether_sparse_or_dense(kind, is_sparse) -> None:
    vae = make_vae(guide=MADE[kind]())
    calls = observed_dropout(vae)
    vae.guide.molecule_dropout.rate = 0.5
    x = torch.zeros(64, vae.n_input)
    x[:, :2] = 1.0  # a fifth or less, so that sparse rows are made
    rows = sparse_rows.SparseRows(
        sparse_rows.Compressed.of(sp.csr_matrix(x.numpy()), "cpu", torch.float32), vae.n_input
    )
    batch = CellBatch(condition=torch.arange(64) % 2, x=x, **({"rows": rows} if is_sparse else {}))
    torch.manual_seed(0)
    vae.train()
    vae.guide(batch)
    assert calls
    for _, _, counts, found in calls:
        assert counts.numel() == (128 if is_sparse else x.numel())
        assert 0.3 < float((found[counts > 0] == 0).float().mean()) < 0.7
    calls.clear()
    vae.eval()
    vae.guide(batch)
    assert all(torch.equal(found, torch.log1p(counts)) for _, _, counts, found in calls)


def test_the_rate_grows_with_genes_per_cell() -> None:
    assert rate_for(300, 1200) == pytest.approx(0.5)
    assert rate_for(300, 30_000) == pytest.approx(0.1)
    assert rate_for(2000, 100) == 0.8


@pytest.mark.parametrize(
    ("kwargs", "rate"),
    [
        ({"schedule": "fast"}, (10 / 45) ** 0.5),  # 90 % of 50 cells
        ({"schedule": "fast", "plan_kwargs": {"molecule_dropout": 0.0}}, 0.0),
        ({"plan_kwargs": {"molecule_dropout": 0.25}}, 0.25),
        ({}, 0.0),
    ],
    ids=["fast", "fast, none", "given", "reference"],
)
def test_counts_are_hidden_in_steps_of_training_only(kwargs, rate) -> None:
    model = make_model(make_adata())
    calls = observed_dropout(model.module)
    plan = kwargs.get("plan_kwargs", {}) | {"record_steps": False}
    train(model, 3, **(kwargs | {"plan_kwargs": plan}))
    steps = {called for is_training, called, *_ in calls if is_training}
    # The statistics of batch normalisation are recomputed in training mode, of all counts.
    expected = {rate, 0.0} if kwargs.get("schedule") == "fast" else {rate}
    assert {round(found, 9) for found in steps} == {round(found, 9) for found in expected}
    assert model.module.guide.molecule_dropout.rate == 0
    assert any(not is_training for is_training, *_ in calls)


def test_the_rate_is_put_back_when_training_fails(monkeypatch) -> None:
    model = make_model()
    part = model.module.guide.molecule_dropout
    seen = []

    def fail(*_):
        seen.append(part.rate)
        raise RuntimeError

    monkeypatch.setattr("pyro_contrastive.training.run.Run.train_epoch", fail)
    with pytest.raises(RuntimeError):
        train(model, schedule="fast")
    assert seen[0] > 0
    assert part.rate == 0


def test_the_reference_schedule_draws_no_random_numbers_for_it() -> None:
    adata, found = make_adata(), []
    for plan in (None, {"molecule_dropout": 0.0}):
        torch.manual_seed(0)
        model = make_model(adata)
        train(model, seed=0, plan_kwargs=plan)
        found.append(weights(model))
    assert same(*found)


@pytest.mark.slow
def test_steps_with_hidden_counts_are_recorded(caplog) -> None:
    adata, found = make_adata(), []
    for record in (True, False):
        torch.manual_seed(0)
        model = make_model(adata)
        plan = {"record_steps": record}
        with caplog.at_level(logging.INFO, "pyro_contrastive.training.steps"):
            train(model, 12, schedule="fast", batch_size=8, plan_kwargs=plan, seed=0)
        found.append(column(model, "train_loss_epoch"))
    assert not caplog.messages
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize("rate", [1.0, -0.1, 2, "often", None, float("nan")])
def test_an_impossible_rate_is_refused(rate) -> None:
    with pytest.raises(ValueError, match="molecule_dropout must be 'auto', or from 0 to below 1"):
        TrainingPlan(molecule_dropout=rate)


def test_encoders_that_do_not_see_logs_hide_nothing() -> None:
    model = make_model(likelihood=Roots())
    before = weights(model)
    with pytest.raises(
        ValueError, match=r"molecule_dropout=0\.5 .* ContrastiveGuide of this model"
    ):
        train(model, schedule="fast", plan_kwargs={"molecule_dropout": 0.5})
    assert same(before, weights(model))
    train(model, schedule="fast")
    assert model.is_trained


@pytest.mark.slow
def test_held_out_cells_are_explained_better() -> None:
    adata = load_kang()[::8].copy()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    found = {}
    for rate in (0.0, "auto"):
        torch.manual_seed(0)
        model = ContrastiveVI(adata)
        plan = {"molecule_dropout": rate}
        model.train(schedule="fast", plan_kwargs=plan, seed=0, enable_progress_bar=False)
        found[rate] = column(model, "elbo_validation")[-1]
    assert found["auto"] < found[0.0] - 5
