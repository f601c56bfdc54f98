"""Each defect of a prior, likelihood or penalty is found, with a message that names it."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_contrastive import Likelihood, Penalty, Prior
from pyro_contrastive.testing import ContractError, check_likelihood, check_penalty, check_prior


def fails(message):
    return pytest.raises(ContractError, match=message)


def normal(mean, scale=1.0):
    return dist.Normal(mean, torch.as_tensor(scale).to(mean)).to_event(1)


class Good(Prior):
    """A learned mean; the defects below start from it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.4]))

    def forward(self, batch):
        return normal(self.mean)


class OfTorch(Good):
    def forward(self, batch):
        return torch.distributions.Independent(torch.distributions.Normal(self.mean, 1.0), 1)


class NoEvent(Good):
    def forward(self, batch):
        return dist.Normal(self.mean, 1.0)


class TooLong(Good):
    def forward(self, batch):
        return normal(self.mean.repeat(2))


class PerConditionNotPerCell(Good):
    def forward(self, batch):
        return normal(self.mean.expand(2, 2))


class Unregistered(Good):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(2.0)

    def forward(self, batch):
        return normal(self.mean, self.scale)


class KeepsADistribution(Good):
    def __init__(self) -> None:
        super().__init__()
        self.kept = [dist.Normal(torch.zeros(2), 1.0)]


class Detached(Good):
    def forward(self, batch):
        return normal(self.mean.detach())


class Unused(Good):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(1))


class SinglePrecision(Good):
    def forward(self, batch):
        return normal(self.mean.float())


class LeftOnTheCpu(Good):
    def forward(self, batch):
        return normal(self.mean + torch.ones(2, dtype=self.mean.dtype, device="cpu"))


class AveragesCells(Good):
    def forward(self, batch):
        return normal(self.mean * batch.condition.to(self.mean).mean())


class Changed(dist.Normal):
    """A normal with something wrong in it."""

    what: ClassVar[str] = ""

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def log_prob(self, value):
        off = {"scaled": -0.5, "nan": float("nan")}.get(self.what, 0.0)
        return super().log_prob(value) + off

    def sample(self, sample_shape=()):
        draws = super().sample(torch.Size(sample_shape))
        return {"infinite": draws / 0, "lost": draws[..., :1, :]}.get(self.what, draws)

    @property
    def mean(self):
        return self.loc + (1.0 if self.what == "mean" else 0.0)

    @property
    def variance(self):
        return self.scale**2 * (3.0 if self.what == "variance" else 1.0)

    @property
    def support(self):
        constraints = torch.distributions.constraints
        return constraints.positive if self.what == "support" else constraints.real


def with_changed(kind):
    changed = type("Odd", (Changed,), {"what": kind})

    class Odd(Good):
        def forward(self, batch):
            mean = self.mean.expand(len(batch), 2)
            return changed(mean, torch.ones_like(mean)).to_event(1)

    return Odd


class NotKept(Good):
    def __init__(self, scale=2.0) -> None:
        super().__init__()
        self.width = scale


class KeptOtherwise(Good):
    def __init__(self, scale=2.0) -> None:
        super().__init__()
        self.scale = 2 * scale

    def forward(self, batch):
        return normal(self.mean, self.scale)


class CannotBeMadeAgain(Good):
    def __init__(self, scale=2.0) -> None:
        super().__init__()
        self.scale = str(scale)
        assert not isinstance(scale, str), "no strings"


class UnknownField(Prior):
    def forward(self, batch):
        return dist.Normal(batch.treatment.unsqueeze(-1), 1.0).expand([2]).to_event(1)


PRIORS = [
    (UnknownField, r"raised AttributeError: .*'treatment'. It is given one CellBatch: condition"),
    (OfTorch, "pyro.sample does not take.*pyro.distributions"),
    (NoEvent, r"event shape \[\] .*to_event\(1\)"),
    (TooLong, r"event shape \[4\] .*the event must be \[2\]"),
    (PerConditionNotPerCell, r"batch shape \[2\]; expected \[\] or \[8\].*batch.condition"),
    (Unregistered, r"'scale' holds a tensor.*register_buffer\('scale'"),
    (KeepsADistribution, "'kept' holds a tensor.*build distributions in forward"),
    (Detached, r"no gradient reaches \['mean'\] in the log-density.*detach"),
    (Unused, r"no gradient reaches \['spare'\]"),
    (SinglePrecision, r"double precision it computes in torch.float32.*zeros_like"),
    (LeftOnTheCpu, "mixes devices once the model is moved.*meta"),
    (AveragesCells, "depends on the other cells"),
    (
        with_changed("scaled"),
        "does not belong to its draws: it integrates to about 0.3",
    ),
    (with_changed("nan"), "log_prob of its own draws is not finite"),
    (with_changed("infinite"), "some draws are not finite"),
    (with_changed("lost"), r"20000 draws have shape \[20000, 1, 2\], not \[20000, 8, 2\]"),
    (with_changed("mean"), r"the mean of 20000 draws is 0.3.* says 1.3"),
    (with_changed("variance"), r"the variance of 20000 draws is .* says 3"),
    (with_changed("support"), "some draws lie outside the distribution's own support"),
    (NotKept, "cannot be saved: the argument 'scale' is not kept.*saving=False"),
    (KeptOtherwise, "made again from its saved arguments and weights it gives other numbers"),
    (CannotBeMadeAgain, "making it again from its arguments.*raised AssertionError: no strings"),
]


@pytest.mark.parametrize(("cls", "message"), PRIORS, ids=lambda p: getattr(p, "__name__", ""))
def test_defects_of_priors_are_found(cls, message) -> None:
    with fails(f"(?s)^{cls.__name__}: .*{message}"):
        check_prior(cls(), 2)


def test_a_good_prior_passes_and_is_left_alone() -> None:
    prior = Good()
    state = torch.get_rng_state()
    check_prior(prior, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert prior.mean.grad is None
    assert prior.mean.dtype == torch.float32
    check_prior(NotKept(), 2, saving=False)
    with fails("it is not a Prior"):
        check_prior(dist.Normal(0.0, 1.0), 2)


class Poisson(Likelihood):
    """A good one; the defects below start from it."""

    heads = ("scale",)

    def forward(self, heads, library):
        return dist.Poisson(library * heads["scale"]).to_event(1)


class HeadsAreAString(Poisson):
    heads = "scale"


class NoGeneEvent(Poisson):
    def forward(self, heads, library):
        return dist.Poisson(library * heads["scale"])


class OwnBuild(Poisson):
    def build(self, n_hidden, n_genes, n_batch=1) -> None:
        self.linear = nn.Linear(n_hidden, n_genes)

    def decode(self, hidden, batch, shared):
        return {"scale": self.linear(hidden).softmax(-1)}


class Unnormalised(Poisson):
    class Density(dist.Poisson):
        def log_prob(self, value):
            return value * self.rate.log() - self.rate

    def forward(self, heads, library):
        return self.Density(library * heads["scale"]).to_event(1)


class OverCells(Poisson):
    def forward(self, heads, library):
        library = library / library.mean(-2, keepdim=True)
        return dist.Poisson(library * heads["scale"]).to_event(1)


class ForgetsParticles(Poisson):
    def forward(self, heads, library):
        return dist.Poisson(
            (library * heads["scale"]).reshape(-1, library.shape[-2], 6)[0]
        ).to_event(1)


class MixesParticles(Poisson):
    def forward(self, heads, library):
        rate = library * heads["scale"]
        if rate.dim() == 3:
            rate = rate.cumsum(0)
        return dist.Poisson(rate).to_event(1)


class UnusedHead(Poisson):
    heads = ("scale", "dropout")


class KeepsAConstant(Poisson):
    def build(self, n_hidden, n_genes, n_batch=1) -> None:
        super().build(n_hidden, n_genes, n_batch)
        self.constant = torch.ones(n_genes)


class LogOfCounts(Poisson):
    def encoder_input(self, x):
        return x.log()


class OtherSupport(Poisson):
    support = torch.distributions.constraints.boolean


class ExpressionPerCell(Poisson):
    def expression(self, heads):
        return heads["scale"].sum(-1)


class WrongMean(Poisson):
    class Density(dist.Poisson):
        @property
        def mean(self):
            return 2 * self.rate

    def forward(self, heads, library):
        return self.Density(library * heads["scale"]).to_event(1)


class FixedSize(Poisson):
    def __init__(self, temperature=1.0) -> None:
        super().__init__()
        self._temperature = temperature


class UndeclaredHead(Likelihood):
    heads = ("rate",)

    def forward(self, heads, library):
        return dist.Poisson(library * heads["scale"]).to_event(1)


class NegativeRate(Likelihood):
    heads = ("rate",)

    def forward(self, heads, library):
        return dist.Poisson(library * heads["rate"]).to_event(1)


LIKELIHOODS = [
    (
        UndeclaredHead,
        r"raised KeyError: .*'scale.* is not among the heads.* It is given the heads it names, "
        r"\('rate',\)",
    ),
    (NegativeRate, r"Expected parameter rate.*softplus where a parameter must be positive"),
    (HeadsAreAString, "with the comma"),
    (NoGeneEvent, r"to_event\(1\)"),
    (OwnBuild, r"super\(\).build"),
    (Unnormalised, "of a gene sum to .*, not 1"),
    (OverCells, "depends on the other cells.*dim=-1"),
    (ForgetsParticles, r"batch shape \[8\]; expected \[3, 8\]"),
    (MixesParticles, "with a leading axis of particles each gets another density"),
    (UnusedHead, r"no gradient reaches \['layers.dropout.weight'"),
    (KeepsAConstant, "'constant' holds a tensor"),
    (LogOfCounts, "`encoder_input` of data it drew itself is not finite"),
    (OtherSupport, "it draws data outside the `support` it declares"),
    (ExpressionPerCell, "the site 'scale' has shape .*expected"),
    (WrongMean, "the mean of 20000 draws is"),
    (FixedSize, "the argument 'temperature' is not kept"),
]


@pytest.mark.parametrize(("cls", "message"), LIKELIHOODS, ids=lambda p: getattr(p, "__name__", ""))
def test_defects_of_likelihoods_are_found(cls, message) -> None:
    with fails(f"(?s)^{cls.__name__}: .*{message}"):
        check_likelihood(cls)


def test_a_good_likelihood_passes() -> None:
    check_likelihood(Poisson)
    check_likelihood(FixedSize, saving=False)
    with fails(r"Poisson: this is one likelihood.*check_likelihood\(lambda: MyLikelihood"):
        check_likelihood(Poisson())
    made = Poisson()
    with fails("returns the same object again"):
        check_likelihood(lambda: made)
    with fails("it is not a Likelihood"):
        check_likelihood(lambda: dist.Poisson(1.0))


class Shrink(Penalty):
    """A good one; the defects below start from it."""

    def latents(self, guide_trace):
        return guide_trace.nodes["s"]["fn"].mean.square().sum(-1)

    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace).mean()


class PerCell(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace)


class Number(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return 1.0


class Infinite(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace).mean() / 0


class EmptyMean(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace)[..., batch.is_target].mean()


class NormAtZero(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return (self.latents(guide_trace) * batch.is_target).sum().sqrt()


class NeedsTwo(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace)[..., 1].mean()


class WithoutGradient(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace).mean().detach()


class UnusedParameter(Shrink):
    def __init__(self, weight=1.0) -> None:
        super().__init__(weight)
        self.spare = nn.Parameter(torch.ones(1))


class Leaks(Shrink):
    def own_loss(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace).mean()


class Noisy(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        latents = self.latents(guide_trace)
        return (latents * torch.rand_like(latents)).mean()


class Counts(Shrink):
    def __init__(self, weight=1.0) -> None:
        super().__init__(weight)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, model_trace, guide_trace, batch):
        self.calls += 1
        return self.latents(guide_trace).mean()


class AddsParticles(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return guide_trace.nodes["s"]["value"].square().sum() / len(batch)


class ListsParticles(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return guide_trace.nodes["s"]["value"].square().sum((-2, -1))


class FixedTensor(Shrink):
    def __init__(self, weight=1.0) -> None:
        super().__init__(weight)
        self.target = torch.zeros(2)


class NoSuper(Shrink):
    def __init__(self) -> None:
        nn.Module.__init__(self)


class Nameless(Shrink):
    name = ""


class TrainsOnlyWithGradients(Shrink):
    def forward(self, model_trace, guide_trace, batch):
        return self.latents(guide_trace).mean() * (2.0 if torch.is_grad_enabled() else 1.0)


class UnknownSite(Penalty):
    def forward(self, model_trace, guide_trace, batch):
        return guide_trace.nodes["salient"]["value"].square().mean()


PENALTIES = [
    (UnknownSite, r"raised KeyError: 'salient'. .*Sites of the guide: \['z', 's'\]"),
    (PerCell, r"returned shape \[8\], not a scalar.*mean"),
    (Number, "returned 1.0, not a scalar tensor"),
    (Infinite, "its value is inf"),
    (EmptyMean, "not finite for a mini-batch of background cells only.*clamped"),
    (NormAtZero, "not finite for a mini-batch of background cells only"),
    (NeedsTwo, "a mini-batch of a single cell raised IndexError"),
    (WithoutGradient, "its gradient reaches no parameter of the model or the guide"),
    (UnusedParameter, r"no gradient reaches \['spare'\] in its value or its own_loss"),
    (Leaks, "the gradient of own_loss reaches the model or the guide.*Detach"),
    (Noisy, "evaluating it twice gives different numbers.*no random numbers"),
    (Counts, r"gives different numbers, and changes \['penalties.0.calls'\]"),
    (AddsParticles, "with 64 vectorised particles it is .* average over particles"),
    (ListsParticles, r"with vectorised particles it returned shape \[64\]"),
    (FixedTensor, "'target' holds a tensor"),
    (NoSuper, r"it has no weight.*super\(\).__init__"),
    (Nameless, "its name is ''"),
    (TrainsOnlyWithGradients, "evaluating the loss and differentiating it give different numbers"),
]


@pytest.mark.parametrize(("cls", "message"), PENALTIES, ids=lambda p: getattr(p, "__name__", ""))
def test_defects_of_penalties_are_found(cls, message) -> None:
    with fails(f"(?s)^{cls.__name__}: .*{message}"):
        check_penalty(cls())


def test_a_good_penalty_passes_and_is_left_alone() -> None:
    penalty = Shrink(0.5)
    check_penalty(penalty)
    assert penalty.training
    with fails("it is not a Penalty"):
        check_penalty(nn.Linear(2, 2))
