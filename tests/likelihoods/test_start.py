"""Where parameters start from the data, and that they do so once, from the training cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from pyro_contrastive import (
    AdditivePoisson,
    Bernoulli,
    ContrastiveVI,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Penalty,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from pyro_contrastive.data import CellData, cell_data, load_kang
from pyro_contrastive.likelihoods.gene_summary import (
    LARGEST_INVERSE_DISPERSION,
    SMALLEST_INVERSE_DISPERSION,
    GeneSummary,
)
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training.finite import NonFiniteLossError

N_CELLS, N_GENES = 20_000, 60


def negative_binomial(seed: int = 0) -> tuple[NDArray[Any], ...]:
    """Counts, and the library sizes, shares and inverse dispersions they were drawn with."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(N_GENES, 3.0))
    theta = np.exp(rng.uniform(-1.5, 2.0, N_GENES))
    library = rng.lognormal(7, 0.5, N_CELLS)
    counts = rng.poisson(rng.gamma(theta, library[:, None] * share / theta))
    return counts.astype(np.float32), library.astype(np.float32), share, theta


def summary_of(counts: Any, **kwargs: Any) -> GeneSummary:
    data = CellData(counts, **kwargs)
    return data.gene_summary(np.arange(len(data)))


@pytest.mark.parametrize("is_known", [True, False])
def test_summaries_find_what_negative_binomial_counts_were_drawn_with(is_known: bool) -> None:
    counts, library, share, theta = negative_binomial()
    found = summary_of(sp.csr_matrix(counts), size_factor=library if is_known else None)
    np.testing.assert_allclose(found.share, share, rtol=0.03)
    # Without size factors it is the number of counts, which varies about the size drawn.
    np.testing.assert_allclose(found.inverse_dispersion, theta, rtol=0.15 if is_known else 0.25)


def test_mean_and_variance_are_those_of_numpy_a_part_at_a_time(monkeypatch) -> None:
    counts, *_ = negative_binomial()
    monkeypatch.setattr(cell_data, "AT_A_TIME", 7_001)
    for matrix in (counts, sp.csr_matrix(counts)):
        found = summary_of(matrix)
        np.testing.assert_allclose(found.mean, counts.mean(0, dtype=float), rtol=1e-12)
        np.testing.assert_allclose(found.variance, counts.var(0, dtype=float), rtol=1e-9)
    some = np.array([5, 2, 9])
    few = CellData(counts).gene_summary(some)
    np.testing.assert_allclose(few.mean, counts[some].mean(0), rtol=1e-6)


def test_summaries_of_genes_without_counts_and_of_poisson_counts_are_finite() -> None:
    counts = np.zeros((50, 3), np.float32)
    counts[:, 1] = 4.0  # less spread than a Poisson's
    found = summary_of(sp.csr_matrix(counts))
    assert found.inverse_dispersion[1] == LARGEST_INVERSE_DISPERSION
    assert (found.share > 0).all()
    assert found.share[0] == pytest.approx(0.5 / 201.5)
    nothing = summary_of(sp.csr_matrix(np.zeros((5, 3), np.float32)))
    for values in vars(nothing).values():
        assert np.isfinite(values).all()
    assert (nothing.inverse_dispersion >= SMALLEST_INVERSE_DISPERSION).all()


class Own(Likelihood):
    heads = ("level",)

    def forward(self, heads: Any, library: Any) -> Any:
        raise NotImplementedError


def summary(n_genes: int = 5) -> GeneSummary:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(n_genes))
    return GeneSummary(10 * share, 5 + rng.random(n_genes), share, 1 + rng.random(n_genes))


@pytest.mark.parametrize(
    "likelihood",
    [
        ZeroInflatedNegativeBinomial(),
        NegativeBinomial("gene-batch"),
        NegativeBinomial("gene-cell"),
        Poisson(),
        Bernoulli(),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_scale_and_dispersion_start_where_the_data_are(likelihood: Likelihood) -> None:
    likelihood.build(4, 5, 2)
    weight = likelihood.layers["scale"].weight.detach().clone()
    given = summary()
    likelihood.start_from(given)
    scale = likelihood.layers["scale"].bias.softmax(-1).detach()
    torch.testing.assert_close(scale, torch.tensor(given.share).float())
    assert torch.equal(
        likelihood.layers["scale"].weight, weight
    )  # only the bias starts from the data
    log_theta = torch.tensor(given.inverse_dispersion).log().float()
    table = getattr(likelihood, "log_inverse_dispersion", None)
    if table is not None:
        torch.testing.assert_close(table.detach(), log_theta.expand(table.shape))
    elif "log_inverse_dispersion" in likelihood.layers:
        bias = likelihood.layers["log_inverse_dispersion"].bias.detach()
        torch.testing.assert_close(bias, log_theta)


def test_a_gaussian_starts_at_mean_and_deviation() -> None:
    likelihood, given = Gaussian(), summary()
    likelihood.build(4, 5)
    likelihood.start_from(given)
    torch.testing.assert_close(
        likelihood.layers["mean"].bias.detach(), torch.tensor(given.mean).float()
    )
    deviation = likelihood({"mean": torch.zeros(1, 5)}, torch.ones(1, 1)).stddev
    torch.testing.assert_close(deviation[0], torch.tensor(given.variance).sqrt().float())


class WithoutHeads(Own):
    """Parameters by gene, whatever the decoder says."""

    def build(self, n_hidden: int, n_genes: int, n_batch: int = 1) -> None:
        self.level = torch.nn.Parameter(torch.zeros(n_genes))


@pytest.mark.parametrize("make", [Own, AdditivePoisson, WithoutHeads])
def test_others_start_as_they_did(make: Any) -> None:
    likelihood = make()
    likelihood.build(4, 5)
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    likelihood.start_from(summary())
    assert all(torch.equal(before[n], value) for n, value in likelihood.state_dict().items())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[GeneSummary]:
    """Record with what a likelihood was started."""
    found: list[GeneSummary] = []
    original = Likelihood.start_from

    def start_from(self: Likelihood, given: GeneSummary) -> None:
        found.append(given)
        original(self, given)

    monkeypatch.setattr(Likelihood, "start_from", start_from)
    return found


def small_model(**kwargs: Any) -> ContrastiveVI:
    adata = simulate(SimulationSettings(n_background=60, n_target=70, n_genes=20))
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return ContrastiveVI(adata, n_hidden=8, **kwargs)


def test_the_first_training_starts_from_the_training_cells(started) -> None:
    model = small_model()
    quiet: dict[str, Any] = {"max_epochs": 1, "enable_progress_bar": False, "seed": 0}
    train = np.r_[0:50, 60:120]
    model.train(
        schedule="fast", datasplitter_kwargs={"external_indexing": [train, np.r_[50:60]]}, **quiet
    )
    counts = model.adata.X[train].toarray()
    assert len(started) == 1
    np.testing.assert_allclose(started[0].mean, counts.mean(0), rtol=1e-6)
    model.train(schedule="fast", **quiet)  # goes on from the weights there are
    assert len(started) == 1


class FailsInTheThirdStep(Penalty):
    n_calls = 0

    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> torch.Tensor:
        self.n_calls += self.training
        fails = self.training and self.n_calls == 3
        return guide_trace.nodes["z"]["value"].mean() * (np.inf if fails else 0.0)


def test_after_an_error_training_goes_on_from_what_was_learned(started) -> None:
    model = small_model(penalties=[FailsInTheThirdStep()])
    settings: dict[str, Any] = {"schedule": "fast", "max_epochs": 5, "seed": 0}
    with pytest.raises(NonFiniteLossError, match="epoch 2"):
        model.train(enable_progress_bar=False, **settings)
    model.train(enable_progress_bar=False, **settings)
    assert len(started) == 1


def test_the_reference_schedule_starts_at_random(started) -> None:
    quiet: dict[str, Any] = {"max_epochs": 1, "enable_progress_bar": False, "seed": 0}
    small_model().train(**quiet)
    small_model().train(schedule="fast", plan_kwargs={"start_from_data": False}, **quiet)
    assert not started
    small_model().train(plan_kwargs={"start_from_data": True}, **quiet)
    assert len(started) == 1


def test_a_dispersion_with_a_prior_starts_there_too() -> None:
    prior = torch.distributions.Gamma(2.0, 1.0)
    model = small_model(dispersion_prior=prior)
    model.train(schedule="fast", max_epochs=1, enable_progress_bar=False, seed=0)
    assert np.isfinite(model.history["elbo_train"].to_numpy()).all()


def test_it_saves_the_steps_that_find_the_means() -> None:
    """On the bundled cells, after one epoch: about 1,210 instead of 1,330."""
    adata = load_kang()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    losses = []
    for start in (True, False):
        torch.manual_seed(0)
        model = ContrastiveVI(adata, n_hidden=32)
        plan = {"start_from_data": start}
        model.train(
            schedule="fast", max_epochs=1, plan_kwargs=plan, seed=0, enable_progress_bar=False
        )
        losses.append(float(model.history["elbo_validation"].iloc[-1, 0]))
    assert losses[0] < losses[1] - 80
