"""Normalised and counterfactual expression, treatment effects."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import N_GENES, make_vae

from pyro_contrastive import Likelihood, Prior
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.counterfactuals import (
    Intervention,
    counterfactual_expression,
    treatment_effect,
)
from pyro_contrastive.analysis.decoding import decode_cells
from pyro_contrastive.analysis.query import Decoding, Query
from pyro_contrastive.data import CellData

BACKGROUND, TARGET = np.arange(4), np.arange(4, 10)
EVERY = np.arange(10)


@pytest.fixture
def data() -> CellData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (10, N_GENES)).astype(np.float32)
    condition = np.array([0] * 4 + [1] * 3 + [2] * 3)
    return CellData(counts, condition=condition, batch=np.arange(10) % 3)


def ask(vae, data, cells=EVERY, batch_size=None, **decoding) -> Query:
    return Query(vae, data, cells, batch_size, Decoding(**decoding))


def both(vae, data, indices=EVERY, seed=0, **kwargs):
    with seeded(seed):
        return decode_cells(ask(vae, data, indices, **kwargs), salient=(True, False))


def test_scale_is_on_the_simplex_and_rate_times_the_library(data) -> None:
    vae = make_vae(n_batch=3)
    scale, _ = both(vae, data)
    rate, _ = both(vae, data, site="rate")
    assert scale.shape == (10, N_GENES)
    assert scale.sum(1) == pytest.approx(np.ones(10), abs=1e-5)
    assert rate == pytest.approx(scale * data.counts.sum(1, keepdims=True), rel=1e-4)


def test_only_target_cells_have_salient_expression(data) -> None:
    with_s, without_s = both(make_vae(n_batch=3), data)
    assert np.array_equal(with_s[BACKGROUND], without_s[BACKGROUND])
    assert (np.abs(with_s[TARGET] - without_s[TARGET]).max(1) > 1e-4).all()


def test_mixed_selections_and_order_do_not_matter(data) -> None:
    prior_free = {"n_samples": 4000}
    vae = make_vae(n_batch=3)
    mixed, _ = both(vae, data, np.array([8, 0, 5]), **prior_free)
    alone = [both(vae, data, np.array([i]), seed=i, **prior_free)[0][0] for i in (8, 0, 5)]
    assert mixed == pytest.approx(np.stack(alone), abs=0.01)


def test_draws_are_independent_and_their_average_is_returned(data) -> None:
    vae = make_vae(n_batch=3)
    draws, _ = both(vae, data, n_samples=7, average=False)
    mean, _ = both(vae, data, n_samples=7)
    assert draws.shape == (7, 10, N_GENES)
    assert mean == pytest.approx(draws.mean(0), abs=1e-6)
    assert (draws.std(0).max(1) > 1e-5).all()


def test_batches_of_cells_are_joined_along_the_cells(data) -> None:
    vae = make_vae(n_batch=3)
    draws, _ = both(vae, data, n_samples=3, average=False, batch_size=4)
    assert draws.shape == (3, 10, N_GENES)
    assert both(vae, data, batch_size=4)[0].shape == (10, N_GENES)


def test_genes_are_selected(data) -> None:
    vae = make_vae(n_batch=3)
    every, _ = both(vae, data)
    some, _ = both(vae, data, genes=np.array([5, 2]))
    assert np.array_equal(some, every[:, [5, 2]])


def test_other_batches_change_the_decoder_alone_and_are_averaged(data) -> None:
    vae = make_vae(n_batch=3)
    first, second, mean = (both(vae, data, batches=b)[0] for b in ([0], [1], [0, 1]))
    assert np.abs(first - second).max() > 1e-4
    assert mean == pytest.approx((first + second) / 2, abs=1e-6)
    own, _ = both(vae, data)
    assert first[data.batch == 0] == pytest.approx(own[data.batch == 0], abs=1e-6)


def test_a_likelihood_without_scale_says_so(data) -> None:
    class Gaussian(Likelihood):
        heads = ("mean",)

        def forward(self, heads, library):
            return dist.Normal(heads["mean"], 1.0).to_event(1)

    with pytest.raises(ValueError, match="Gaussian has no 'scale'"):
        both(make_vae(likelihood=Gaussian()), data)


def counterfactual(vae, data, condition, seed=0, indices=EVERY, **kwargs):
    with seeded(seed):
        query = ask(vae, data, indices, **kwargs)
        return counterfactual_expression(query, Intervention(condition))


def test_untreated_is_without_the_salient_latent(data) -> None:
    vae = make_vae(n_batch=3)
    _, without = both(vae, data)
    assert np.array_equal(counterfactual(vae, data, 0), without)


def test_a_cell_under_its_own_condition_is_as_it_is(data) -> None:
    vae = make_vae(n_batch=3)
    observed, _ = both(vae, data)
    assert np.array_equal(counterfactual(vae, data, 2)[7:], observed[7:])


def test_a_background_cell_if_treated_draws_its_salient_latent_from_the_prior(data) -> None:
    class PerTreatment(Prior):
        def forward(self, batch):
            mean = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, -5.0]])
            return dist.Normal(mean[batch.condition], 0.001).to_event(1)

    vae = make_vae(n_batch=3, salient_prior=PerTreatment()).eval()
    drawn = counterfactual(vae, data, 1, n_samples=500, indices=BACKGROUND)
    batch = data.cells(BACKGROUND)
    with torch.no_grad():
        mean, variance = vae.guide.encode(batch)["z"]
        z = mean + variance.sqrt() * torch.randn(500, *mean.shape)
        s = torch.full((500, 4, 2), 5.0)
        expected = vae.model.decode(z, s, batch)["scale"].mean(0).numpy()
    assert drawn == pytest.approx(expected, abs=0.02)
    assert (
        np.abs(drawn - counterfactual(vae, data, 2, n_samples=500, indices=BACKGROUND)).max() > 0.05
    )


def test_effects_are_fold_changes_of_the_two_expressions(data) -> None:
    vae = make_vae(n_batch=3)
    with seeded(0):
        effect = treatment_effect(ask(vae, data, n_samples=200), interval=0.9, pseudocount=1e-3)
    given, without = both(vae, data, n_samples=200, average=False)
    change = np.log2(given + 1e-3) - np.log2(without + 1e-3)
    assert effect.mean == pytest.approx(change.mean(0), abs=1e-5)
    ordered = np.sort(change, axis=0)
    assert (effect.lower >= ordered[8] - 1e-6).all()
    assert (effect.lower <= ordered[11] + 1e-6).all()
    assert (effect.upper >= ordered[188] - 1e-6).all()
    assert (effect.upper <= ordered[191] + 1e-6).all()
    assert not effect.mean[BACKGROUND].any()
    assert effect.mean[TARGET].any(1).all()


def test_bad_numbers_are_refused(data) -> None:
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        both(make_vae(n_batch=3), data, n_samples=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        both(make_vae(n_batch=3), data, batch_size=0)
