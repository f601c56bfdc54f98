"""Training whose steps are checked in groups, as on a GPU, ends as if each were checked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_contrastive import CellBatch, ContrastiveVI, Penalty
from pyro_contrastive.testing import SimulationSettings, simulate
from pyro_contrastive.training import run
from pyro_contrastive.training.finite import NonFiniteLossError
from pyro_contrastive.training.updates import Updates


class Fails(Penalty):
    """Turns infinite at its seventh evaluation in training mode, and at some of those after it.

    Alone its gradient does, if so asked: the square root of 0 has a value.
    """

    def __init__(self, what: str, *, for_ever: bool) -> None:
        super().__init__()
        self.what = what
        self.for_ever = for_ever
        self.n_calls = 0

    def forward(self, model_trace: Any, guide_trace: Any, batch: CellBatch) -> Tensor:
        self.n_calls += self.training
        z = guide_trace.nodes["z"]["fn"].mean.square().mean()
        if self.n_calls == 7 or (self.for_ever and self.n_calls > 7):
            return (0.0 * z).sqrt() if self.what == "gradient" else z / 0.0
        return z


def stopped(monkeypatch: pytest.MonkeyPatch, check_every: int | None, **fails: Any) -> Any:
    """Train, four steps an epoch, until it fails; return the model and what was said."""
    adata = simulate(SimulationSettings(n_background=48, n_target=48, n_genes=10, mean_total=80))
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    torch.manual_seed(0)
    sizes = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
    model = ContrastiveVI(adata, **sizes, penalties=[Fails(**fails)])
    if check_every is not None:
        made = partial(Updates, check_every=check_every)
        monkeypatch.setattr(run, "Updates", lambda *args: made(*args[:3]))
    with pytest.raises(NonFiniteLossError) as caught:
        model.train(
            max_epochs=9,
            batch_size=12,
            train_size=1.0,
            seed=0,
            accelerator="cpu",
            enable_progress_bar=False,
            plan_kwargs={"n_epochs_kl_warmup": 0},
        )
    return model, str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("check_every", [2, 3, 16])
@pytest.mark.parametrize("for_ever", [True, False])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_weights_are_those_before_the_step_that_failed(monkeypatch, what, for_ever, check_every):
    fails = {"what": what, "for_ever": for_ever}
    expected, said = stopped(monkeypatch, None, **fails)
    model, also_said = stopped(monkeypatch, check_every, **fails)
    assert "epoch 1, step 6" in said
    assert "epoch 1, step 6" in also_said
    for (name, mine), other in zip(
        model.module.named_parameters(), expected.module.parameters(), strict=True
    ):
        assert torch.equal(mine, other), name
    assert all(torch.isfinite(buffer).all() for buffer in model.module.buffers())
    assert len(model.history["train_loss"]) == len(expected.history["train_loss"]) == 1
    if what == "loss":
        assert "'fails' of the loss" in also_said
    elif for_ever or check_every == 3:  # the seventh step is the last of three, or is like others
        assert "'guide.z_encoder" in also_said
    else:
        assert "though the loss is: once" in also_said


def test_ctrl_c_between_two_looks_does_not_hide_a_failure(monkeypatch):
    original, n_taken = run.Run.train_step, [0]

    def train_step(self: run.Run, *args: Any) -> Any:
        n_taken[0] += 1
        if n_taken[0] == 8:  # after the seventh, which fails
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(run.Run, "train_step", train_step)
    model, said = stopped(monkeypatch, 16, what="loss", for_ever=False)
    assert "epoch 1, step 6" in said
    for value in model.module.state_dict().values():
        assert torch.isfinite(value).all()


def test_a_run_without_failure_is_the_same(monkeypatch):
    def trained(check_every: int) -> dict[str, Tensor]:
        adata = simulate(SimulationSettings(n_background=48, n_target=48, n_genes=10))
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        torch.manual_seed(0)
        model = ContrastiveVI(adata, n_hidden=8)
        monkeypatch.setattr(run, "Updates", lambda *args: Updates(*args[:3], check_every))
        model.train(max_epochs=5, batch_size=12, seed=0, enable_progress_bar=False)
        return model.module.state_dict()

    expected, found = trained(1), trained(7)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
