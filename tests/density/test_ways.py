"""The log says which way a log-density is evaluated and why no faster one, once per change."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from helpers import make_batch, make_vae
from torch import Tensor, nn

from pyro_contrastive import NegativeBinomial, Penalty, ZeroInflatedNegativeBinomial
from pyro_contrastive.density import ways
from pyro_contrastive.density.heads import Heads

N_CELLS, N_GENES, N_HIDDEN = 6, 12, 8


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """Return a function that returns, and forgets, what has been logged about ways."""
    ways.only_changes.last = ""

    def taken() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.name == ways.logger.name]
        caplog.clear()
        return found

    with caplog.at_level(logging.DEBUG, logger=ways.logger.name):
        yield taken


@pytest.fixture
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(ways, "MIN_ENTRIES", 0)


def evaluate(
    dtype: torch.dtype = torch.float32,
    likelihood: Any = ZeroInflatedNegativeBinomial,
    change: Any = lambda heads, likelihood: heads,
    counts_of: tuple[int, ...] = (N_CELLS, N_GENES),
    counts_dtype: torch.dtype | None = None,
    validate: bool = False,
) -> Tensor:
    """Decode some cells, let `change` do something to the heads, and evaluate the density."""
    torch.manual_seed(0)
    made = likelihood()
    with pyro.validation_enabled(validate):
        made.build(N_HIDDEN, N_GENES)
        made.to(dtype)
        hidden = torch.randn(N_CELLS, N_HIDDEN, dtype=dtype).relu()
        heads = change(made.decode(hidden, make_batch(), {}), made)
        library = torch.full((N_CELLS, 1), 30.0, dtype=dtype)
        counts = torch.poisson(torch.ones(counts_of)).to(counts_dtype or dtype)
        return made(heads, library).log_prob(counts)


def look(heads: Any, likelihood: Any) -> Any:
    assert heads["scale"].shape == (N_CELLS, N_GENES)
    return heads


def hook(heads: Any, likelihood: Any) -> Any:
    likelihood.layers["dropout"].register_forward_hook(lambda *_: None)
    return heads


def draws(heads: Any, likelihood: Any) -> Any:
    several = Heads(heads.hidden.expand(3, -1, -1), nn.ModuleDict(likelihood.layers))
    return several | {"inverse_dispersion": heads["inverse_dispersion"]}


ROWS = "by compiled rows."
SLOWER = [
    ({"dtype": torch.float64}, "fused tensors, because not everything is float32: torch.float64."),
    (
        {"counts_dtype": torch.float64},
        "fused tensors, because not everything is float32: torch.float32, torch.float64.",
    ),
    (
        {"likelihood": lambda: NegativeBinomial("gene-cell")},
        "fused tensors, because the inverse dispersion is not one number per gene.",
    ),
    (
        {"change": look},
        "separate heads, because the head 'scale' has been evaluated already, or set.",
    ),
    (
        {"change": hook},
        "separate heads, because the layer of the head 'dropout' is not a plain torch.nn.Linear "
        "with a bias.",
    ),
    (
        {"change": lambda heads, likelihood: dict(heads)},
        "separate heads, because the likelihood's decode returned heads that are evaluated "
        "already.",
    ),
    ({"change": draws}, "separate heads, because the latents have an axis of draws."),
    (
        {"validate": True},
        "separate heads, because Pyro's validation is on, which reads the heads.",
    ),
    (
        {"counts_of": (2, N_CELLS, N_GENES)},
        "separate heads, because the counts are not those of one mini-batch.",
    ),
]


@pytest.mark.usefixtures("always_worth_it")
@pytest.mark.parametrize(("how", "expected"), SLOWER, ids=[e[:40] for _, e in SLOWER])
def test_the_way_and_the_obstacle_to_a_faster_one_are_logged(
    lines: Any, how: dict[str, Any], expected: str
) -> None:
    evaluate()
    (line,) = lines()
    assert line.endswith(ROWS)
    evaluate(**how)
    (line,) = lines()
    assert line.endswith(expected)


def test_few_entries_are_evaluated_by_tensors(lines: Any) -> None:
    evaluate()
    (line,) = lines()
    assert line.endswith("fused tensors, because the mini-batch has fewer than 32768 entries.")


@pytest.mark.usefixtures("always_worth_it")
def test_on_another_device_tensors_are_used(lines: Any) -> None:
    elsewhere = [torch.ones(*shape, device="meta") for shape in ((2, 3), (2, 3), (2, 1), (3,))]
    assert not ways.can_use_rows(*elsewhere)
    (line,) = lines()
    assert line.endswith("because the counts are on a device of type meta.")


@pytest.mark.usefixtures("always_worth_it")
def test_without_compiled_code_tensors_are_used(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "kernel", lambda: None)
    evaluate()
    (line,) = lines()
    assert line.endswith("fused tensors, because numba cannot be used.")


@pytest.mark.usefixtures("always_worth_it")
def test_the_compiler_is_not_started_by_a_program_that_only_samples(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AssertionError

    monkeypatch.setattr(ways, "kernel", fail)
    with pyro.validation_enabled(False):
        likelihood = ZeroInflatedNegativeBinomial()
        likelihood.build(N_HIDDEN, N_GENES)
        heads = likelihood.decode(torch.ones(N_CELLS, N_HIDDEN), make_batch(), {})
        likelihood(heads, torch.full((N_CELLS, 1), 30.0)).sample()
    assert lines() == []


@pytest.mark.usefixtures("always_worth_it")
def test_autocast_keeps_the_heads_apart(lines: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        evaluate(counts_dtype=torch.float32)
    (line,) = lines()
    assert line.endswith("separate heads, because torch's autocast is on.")


@pytest.mark.usefixtures("always_worth_it")
def test_a_line_per_change_and_not_per_step(lines: Any) -> None:
    for how in ({}, {}, {"change": look}, {"change": look}, {}, {}):
        evaluate(**how)
    assert [line.split("evaluated ")[1].split(",")[0].rstrip(".") for line in lines()] == [
        "by compiled rows",
        "by separate heads",
        "by compiled rows",
    ]


class OfExpression(Penalty):
    """Looks at the site scale, and says so by not saying otherwise."""

    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> Tensor:
        return model_trace.nodes["scale"]["value"].square().sum(-1).mean()


class OfLatents(OfExpression):
    uses_expression = False

    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> Tensor:
        return guide_trace.nodes["s"]["value"].square().mean()


@pytest.mark.usefixtures("always_worth_it")
@pytest.mark.parametrize(
    ("penalties", "validate", "expected"),
    [
        ([], False, ROWS),
        ([OfLatents()], False, ROWS),
        ([OfExpression()], False, "separate heads, because the head 'scale' has been evaluated"),
        ([], True, "separate heads, because Pyro's validation is on"),
    ],
)
def test_a_training_step_says_what_keeps_it_from_the_fast_way(
    lines: Any, penalties: list[Penalty], validate: bool, expected: str
) -> None:
    vae, batch = make_vae(penalties=penalties), make_batch()
    with pyro.validation_enabled(validate):
        vae.objective.differentiable_loss(vae.model, vae.guide, batch).backward()
    (line,) = lines()
    assert expected in line
