"""What makes a step fast on a GPU: it never waits for the GPU, and a recording is captured.

Where there is no GPU, tensors on the "meta" device, which have no values to be asked for, and a
capture by hand stand in for one.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import N_GENES, make_vae
from test_recorded_steps import assert_same, trained
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pyro_contrastive import (
    HSIC,
    MMD,
    CellBatch,
    ConditionalGuide,
    FlowGuide,
    FullCovarianceGuide,
    LowRankGuide,
    MixtureOfGaussians,
    NegativeBinomial,
    NormalizingFlowPrior,
    PerConditionNormal,
    Poisson,
    SparseSalient,
    TotalCorrelation,
    Wasserstein,
    ZeroInflatedPoisson,
)
from pyro_contrastive.training import captured, steps
from pyro_contrastive.training.recorder import Recorder

Found = dict[str, Any]
MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "the default": dict,
    "latent library": lambda: {"latent_library": True},
    "penalties": lambda: {"penalties": [Wasserstein(1.0), MMD(30.0, "z"), HSIC(30.0)]},
    "adversary": lambda: {
        "penalties": [TotalCorrelation(1.0, n_background_latent=3, n_salient_latent=2)]
    },
    "dispersion by cell": lambda: {"likelihood": NegativeBinomial("gene-cell")},
    "poisson": lambda: {"likelihood": Poisson()},
    "zero-inflated poisson": lambda: {"likelihood": ZeroInflatedPoisson()},
    "mixture": lambda: {"background_prior": MixtureOfGaussians(3, 4)},
    "flow": lambda: {"salient_prior": NormalizingFlowPrior(2)},
    "mean of each treatment": lambda: {"salient_prior": PerConditionNormal(2, 2)},
    "sparse": lambda: {"salient_prior": SparseSalient(2)},
    "full covariance": lambda: {"guide": FullCovarianceGuide(), "latent_library": True},
    "low rank": lambda: {"guide": LowRankGuide()},
    "flow posterior": lambda: {"guide": FlowGuide()},
    "s given z": lambda: {"guide": ConditionalGuide()},
    "laplace": lambda: {"background_prior": dist.Laplace(0.0, 1.0)},
}


class Asks(TorchDispatchMode):
    """Notices tensors that move from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {
            value.device.type
            for value in tree_flatten((args, kwargs, result))[0]
            if isinstance(value, Tensor)
        }
        if len(devices) > 1:
            self.moves.append(f"{func} {devices}")
        return result


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a library that does not support the meta device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_step_asks_nothing_of_the_device(make: Callable[[], dict[str, Any]]) -> None:
    vae = make_vae(**make()).to("meta").train()
    n_cells = 10
    codes = torch.zeros(n_cells, dtype=torch.long, device="meta")
    batch = CellBatch(x=torch.rand(n_cells, N_GENES, device="meta"), condition=codes)
    loss = vae.objective(vae.model, vae.guide)
    vae.objective.kl_weight = torch.zeros((), device="meta")
    # On the meta device reading a value raises; `Asks` notices copies between devices.
    with pyro.validation_enabled(False), Asks() as asks:
        found = loss(batch)
        found.backward()
    assert found.device.type == "meta"
    assert not asks.moves


@pytest.mark.usefixtures("no_autocast")
def test_what_asks_is_noticed() -> None:
    with Asks() as asks:
        torch.zeros(2).to("meta")
    assert asks.moves
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device="meta").nonzero()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros((), device="meta").item()


def by_hand(
    function: Callable[[], Found], device: torch.device
) -> tuple[Found, Callable[[], None]]:
    """Capture as a graph does: new results are written where the first ones were."""
    found = function()
    places = [value for value in tree_flatten(found)[0] if isinstance(value, Tensor)]

    def replay() -> None:
        values = [value for value in tree_flatten(function())[0] if isinstance(value, Tensor)]
        for place, value in zip(places, values, strict=True):
            place.copy_(value)

    return found, replay


@pytest.fixture
def by_graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Capture on a CPU, by hand; return the numbers of inputs captured."""
    made: list[int] = []

    def capture(function: Callable[[], Found], device: torch.device) -> Any:
        made.append(1)
        return by_hand(function, device)

    monkeypatch.setattr(steps, "RECORDED_AFTER", 3)
    monkeypatch.setattr(steps, "CAPTURED_ON", {"cpu"})
    monkeypatch.setattr(captured, "capture", capture)
    # Sparse rows vary in size, and are not given to a GPU.
    monkeypatch.setattr("pyro_contrastive.observed.observation.SparseRows.of", lambda *_: None)
    return made


@pytest.mark.parametrize(
    "make",
    [dict, lambda: {"penalties": [Wasserstein(1.0), MMD(30.0, "z"), HSIC(30.0)]}],
    ids=["no penalty", "penalties"],
)
def test_captured_steps_are_the_plain_ones(
    make: Callable[[], dict[str, Any]], by_graphs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pyro_contrastive"):
        model = trained(True, make)
    assert not caplog.records
    assert by_graphs
    assert_same(model, trained(False, make))


def test_what_was_found_is_kept_when_more_is() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "capture", by_hand)
        replay = captured.Captured(
            lambda x: {"loss": x.sum(), "terms": {"a": x * 2}, "gradients": [x * 3]},
            [torch.zeros(2)],
        )
    one, two = replay(torch.ones(2)), replay(torch.tensor([5.0, 6.0]))
    assert (one["loss"].item(), two["loss"].item()) == (2, 11)
    assert one["terms"]["a"].tolist() == [2, 2]
    assert two["gradients"][0].tolist() == [15, 18]


def test_what_a_graph_reads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # A graph knows only addresses: unlike the stand-in it does not keep the tensors alive.
    monkeypatch.setattr(captured, "capture", lambda function, _: (function(), lambda: None))

    def make() -> tuple[captured.Captured, weakref.ref[Tensor]]:
        constant = torch.ones(2)
        replay = captured.Captured(lambda x: {"loss": (x * constant).sum()}, [torch.zeros(2)])
        return replay, weakref.ref(constant)

    replay, constant = make()
    gc.collect()
    assert constant() is not None
    del replay
    gc.collect()
    assert constant() is None


def test_where_capture_fails_recordings_are_played(
    monkeypatch: pytest.MonkeyPatch, by_graphs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    failed = []

    def fail(function: Callable[[], Found], device: torch.device) -> Any:
        failed.append(1)
        function()  # what it draws and writes must be restored
        msg = "operation not permitted when stream is capturing"
        raise RuntimeError(msg)

    monkeypatch.setattr(captured, "capture", fail)
    with caplog.at_level(logging.INFO, "pyro_contrastive"):
        model = trained(True)
    assert [record.getMessage() for record in caplog.records] == [
        "Recorded steps are not captured as a CUDA graph, which is slower: "
        "operation not permitted when stream is capturing."
    ]
    assert failed == [1]  # not tried again
    assert_same(model, trained(False))


def test_what_is_on_other_devices_is_noticed() -> None:
    x, unused = torch.zeros(2, device="meta"), torch.zeros(2)
    for make, devices in (
        (lambda: x * 2, {"meta"}),
        (lambda: x * torch.tensor(2.0), {"meta", "cpu"}),
        (lambda: (unused + 1, x * 2)[1], {"meta"}),
    ):
        recorder = Recorder([x])
        with recorder.recording():
            result = make()
        recorder.replay_of({"loss": result})
        assert recorder.devices == devices


def test_a_step_with_tensors_on_other_devices_is_not_captured(
    monkeypatch: pytest.MonkeyPatch, by_graphs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    original = Recorder.replay_of

    def replay_of(self: Recorder, results: Any) -> Any:
        replay = original(self, results)
        self.devices.add("meta")
        return replay

    monkeypatch.setattr(Recorder, "replay_of", replay_of)
    with caplog.at_level(logging.INFO, "pyro_contrastive"):
        model = trained(True)
    assert len(caplog.records) == 1
    assert "tensors on other devices" in caplog.records[0].getMessage()
    assert not by_graphs
    assert_same(model, trained(False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "RECORDED_AFTER", 3)
    with caplog.at_level(logging.INFO, "pyro_contrastive"):
        model = trained(True, accelerator="gpu")
    assert not caplog.records
    plain = trained(False, accelerator="gpu")
    for name, frame in plain.history.items():
        assert frame.iloc[-1, 0] == pytest.approx(model.history[name].iloc[-1, 0], rel=1e-3), name
