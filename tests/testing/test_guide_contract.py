"""The contract of guides: ours and a user's keep it, and each defect is found and explained."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from every_guide import MADE, OwnProgram
from torch import nn

from pyro_contrastive import ContrastiveGuide, PrivateSalient
from pyro_contrastive.guides import LIBRARY
from pyro_contrastive.testing import ContractError, check_guide


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_every_guide_keeps_the_contract(name) -> None:
    check_guide(MADE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_also_with_one_latent_of_each_kind_and_with_salient_dimensions_of_some_cells(name) -> None:
    check_guide(MADE[name], n_background_latent=1, n_salient_latent=1, n_batch=1, n_hidden=6)
    prior = {"salient_prior": PrivateSalient(3, 2)}
    check_guide(MADE[name], n_conditions=3, **prior)


def test_no_guide_is_left_out() -> None:
    assert set(LIBRARY.values()) <= {type(make()) for make in MADE.values()}


class Own(ContrastiveGuide):
    """A program of one's own, changed below into one with a defect."""

    def forward(self, batch):
        with pyro.plate("cells", len(batch), dim=-1):
            for site, (mean, variance) in self.encode(batch).items():
                self.draw_of(site, mean, variance, batch)

    def draw_of(self, site, mean, variance, batch):
        return pyro.sample(site, self.factor(site, mean, variance))


class LeavesOut(Own):
    def draw_of(self, site, *given):
        return None if site == "s" else super().draw_of(site, *given)


class Adds(Own):
    def draw_of(self, site, *given):
        pyro.sample(f"{site}_extra", dist.Normal(0.0, 1.0))
        return super().draw_of(site, *given)


class Outside(Own):
    def forward(self, batch):
        for site, (mean, variance) in self.encode(batch).items():
            pyro.sample(site, self.factor(site, mean, variance).to_event(1))


class TooWide(Own):
    def draw_of(self, site, mean, variance, batch):
        return super().draw_of(site, mean.repeat(1, 2), variance.repeat(1, 2), batch)


class SalientFirst(Own):
    def forward(self, batch):
        moments = self.encode(batch)
        with pyro.plate("cells", len(batch), dim=-1):
            s = self.draw_of("s", *moments.pop("s"), batch)
            for site, (mean, variance) in moments.items():
                real = s.log() if self.is_positive("s") else s
                self.draw_of(site, mean + real.sum(-1, keepdim=True), variance, batch)


class MixesCells(Own):
    def draw_of(self, site, mean, variance, batch):
        return super().draw_of(site, mean - mean.mean(-2, keepdim=True), variance, batch)


class FromTheLeft(Own):
    def forward(self, batch):
        with pyro.plate("cells", len(batch), dim=-1):
            moments = self.encode(batch)
            z = self.draw_of("z", *moments.pop("z"), batch)
            for site, (mean, variance) in moments.items():
                there = batch.is_target.unsqueeze(-1)
                self.draw_of(site, mean + torch.where(there, z[:, :1], 0.0), variance, batch)


class Shifted(ContrastiveGuide):
    def z_dist(self, mean, variance):
        return super().z_dist(mean + 1.0, variance)


class WrongDensity(ContrastiveGuide):
    def z_dist(self, mean, variance):
        class Halved(dist.Normal):
            def log_prob(self, value):
                return 0.5 * super().log_prob(value)

        return Halved(mean, variance.sqrt()).to_event(1)


class Spare(ContrastiveGuide):
    def build(self, outline):
        super().build(outline)
        self.spare = nn.Parameter(torch.ones(2))


class Loose(ContrastiveGuide):
    def build(self, outline):
        super().build(outline)
        self.constant = torch.ones(2)


class Forgetful(ContrastiveGuide):
    def __init__(self, width: float = 1.0) -> None:
        super().__init__()


DEFECTS: list[tuple[Any, str]] = [
    (LeavesOut, r"does not draw the site 's', which the model has.*\['z', 's'\]"),
    (Adds, "draws the site 'z_extra', which the model does not have"),
    (Outside, "draws the site 'z' with shape .* outside the plate of cells"),
    (TooWide, r"draws the site 'z' with shape \[8, 6\]; the model has \[8, 3\]"),
    (SalientFirst, "in a background cell the density of 'z' depends on its s"),
    (MixesCells, "'z' of a cell depends on the other cells"),
    (FromTheLeft, r"many draws at once \(a plate to the left of cells\) raised RuntimeError"),
    (Shifted, "the mean of 'z' in `marginals` is not that of its draws"),
    (WrongDensity, "its density does not belong to its draws"),
    (Spare, r"no gradient reaches \['spare'\] in the loss"),
    (Loose, "the attribute 'constant' holds a tensor"),
    (Forgetful, "its arguments cannot be saved: the argument 'width'"),
]


@pytest.mark.parametrize(("cls", "message"), DEFECTS, ids=lambda p: getattr(p, "__name__", ""))
def test_defects_are_found(cls, message) -> None:
    with pytest.raises(ContractError, match=f"(?s)^{cls.__name__}: .*{message}"):
        check_guide(cls)


def test_what_is_no_maker_of_guides_is_refused() -> None:
    with pytest.raises(ContractError, match=r"this is one guide.*check_guide\(MyGuide\)"):
        check_guide(OwnProgram())  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="it is not a ContrastiveGuide"):
        check_guide(lambda: nn.Linear(2, 2))  # type: ignore[arg-type, return-value]
    same = OwnProgram()
    with pytest.raises(ContractError, match="returns the same object again"):
        check_guide(lambda: same)
