"""Models that are trained and asked in several threads give the results of their seeds."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyro.poutine import runtime
from small_model import make, small_adata

from pyro_contrastive import (
    ContrastiveVI,
    MixtureOfGaussians,
    Penalty,
    one_thread,
    settings,
)

PATIENCE = 60.0
"""Seconds after which a thread counts as blocked."""


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time, each in its thread; return results, or raise what one raised."""
    results: list[Any] = [None] * len(calls)
    errors: list[Exception] = []
    together = threading.Barrier(len(calls))

    def run(position: int) -> None:
        together.wait(PATIENCE)
        try:
            results[position] = calls[position]()
        except Exception as error:  # raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread is blocked"
    if errors:
        raise errors[0]
    return results


def seeded_model(seed: int) -> ContrastiveVI:
    with one_thread():
        settings.seed = seed
        return make(small_adata(), salient_prior=MixtureOfGaussians(2))


def fitted(seed: int) -> ContrastiveVI:
    model = seeded_model(seed)
    model.train(max_epochs=8, seed=seed, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def alone() -> list[ContrastiveVI]:
    """Three models, made and fitted one after the other."""
    return [fitted(seed) for seed in range(3)]


QUESTIONS: list[Callable[[ContrastiveVI], Any]] = [
    lambda m: m.get_normalized_expression(n_samples=20, seed=0)["salient"],
    lambda m: m.get_latent_representation(give_mean=False, seed=1),
    lambda m: m.get_marginal_ll(n_mc_samples=20, return_mean=False, seed=2),
    lambda m: m.differential_expression(groupby="condition", n_samples=20, seed=3, silent=True),
    lambda m: m.posterior_predictive_sample(n_samples=5, batch_size=10, seed=4),
]


def same(a: Any, b: Any) -> bool:
    if hasattr(a, "select_dtypes"):
        a, b = a.select_dtypes("number"), b.select_dtypes("number")
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def test_fits_and_questions_at_the_same_time(alone) -> None:
    expected = [ask(alone[0]) for ask in QUESTIONS]
    found = in_threads(
        *[lambda seed=seed: fitted(seed) for seed in range(3)],
        *[lambda ask=ask: ask(alone[0]) for ask in QUESTIONS],
    )
    for model, one in zip(found[:3], alone, strict=True):
        states = model.module.state_dict(), one.module.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
        assert same(model.history["elbo_train"], one.history["elbo_train"])
    assert all(map(same, found[3:], expected))
    assert not runtime._PYRO_STACK


class AsksOthers(Penalty):
    """Asks another model something in every step that runs its code."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(1.0)
        self._ask = ask

    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> torch.Tensor:
        self._ask()
        return guide_trace.nodes["s"]["value"].square().mean()


def test_a_question_during_training_and_one_from_another_thread(alone) -> None:
    ask = QUESTIONS[0]
    expected, answers, started = ask(alone[0]), [], threading.Event()

    def from_inside() -> None:
        started.set()
        answers.append(ask(alone[0]))

    def from_outside() -> Any:
        assert started.wait(PATIENCE)
        return ask(alone[0])

    model = make(small_adata(), penalties=[AsksOthers(from_inside)])
    result, answer = in_threads(
        lambda: model.train(max_epochs=2, seed=0, enable_progress_bar=False), from_outside
    )
    assert result.n_epochs == 2
    assert all(same(found, expected) for found in (answer, *answers))


def test_replicates_are_streamed_without_blocking_others(alone) -> None:
    parts = alone[0].iterate_posterior_predictive(n_samples=2, batch_size=10, seed=0)
    first = next(parts)
    answers = in_threads(lambda: QUESTIONS[0](alone[0]), lambda: list(parts))
    assert same(answers[0], QUESTIONS[0](alone[0]))
    whole = alone[0].posterior_predictive_sample(n_samples=2, batch_size=10, seed=0)
    assert same(np.concatenate([part.x for part in (first, *answers[1])], axis=1), whole)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: setattr(settings, "seed", 3),
        lambda: MixtureOfGaussians(2),
        lambda: make(small_adata()),
    ],
)
def test_what_draws_waits_for_another_thread(draw, monkeypatch) -> None:
    monkeypatch.setattr(settings, "_seed", None)
    before = torch.get_rng_state()
    thread = threading.Thread(target=draw, daemon=True)
    with one_thread():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert torch.equal(torch.get_rng_state(), before)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not torch.equal(torch.get_rng_state(), before)


FORK = """
import os, threading
from pyro_contrastive import one_thread
held, done = threading.Event(), threading.Event()
def hold():
    with one_thread():
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    with one_thread():
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(threading, "get_native_id"), reason="threads of the system")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_does_not_wait_for_a_thread_it_lacks() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert found.stdout.strip() == "7"
