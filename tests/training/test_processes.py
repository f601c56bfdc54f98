"""Several processes train one model: they take the steps of one, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_helpers import SMALL, make_adata, make_model, same, train, weights
from two_processes import in_processes

from pyro_contrastive import (
    CellBatch,
    ContrastiveVI,
    Penalty,
    SalientClassifier,
    Wasserstein,
    settings,
)
from pyro_contrastive.networks import Block
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training import clipping, launch, processes, run, steps, updates
from pyro_contrastive.training.splits import PairedBatches, Population

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
assert launch  # imported before processes are forked
NOISE = [f"noise_{i}" for i in range(5)]


# The steps of two processes


def noisy_model() -> ContrastiveVI:
    """Make a model whose posterior draws depend on nothing but the cell.

    There is no batch normalisation, because every process uses the statistics of its own cells.
    """
    adata = simulate(SimulationSettings(n_background=50, n_target=31, n_genes=10, mean_total=80))
    rng = np.random.default_rng(0)
    for name in NOISE:
        adata.obs[name] = rng.normal(size=adata.n_obs)
    ContrastiveVI.setup_anndata(
        adata, condition_key="condition", background="control", continuous_covariate_keys=NOISE
    )
    torch.manual_seed(3)
    penalties = [Wasserstein(0.5), SalientClassifier(2.0, SMALL["n_salient_latent"])]
    model = ContrastiveVI(adata, **SMALL, dropout_rate=0.0, penalties=penalties)
    model.module.double()
    for module in model.module.modules():
        if isinstance(module, Block):
            module.norm = nn.Identity()
    return model


def gradients_of_steps(
    patch: pytest.MonkeyPatch, *, record_steps: bool, **kwargs: Any
) -> tuple[list[list[Tensor]], ContrastiveVI, int]:
    """Train; return the gradients of each step, the model, and how many steps were replayed."""
    model, seen, n_replayed, batches = noisy_model(), [], [0], []
    forward, take, replayed = (
        run._Loss.forward,
        updates.Updates.take,
        steps.RecordedStep._replayed,
    )

    def noting_forward(self: run._Loss, batch: CellBatch) -> Tensor:
        batches[:] = [batch]
        try:
            return forward(self, batch)
        finally:
            batches.clear()

    def noise(shape: Any, dtype: Any, device: Any) -> Tensor:
        if not batches:  # not in a step: the checks before training
            return torch.zeros(shape, dtype=dtype, device=device)
        columns = slice(0, 3) if shape[-1] == 3 else slice(3, 5)  # of z and of s
        return batches[0].continuous[:, columns]

    def noting_take(self: updates.Updates, *args: Any) -> Any:
        found = take(self, *args)
        seen.append([p.grad.clone() for p in self.plain.parameters if p.grad is not None])
        return found

    def noting_replayed(self: steps.RecordedStep, *args: Any) -> Any:
        n_replayed[0] += 1
        return replayed(self, *args)

    patch.setattr(run._Loss, "forward", noting_forward)
    patch.setattr(updates.Updates, "take", noting_take)
    patch.setattr(steps.RecordedStep, "_replayed", noting_replayed)
    patch.setattr(steps, "RECORDED_AFTER", 1)
    patch.setattr(torch.distributions.normal, "_standard_normal", noise)
    # Gradients are clipped in many of the last steps, by the norm of those of all processes.
    patch.setattr(clipping, "CLIPPED_AT", 0.9)
    patch.setattr(clipping, "N_FIRST", 8)
    patch.setattr(clipping.Clipping, "report", lambda *_: None)
    train(
        *(model, 4),
        train_size=1.0,
        seed=0,
        check_val_every_n_epoch=None,
        plan_kwargs={"record_steps": record_steps, "lr": 0.01},
        **kwargs,
    )
    return seen, model, n_replayed[0]


@pytest.mark.parametrize(
    "record_steps", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["recorded", "plain"]
)
def test_two_processes_take_the_steps_of_one_with_twice_the_cells(
    tmp_path, monkeypatch, record_steps
):
    def act(_: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            found, model, n_replayed = gradients_of_steps(
                patch, record_steps=record_steps, batch_size=8, devices=2
            )
        history = {name: frame[name].tolist() for name, frame in model.history.items()}
        return found, weights(model), history, n_replayed

    both = in_processes(tmp_path, act)
    expected, model, _ = gradients_of_steps(monkeypatch, record_steps=False, batch_size=16)
    # Weights of cells, 1 / 13 or 1 / 7, are in single precision.
    assert len(expected) == 16  # steps of 13 and 12 background cells: 7 + 6, or 6 + 6
    for found, state, history, n_replayed in both:
        assert n_replayed >= 8 * record_steps
        for mine, theirs in zip(found, expected, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for name, value in model.module.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        for name, frame in model.history.items():
            assert history[name] == pytest.approx(frame[name].tolist(), rel=1e-6), name
    assert same(both[0][1], both[1][1])


def some_cells(n_background: int, n_target: int) -> Population:
    return Population(np.arange(n_background), n_background + np.arange(n_target))


@pytest.mark.parametrize(("n_background", "n_target"), [(50, 31), (31, 50), (48, 48), (100, 20)])
@pytest.mark.parametrize("n_parts", [2, 3])
def test_the_parts_of_a_step_are_the_step(n_background, n_target, n_parts):
    cells = some_cells(n_background, n_target)
    size = 6
    whole = PairedBatches(cells, size * n_parts, np.random.default_rng(0))
    parts = [
        PairedBatches(cells, size, np.random.default_rng(0), i, n_parts) for i in range(n_parts)
    ]
    for _ in range(4):
        for step, *each in zip(whole.epoch(), *(p.epoch() for p in parts), strict=True):
            assert sorted(np.concatenate(each)) == sorted(step)
            assert max(map(len, each)) - min(map(len, each)) <= 2
            for part in each:
                assert (part < n_background).sum() == len(part) / 2


def test_a_population_smaller_than_a_step_is_in_every_part():
    cells = some_cells(40, 3)
    for i in range(4):
        for part in PairedBatches(cells, 5, np.random.default_rng(0), i, 4).epoch():
            assert sorted(part[part >= 40]) == [40, 41, 42]
            assert len(part) == 8


@pytest.mark.parametrize(("n_cells", "batch_size", "n_parts"), [(3, 8, 4), (3, 1, 2)])
def test_steps_with_fewer_cells_than_processes_are_refused(n_cells, batch_size, n_parts):
    with pytest.raises(ValueError, match=f"too few cells to train with {n_parts} processes"):
        PairedBatches(some_cells(n_cells, 2), batch_size, np.random.default_rng(0), 0, n_parts)


# How they end


def at_step(number: int, rank: int, act: Callable[[], Any]) -> Callable[..., Any]:
    """Return a `train_step` that does something first in one step of one process."""
    original = run.Run.train_step

    def train_step(self: run.Run, *args: Any) -> Any:
        if self.step == number and self.processes.rank == rank:
            act()
        return original(self, *args)

    return train_step


def raise_error() -> None:
    msg = "the disk is on fire"
    raise OSError(msg)


def ended(
    folder: Path,
    act: Callable[[], Any] | None = None,
    *,
    rank: int = 1,
    timeout: float = 60.0,
    change: Callable[[int], dict[str, Any]] = lambda _: {},
) -> list[Any]:
    """Train in two processes, one of which does something; return how each of them ended."""
    adata = make_adata(60, 70)

    def child(own: int) -> Any:
        processes.TIMEOUT = processes.timedelta(seconds=timeout)
        if act is not None:
            run.Run.train_step = at_step(5, rank, act)  # type: ignore[method-assign]
        given = {"adata": adata, "batch_size": 10, "seed": 0, "max_epochs": 5} | change(own)
        settings.seed = own  # initial weights are those of the first process
        sizes = {"n_hidden": given.pop("n_hidden", 8)}
        model = make_model(given.pop("adata"), **sizes)
        result = train(model, given.pop("max_epochs"), devices=2, **given)
        return result, weights(model)

    return in_processes(folder, child)


def test_all_processes_end_with_the_error_of_one(tmp_path):
    begun = time.monotonic()
    first, second = map(str, ended(tmp_path, raise_error))
    assert time.monotonic() - begun < 40
    assert second == "OSError: the disk is on fire"
    assert "ProcessesError: Process 0 of 2 (counted from 0) stops training" in first
    assert "another one failed (process 1: OSError: the disk is on fire)" in first


@pytest.mark.slow
def test_the_first_process_may_fail_too(tmp_path):
    first, second = map(str, ended(tmp_path, raise_error, rank=0))
    assert first == "OSError: the disk is on fire"
    assert "(process 0: OSError: the disk is on fire)" in second


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, rank):
    found = ended(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL), rank=rank)
    assert found[rank] is None
    assert "another one ended (killed, or out of memory?)" in str(found[1 - rank])


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_in_time(tmp_path):
    first, _ = ended(tmp_path, lambda: time.sleep(12), timeout=4)
    assert "another one did not answer for 4 seconds" in str(first)


@pytest.mark.slow
def test_a_process_that_does_not_come_ends_the_other_in_time(tmp_path):
    def change(rank: int) -> dict[str, Any]:
        return {} if rank == 0 else {"max_epochs": 0}  # refused before it connects

    first, second = ended(tmp_path, timeout=4, change=change)
    assert "could not connect within 4 seconds" in str(first)
    assert "max_epochs must be at least 1" in str(second)


@pytest.mark.slow
def test_bad_input_of_one_process_ends_the_other(tmp_path):
    twice = {"datasplitter_kwargs": {"external_indexing": [[0, 80], [0]]}}
    first, second = ended(tmp_path, change=lambda rank: twice if rank else {})
    assert "has some cells twice" in str(second)
    assert "ProcessesError: Process 0 of 2" in str(first)
    assert "another one ended" in str(first)


def with_another_count(adata: ad.AnnData) -> ad.AnnData:
    other = adata.copy()
    other.X[3, 4] += 1
    return other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"adata": with_another_count(make_adata(60, 70))}, "their counts"),
        ({"adata": make_adata(70, 60)}, "conditions, batches or covariates of their cells"),
        ({"train_size": 0.8}, "the split of their cells"),
        ({"seed": 1}, "the split of their cells"),
        ({"n_hidden": 9}, "the parts of their models"),
        ({"plan_kwargs": {"lr": 0.1}}, r"the arguments of train\(\)"),
    ],
    ids=["counts", "conditions", "split", "seed", "model", "plan"],
)
def test_processes_with_different_things_are_refused(tmp_path, change, what):
    for error in ended(tmp_path, change=lambda rank: change if rank else {}):
        assert "ProcessesError: The 2 processes of this training differ in" in str(error)
        assert what.replace("\\", "") in str(error)


class FailsInOne(Penalty):
    """Is infinite in the seventh step of the second process."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        self.n_calls += self.training
        z = guide_trace.nodes["z"]["fn"].mean.square().mean()
        is_second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        return z / 0.0 if self.n_calls == 7 and is_second else z


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path):
    adata = make_adata(60, 70)

    def act(_: int) -> Any:
        model = make_model(adata, penalties=[FailsInOne()])
        try:
            train(model, 5, devices=2, batch_size=10, seed=0, plan_kwargs={"n_epochs_kl_warmup": 0})
        except Exception as error:
            return f"{type(error).__name__}: {error}", weights(model)

    (first, its_weights), (second, other_weights) = in_processes(tmp_path, act)
    assert first == second
    assert (
        "NonFiniteLossError: In process 1 of 2: The loss is not finite in epoch 1, step 6" in first
    )
    assert "'failsinone' of the loss" in first
    assert all(torch.isfinite(value).all() for value in its_weights.values())
    names = [n for n in its_weights if "running" not in n]  # those of each one's own cells
    assert all(torch.equal(its_weights[n], other_weights[n]) for n in names)


class Noisy(torch.optim.SGD):
    """Adds noise of each process's own."""

    def step(self, *args: Any) -> None:
        super().step(*args)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.slow
def test_weights_that_come_to_differ_are_refused(tmp_path):
    plan = {"optimizer": "Custom", "optimizer_creator": lambda p: Noisy(p, lr=1e-3)}
    for error in ended(tmp_path, change=lambda _: {"plan_kwargs": plan}):
        assert "ProcessesError: The weights of the processes differ" in str(error)


@pytest.mark.slow
def test_ctrl_c_in_one_process_keeps_what_all_learned(tmp_path):
    both = ended(tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
    for result, _ in both:
        assert result.interrupted
        assert result.n_epochs == 1
    names = [n for n in both[0][1] if "running" not in n]
    assert all(torch.equal(both[0][1][n], both[1][1][n]) for n in names)


# Checkpoints


def fit_in_parts(seed: int | None, devices: int = 2, **kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    model = make_model(dropout_rate=0.2)
    train(model, 5, seed=seed, early_stopping=False, devices=devices, **kwargs)
    return weights(model)


@pytest.mark.parametrize("seed", [0, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_of_several_processes_that_was_killed_is_continued_bit_for_bit(tmp_path, seed):
    place = tmp_path / "checkpoints"

    def killed(_: int) -> None:
        epoch = run.Run.train_epoch

        def train_epoch(self: run.Run, number: int) -> Any:
            return os.kill(os.getpid(), signal.SIGKILL) if number == 3 else epoch(self, number)

        run.Run.train_epoch = train_epoch  # in this process, which ends
        fit_in_parts(seed, checkpoint=place, checkpoint_every_n_epochs=1)

    whole = in_processes(tmp_path, lambda _: fit_in_parts(seed))
    (tmp_path / "0.pickle").unlink()
    (tmp_path / "1.pickle").unlink()
    assert in_processes(tmp_path, killed) == [None, None]
    assert sorted(path.name for path in place.iterdir()) == ["epoch_2", "epoch_3"]
    again = in_processes(tmp_path, lambda _: fit_in_parts(seed, resume=place))
    assert all(same(one, other) for one, other in zip(whole, again, strict=True))
    assert not same(whole[0], fit_in_parts(seed, devices=1))


def test_checkpoints_of_two_processes_are_not_continued_by_one(tmp_path):
    place = tmp_path / "checkpoints"
    in_processes(tmp_path, lambda _: fit_in_parts(0, checkpoint=place))
    with pytest.raises(ValueError, match="number of processes was 2 and is 1"):
        fit_in_parts(0, resume=place, devices=1)


def test_processes_that_see_different_checkpoints_are_refused(tmp_path):
    place = tmp_path / "checkpoints"
    in_processes(tmp_path, lambda _: fit_in_parts(0, checkpoint=place))
    places = [place, tmp_path / "older"]
    (place / "epoch_0").rename(tmp_path / "epoch_0")
    places[1].mkdir()
    (tmp_path / "epoch_0").rename(places[1] / "epoch_0")
    both = in_processes(tmp_path, lambda rank: fit_in_parts(0, resume=places[rank]))
    for error in both:
        assert "differ in the checkpoint that they continue from" in str(error)


# Whole runs


@pytest.mark.slow
def test_a_fit_of_two_processes_is_as_good_as_that_of_one(tmp_path):
    adata = simulate(
        SimulationSettings(n_background=1200, n_target=1200, n_genes=50, mean_total=300)
    )
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")

    def fitted(seed: int, **kwargs: Any) -> tuple[dict[str, Tensor], float]:
        settings.seed = seed
        model = ContrastiveVI.from_preset(adata, "separated", n_hidden=32)
        train(model, 25, schedule="fast", seed=0, **kwargs)
        return weights(model), float(model.history["elbo_validation"].min().iloc[0])

    single = [fitted(seed, batch_size=128)[1] for seed in range(3)]
    both = in_processes(
        tmp_path, lambda _: [fitted(s, batch_size=64, devices=2) for s in range(3)], seconds=500
    )
    for (first, elbo), (second, same_elbo) in zip(*both, strict=True):
        assert same(first, second)
        assert elbo == same_elbo
    several = [elbo for _, elbo in both[0]]
    assert abs(np.mean(several) - np.mean(single)) < 2 * max(np.std(single, ddof=1), 0.1)


SCRIPT = """
import sys
import torch
from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.testing import SimulationSettings, simulate

adata = simulate(SimulationSettings(n_background=60, n_target=60, n_genes=10, mean_total=80))
ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
model = ContrastiveVI(adata, n_hidden=8)
devices = "auto" if sys.argv[2] == "torchrun" else 2
model.train(max_epochs=2, accelerator="cpu", devices=devices, batch_size=10)
assert torch.distributed.get_world_size() == 2
print("done", flush=True)
model.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "torchrun"])
def test_processes_are_started_by_the_script_or_by_torchrun(tmp_path, how):
    script, folder = tmp_path / "script.py", tmp_path / "model"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *(launcher if how == "torchrun" else []), str(script)]
    done = subprocess.run(
        [*command, str(folder), how],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2
    assert len(ContrastiveVI.load(folder).history["elbo_train"]) == 2  # written once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "script.py"]


def test_a_session_without_a_script_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ValueError, match=r"devices=2 runs this script once more.*use devices=1"):
        train(make_model(), devices=2)


@pytest.mark.parametrize("devices", [0, -2, "two", [], "0"])
def test_what_is_not_a_number_of_devices_is_refused(devices):
    with pytest.raises(ValueError, match="devices must be 'auto', a number of devices, -1 for all"):
        train(make_model(), devices=devices)
