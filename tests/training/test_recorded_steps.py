"""Recorded steps give the same fit as plain ones, or plain steps are taken instead."""

from __future__ import annotations

import importlib
import logging
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from pyro_contrastive import (
    HSIC,
    MMD,
    AdditivePoisson,
    CellBatch,
    ConditionalGuide,
    ContrastiveELBO,
    ContrastiveVI,
    EscapingPerturbation,
    FlowGuide,
    FullCovarianceGuide,
    Gaussian,
    LowRankGuide,
    MixtureOfGaussians,
    NegativeBinomial,
    NormalizingFlowPrior,
    Penalty,
    PerConditionNormal,
    Poisson,
    SalientClassifier,
    ShrinkMeans,
    SparseSalient,
    TotalCorrelation,
    VampPrior,
    ZeroInflatedPoisson,
)
from pyro_contrastive._tools import operators
from pyro_contrastive.data import load_kang
from pyro_contrastive.observed import sparse_rows
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training import steps
from pyro_contrastive.training.finite import NonFiniteLossError
from pyro_contrastive.training.recorder import Recorder

N_STEPS = 4 * 6
"""Number of steps of a run of `trained`."""


@pytest.fixture(autouse=True)
def recorded_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RECORDED_AFTER", 3)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the replayed steps, without those of checks."""
    found: list[int] = []
    original = steps.RecordedStep._replayed
    checking = [False]

    def count(self: steps.RecordedStep, *args: Any) -> Any:
        if not checking[0]:
            found.append(len(args[2]))
        return original(self, *args)

    def check(self: steps.RecordedStep, *args: Any) -> Any:
        checking[0] = True
        try:
            return checked(self, *args)
        finally:
            checking[0] = False

    checked = steps.RecordedStep._checked
    monkeypatch.setattr(steps.RecordedStep, "_replayed", count)
    monkeypatch.setattr(steps.RecordedStep, "_checked", check)
    return found


def trained(
    record: bool,
    make: Callable[[], dict[str, Any]] = dict,
    n_cells: int = 48,
    **train_kwargs: Any,
) -> ContrastiveVI:
    """Train a small model in 6 epochs of 4 steps."""
    adata = simulate(
        SimulationSettings(n_background=n_cells, n_target=n_cells, n_genes=30, mean_total=90)
    )
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    adata.obs["score"] = np.linspace(0, 1, adata.n_obs)
    ContrastiveVI.setup_anndata(
        adata,
        batch_key="donor",
        continuous_covariate_keys=["score"],
        condition_key="condition",
        background="control",
    )
    torch.manual_seed(0)
    sizes = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
    model = ContrastiveVI(adata, **(sizes | make()))
    settings: dict[str, Any] = {"batch_size": 12, "train_size": 1.0, "max_epochs": 6, "seed": 1}
    settings |= {"accelerator": "cpu"} | train_kwargs
    plan = {"record_steps": record} | settings.pop("plan_kwargs", {})
    model.train(plan_kwargs=plan, enable_progress_bar=False, **settings)
    return model


def assert_same(a: ContrastiveVI, b: ContrastiveVI) -> None:
    """Check that weights, buffers and history are equal to the last digit."""
    mine, other = a.module.state_dict(), b.module.state_dict()
    assert mine.keys() == other.keys()
    differ = [name for name in mine if not torch.equal(mine[name], other[name])]
    assert not differ
    assert a.history.keys() == b.history.keys()
    for name, frame in a.history.items():
        np.testing.assert_array_equal(frame, b.history[name], err_msg=name)


MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "default": dict,
    "latent library": lambda: {"use_observed_lib_size": False},
    "several layers": lambda: {"n_layers": 2, "n_layers_decoder": 0},
    "analytic KL": lambda: {"elbo": TraceMeanField_ELBO},
    "particles": lambda: {"elbo_kwargs": {"num_particles": 2}},
    "particles at once": lambda: {"elbo_kwargs": {"num_particles": 3, "vectorize_particles": True}},
    "negative binomial": lambda: {"likelihood": NegativeBinomial()},
    "dispersion by cell": lambda: {"likelihood": NegativeBinomial("gene-cell")},
    "poisson": lambda: {"likelihood": Poisson()},
    "zero-inflated poisson": lambda: {"likelihood": ZeroInflatedPoisson()},
    "gaussian": lambda: {"likelihood": Gaussian(log1p=False)},
    "dispersion prior": lambda: {"dispersion_prior": dist.Gamma(2.0, 1.0)},
    "positive latents": lambda: {
        "background_prior": dist.LogNormal(torch.zeros(3), 1.0).to_event(1)
    },
    "full covariance": lambda: {"guide": FullCovarianceGuide(), "use_observed_lib_size": False},
    "low rank": lambda: {"guide": LowRankGuide(), "elbo": TraceMeanField_ELBO},
    "flow posterior": lambda: {"guide": FlowGuide()},
    "s given z": lambda: {"guide": ConditionalGuide()},
    "mixture": lambda: {"background_prior": MixtureOfGaussians(3, n_components=4)},
    "flow": lambda: {"salient_prior": NormalizingFlowPrior(2)},
    "vamp": lambda: {"background_prior": VampPrior(30, 4, 3)},
    "per condition": lambda: {"salient_prior": PerConditionNormal(2, 2)},
    "sparse salient": lambda: {"salient_prior": SparseSalient(2)},
    "escaping": lambda: {"salient_prior": EscapingPerturbation(2, 2)},
    "penalties": lambda: {
        "wasserstein_penalty": 1,
        "penalties": [MMD(10), HSIC(10), ShrinkMeans([48, 48])],
    },
    "adversary": lambda: {"penalties": [TotalCorrelation(2, 3, 2), SalientClassifier(1, 2)]},
}


# Who looks at values in every step.
PLAIN: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "additive": (
        lambda: {
            "likelihood": AdditivePoisson(),
            "background_prior": dist.Gamma(torch.ones(3), 1.0).to_event(1),
            "salient_prior": dist.Gamma(torch.ones(2), 1.0).to_event(1),
            "n_layers_decoder": 0,
        },
        "a tensor becomes a number .*additive.py",
    ),
}


QUICK = {"default", "latent library", "flow", "penalties", "adversary"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Gaussian is not a distribution of counts")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, make in MODELS.items()
    ],
)
def test_a_recorded_run_is_a_plain_run_to_the_last_digit(make, replayed, caplog) -> None:
    with caplog.at_level(logging.INFO, "pyro_contrastive.training.steps"):
        recorded = trained(True, make)
    assert not caplog.messages
    # 3 plain steps, 1 recorded, 5 checked: the 1st, 2nd, 4th, 8th and 16th since.
    assert len(replayed) == N_STEPS - 3 - 1 - 5
    assert_same(recorded, trained(False, make))


@pytest.mark.parametrize(("make", "why"), PLAIN.values(), ids=PLAIN)
def test_what_cannot_be_recorded_is_trained_in_plain_steps(make, why, replayed, caplog) -> None:
    with caplog.at_level(logging.INFO, "pyro_contrastive.training.steps"):
        model = trained(True, make)
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelname == "INFO"
    assert re.match(f"Training takes plain steps, which are slower: {why}", caplog.messages[0])
    assert not replayed
    assert_same(model, trained(False, make))


@pytest.mark.slow
def test_real_counts_with_compiled_code_are_trained_to_the_last_digit(replayed, caplog) -> None:
    adata = load_kang()[::8].copy()
    models = []
    for record in (True, False):
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        torch.manual_seed(0)
        models.append(ContrastiveVI.from_preset(adata, "separated"))
        plan = {"record_steps": record}
        with caplog.at_level(logging.INFO, "pyro_contrastive.training.steps"):
            models[-1].train(
                batch_size=32, max_epochs=5, plan_kwargs=plan, seed=0, enable_progress_bar=False
            )
    assert not caplog.messages
    assert len(replayed) > 20
    assert_same(*models)


class Odd(Penalty):
    """A user's penalty: `work` is called with it, the draws of z and their mean square."""

    def __init__(self, work: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.n = 0
        self.seen: list[float] = []
        self.moving = torch.tensor(0.0)
        self.register_buffer("n_counted", torch.zeros(()))
        self.rng = np.random.default_rng(0)
        self.frozen = torch.nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        z = guide_trace.nodes["z"]["value"]
        return self.work(self, z, z.square().mean())


def ramp(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    p.n = min(p.n + p.training, 15)
    return size * (3.0 if p.n == 15 else 1.0)


def noted(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    p.seen.append(0.0)
    return size


def replaced(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    p.moving = 0.99999 * p.moving + 0.00001 * size.detach()
    return size * (1 + p.moving)


def data_replaced(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    p.frozen.data = p.frozen.data + 1e-6
    return size * (1 + p.frozen)


def in_numpy(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    return size * float(np.square(z.detach().numpy()).mean() > 0.1)


def as_array(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    return size * len(np.unique(np.asarray(z.detach()).round()))


def generated(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    return size * torch.rand((), generator=torch.Generator().manual_seed(0))


def of_numpy(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    return size * np.random.random()  # noqa: NPY002  # as users do


IN_PYTHON: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str]] = {
    "branch": (lambda p, z, size: size if size > 0.5 else 0 * size, f"a number .*in {__file__}"),
    "numpy": (in_numpy, rf"leaves torch \(.numpy\) in {__file__}"),
    "array": (as_array, r"leaves torch \(.(__array__|numpy)\)"),
    "list": (lambda p, z, size: size * sum(z[0].tolist()), r"leaves torch \(.tolist\)"),
    "print": (lambda p, z, size: (repr(z), size)[1], r"leaves torch \(.__repr__\)"),
    "counter": (ramp, "changes attribute 'n' of Odd"),
    "list of one's own": (noted, "changes attribute 'seen' of Odd"),
    "tensor replaced": (replaced, "changes attribute 'moving' of Odd"),
    "data replaced": (data_replaced, r"leaves torch \(.data = ...\)"),
    "random": (lambda p, z, size: size * p.rng.random(), "changes attribute 'rng' of Odd"),
    "random of numpy": (of_numpy, "changes random numbers of NumPy"),
    "random of python": (
        lambda p, z, size: size * random.random(),
        "changes random numbers of Python",
    ),
    "generator": (generated, "takes a Generator"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("work", "why"), IN_PYTHON.values(), ids=IN_PYTHON)
def test_what_python_does_is_noticed_when_a_step_is_recorded(work, why, replayed, caplog) -> None:
    models = []
    for record in (True, False):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # a penalty changes this state
        with caplog.at_level(logging.INFO, "pyro_contrastive.training.steps"):
            models.append(trained(record, lambda: {"penalties": [Odd(work)]}))
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelname == "INFO"
    assert re.search(why, caplog.messages[0])
    assert not replayed
    assert_same(*models)


def counted(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    p.n_counted.add_(float(p.training))
    return size * 0.1 * p.n_counted


def averaged(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    p.frozen.lerp_(size.detach(), 1e-3)
    p.moving.view(1)[0:].add_(1e-6)  # neither a buffer nor a parameter, and through a view
    return size * (1 + p.frozen + p.moving)


def accumulated(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    total = torch.tensor(0.0)
    total += size.detach()
    total += z.data.mean()
    return size * (1 + total)


def factored(p: Odd, z: Tensor, size: Tensor) -> Tensor:
    z = z - z.mean(0)
    return torch.linalg.cholesky(z.T @ z + torch.eye(3)).diagonal().log().sum()


SEEN_BY_TORCH = {
    "buffer": counted,
    "in place": averaged,
    "accumulated": accumulated,
    "factored": factored,
}


@pytest.mark.parametrize("work", SEEN_BY_TORCH.values(), ids=SEEN_BY_TORCH)
def test_what_torch_sees_is_recorded(work, replayed, caplog) -> None:
    model = trained(True, lambda: {"penalties": [Odd(work)]})
    other = trained(False, lambda: {"penalties": [Odd(work)]})
    assert not caplog.messages
    assert len(replayed) == N_STEPS - 3 - 1 - 5
    assert_same(model, other)
    mine, others = model.module.penalties[0], other.module.penalties[0]
    assert mine.moving == others.moving
    assert mine.n_counted == others.n_counted == (N_STEPS if work is counted else 0)


def test_what_escapes_all_that_is_noticed_by_a_check(replayed, caplog) -> None:
    calls = []

    def work(p: Odd, z: Tensor, size: Tensor) -> Tensor:
        calls.append(p.training)  # a change that no attribute of a module shows
        return size * 0.1 * len(calls)

    trained(True, lambda: {"penalties": [Odd(work)]})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not have the result of the plain one" in caplog.text
    assert "record_steps" in caplog.text
    assert not replayed  # noticed in the first step after the recording, which is a check


def test_a_loss_that_is_not_finite_in_a_replayed_step_is_explained(replayed) -> None:
    def work(p: Odd, z: Tensor, size: Tensor) -> Tensor:
        return size * 0.0 + (20.5 - p.n_counted.add_(float(p.training))).sqrt()

    for record in (True, False):
        replayed.clear()
        with pytest.raises(NonFiniteLossError, match=r"in epoch 5, step 20: .*'odd' of the loss"):
            trained(record, lambda: {"penalties": [Odd(work)]})
        assert bool(replayed) == record


def test_an_error_in_a_replayed_step_is_raised(replayed, caplog) -> None:
    def work(p: Odd, z: Tensor, size: Tensor) -> Tensor:
        definite = 20.5 - p.n_counted.add_(float(p.training))
        return size + 0.0 * torch.linalg.cholesky(definite * torch.eye(2)).sum()

    messages = []
    for record in (True, False):
        with pytest.raises(torch.linalg.LinAlgError) as caught:
            trained(record, lambda: {"penalties": [Odd(work)]})
        messages.append(str(caught.value))
    assert replayed
    assert messages[0] == messages[1]
    assert "a recorded step failed" in caplog.text


def test_numbers_among_the_terms_of_an_objective_are_recorded(replayed, monkeypatch) -> None:
    parts = ContrastiveELBO.parts

    def with_number(self: ContrastiveELBO, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return parts(self, *args, **kwargs) | {"mine": 1.0}

    monkeypatch.setattr(ContrastiveELBO, "parts", with_number)
    model = trained(True)
    assert replayed
    assert (model.history["mine_train"] == 1.0).all(axis=None)


def test_parameters_of_an_optimiser_outside_the_model_are_trained(replayed) -> None:
    extra = {}

    def run(record: bool) -> Tensor:
        shift = torch.nn.Parameter(torch.tensor(1.0))

        def optimiser(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD([*parameters, shift], lr=1e-4)

        def work(p: Odd, z: Tensor, size: Tensor) -> Tensor:
            return (size - extra["shift"]) ** 2

        extra["shift"] = shift
        plan = {"optimizer": "Custom", "optimizer_creator": optimiser}
        trained(record, lambda: {"penalties": [Odd(work)]}, plan_kwargs=plan)
        return shift.detach()

    recorded = run(True)
    assert replayed
    assert recorded == run(False)
    assert recorded != 1.0


def test_a_recording_that_fails_gives_way_to_plain_steps(monkeypatch, caplog) -> None:
    def replay_of(self: Recorder, results: Any) -> Callable[..., Any]:
        def fail(*inputs: Tensor) -> Any:
            msg = "no such luck"
            raise IndexError(msg)

        return fail

    monkeypatch.setattr(Recorder, "replay_of", replay_of)
    model = trained(True)
    assert "a recorded step failed (no such luck)" in caplog.text
    assert len(caplog.messages) == 1
    assert_same(model, trained(False))


def test_each_size_of_mini_batch_has_its_recording(replayed, caplog) -> None:
    # 50 cells of each population are 13, 13, 12 and 12.
    model = trained(True, n_cells=50, batch_size=13)
    assert set(replayed) == {26, 24}
    assert not caplog.messages
    assert_same(model, trained(False, n_cells=50, batch_size=13))


def test_what_is_recorded_is_done_again_with_other_tensors() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    counter = torch.zeros(2)

    def work(x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        weight.grad = None
        counter[1:].add_(1)  # through a view of what was there before
        noise = torch.randn(3) + torch.rand(3).mul_(2)
        unused = x.exp()
        assert unused is not None
        largest, place = (x * weight + noise).sort()
        joined = torch.cat([largest, place.to(x)]).view(2, 3)
        loss = joined.square().sum() * weight.sum()
        loss.backward()
        return loss.detach(), joined[:, 1].detach(), [weight.grad]

    x, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, 0.5, 7.0])
    recorder = Recorder([x])
    with recorder.recording():
        loss, middle, (gradient,) = work(x)
    assert recorder.refusal is None
    replay = recorder.replay_of({"loss": loss, "rest": [middle, gradient, None]})
    torch.manual_seed(1)
    again = replay(other)
    torch.manual_seed(1)
    expected = work(other)
    assert torch.equal(again["loss"], expected[0])
    assert torch.equal(again["rest"][0], expected[1])
    assert torch.equal(again["rest"][1], expected[2][0])
    assert again["rest"][2] is None
    assert counter.tolist() == [0, 3]
    with torch.no_grad():
        weight.mul_(2)  # weights are read when it is replayed
    torch.manual_seed(1)
    assert torch.equal(replay(other)["loss"], (torch.manual_seed(1), work(other))[1][0])


@pytest.mark.parametrize(
    "work",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.int().bincount(),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 1),
        lambda x: x.index_put((x > 1,), torch.tensor(0.0)),
    ],
)
def test_numbers_and_sizes_from_values_are_refused(work: Callable[[Tensor], Any]) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    recorder = Recorder([x])
    with recorder.recording():
        work(x)
    assert recorder.refusal is not None
    assert f"in {__file__}, line" in recorder.refusal


def test_one_tensor_in_two_places_is_refused() -> None:
    x = torch.ones(3)
    assert "one tensor in two places" in str(Recorder([x, x]).refusal)


def test_a_penalty_in_double_precision_is_recorded_to_the_last_digit(replayed) -> None:
    def work(p: Odd, z: Tensor, size: Tensor) -> Tensor:
        return z.double().square().mean()

    model = trained(True, lambda: {"penalties": [Odd(work)]})
    assert replayed
    assert_same(model, trained(False, lambda: {"penalties": [Odd(work)]}))


def test_indices_are_no_masks() -> None:
    x, places = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0])
    recorder = Recorder([x, places])
    with recorder.recording():
        found = x[places] * 2
    assert recorder.refusal is None
    assert recorder.replay_of([found])(x + 1, torch.tensor([1, 1]))[0].tolist() == [6.0, 6.0]


def test_a_module_can_be_reloaded_and_its_operators_with_it() -> None:
    arguments = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 3]), torch.tensor([5.0, 6.0, 7.0])
    before = torch.ops.pyro_contrastive.transpose_rows(*arguments, 2)
    importlib.reload(sparse_rows)
    after = torch.ops.pyro_contrastive.transpose_rows(*arguments, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert before[2].tolist() == [6.0, 5.0, 7.0]
    importlib.reload(operators)
    assert torch.equal(torch.ops.pyro_contrastive.transpose_rows(*arguments, 2)[2], before[2])
