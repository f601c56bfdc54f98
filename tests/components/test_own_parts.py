"""Mistakes in a prior, likelihood, guide or penalty of one's own are named, before any training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from training_helpers import make_model, train

from pyro_contrastive import (
    HSIC,
    MMD,
    ContrastiveGuide,
    ContrastiveVAE,
    FixedPrior,
    FullCovarianceGuide,
    Likelihood,
    MixtureOfGaussians,
    NegativeBinomial,
    Penalty,
    Prior,
    StandardNormal,
)

N_SALIENT = 2  # of training_helpers


def prior(forward: Any) -> Prior:
    """Return a prior with this ``forward(batch)``."""
    return type("MyPrior", (Prior,), {"forward": lambda self, batch: forward(batch)})()


def likelihood(forward: Any, **attributes: Any) -> Likelihood:
    """Return a likelihood with this ``forward(heads, library)``."""
    members = {"heads": ("scale",), "forward": lambda self, *given: forward(*given)} | attributes
    return type("MyLikelihood", (Likelihood,), members)()


def penalty(forward: Any) -> Penalty:
    """Return a penalty with this ``forward(model_trace, guide_trace)``."""
    return type("MyPenalty", (Penalty,), {"forward": lambda self, m, g, b: forward(m, g)})()


def poisson(heads: Mapping[str, Tensor], library: Tensor) -> Any:
    return dist.Poisson(library * heads["scale"]).to_event(1)


def z_of(guide_trace: Any) -> Tensor:
    return guide_trace.nodes["z"]["value"]


PRIORS = [
    (lambda _: 1.0, TypeError, "forward returned float"),
    (lambda _: None, TypeError, "forward returned NoneType"),
    (lambda _: torch.zeros(2), TypeError, "forward returned torch.Tensor"),
    (
        lambda _: torch.distributions.Normal(torch.zeros(2), 1.0),
        TypeError,
        r"forward returned torch.distributions.normal.Normal, not a distribution of pyro",
    ),
    (lambda _: dist.Normal(torch.zeros(2), 1.0), ValueError, r"event shape \[\], .*to_event\(1\)"),
    (
        lambda _: dist.Normal(torch.zeros(3), 1.0).to_event(1),
        ValueError,
        r"event shape \[3\], which must be \[2\]: check the sizes",
    ),
    (
        lambda _: dist.Normal(torch.zeros(4, 2), 1.0).to_event(1),
        ValueError,
        r"batch shape \[4\], which must be \[\d+\], the cells, or \[\]",
    ),
]


@pytest.mark.parametrize(("forward", "kind", "message"), PRIORS)
def test_what_a_prior_returns_is_looked_at(forward, kind, message):
    model = make_model(salient_prior=prior(forward))
    with pytest.raises(kind, match=rf"^MyPrior \(salient_prior\): .*{message}") as caught:
        train(model)
    assert "testing.check_prior" in "".join(caught.value.__notes__)
    assert model.history is None or len(model.history) == 0


@pytest.mark.parametrize("shape", [(N_SALIENT,), (1, N_SALIENT)])
def test_a_prior_may_be_the_same_for_all_cells(shape):
    train(
        make_model(salient_prior=prior(lambda _: dist.Normal(torch.zeros(shape), 1.0).to_event(1)))
    )


LIKELIHOODS = [
    (lambda heads, _: heads["scale"], TypeError, "forward returned torch.Tensor"),
    (
        lambda heads, library: dist.Poisson(library * heads["scale"]),
        ValueError,
        r"event shape \[\], which must be \[10\]",
    ),
    (
        lambda heads, library: dist.Poisson((library * heads["scale"]).sum(0)).to_event(1),
        ValueError,
        r"batch shape \[\], which must be \[\d+\], the cells\.",
    ),
]


@pytest.mark.parametrize(("forward", "kind", "message"), LIKELIHOODS)
def test_what_a_likelihood_returns_is_looked_at(forward, kind, message):
    with pytest.raises(kind, match=rf"^MyLikelihood \(likelihood\): .*{message}"):
        train(make_model(likelihood=likelihood(forward)))


def test_a_head_that_was_not_declared_is_named_with_those_that_were():
    model = make_model(likelihood=likelihood(lambda heads, _: heads["disp"]))
    with pytest.raises(KeyError, match=r"'disp' is not among the heads .*\['scale'\]") as caught:
        train(model)
    assert "in MyLikelihood (likelihood)" in caught.value.__notes__[0]
    assert "testing.check_likelihood tests it by itself" in caught.value.__notes__[0]


def test_a_build_without_that_of_the_base_class_is_named():
    mine = likelihood(poisson, build=lambda self, *sizes: None)
    with pytest.raises(AttributeError, match=r"MyLikelihood.build made no layers .*super\(\)"):
        train(make_model(likelihood=mine))


PENALTIES = [
    (lambda _, g: 1.0, TypeError, "forward returned a float, not a torch tensor"),
    (lambda _, g: None, TypeError, "forward returned a NoneType"),
    (lambda _, g: z_of(g).pow(2).sum().item(), TypeError, "returned a float"),
    (lambda _, g: z_of(g).pow(2).sum(-1), ValueError, r"returned shape \[\d+\]; .*mean over cells"),
    (lambda _, g: z_of(g).pow(2).mean().reshape(1), ValueError, r"returned shape \[1\]"),
]


@pytest.mark.parametrize(("forward", "kind", "message"), PENALTIES)
def test_what_a_penalty_returns_is_looked_at(forward, kind, message):
    with pytest.raises(kind, match=rf"^MyPenalty \(penalties\): .*{message}"):
        train(make_model(penalties=[penalty(forward)]))


def test_a_site_that_is_not_there_is_answered_by_those_that_are():
    mine = penalty(lambda _, g: g.nodes["salient"]["value"].mean())
    with pytest.raises(KeyError, match="salient") as caught:
        train(make_model(penalties=[MMD(), mine]))
    notes = "".join(caught.value.__notes__)
    assert "in MyPenalty (penalties); pyro_contrastive.testing.check_penalty" in notes
    assert "'z', 's', 'library' and 'x'" in notes


IDLE = [
    lambda _, g: z_of(g).detach().mean(),
    lambda _, g: (z_of(g) > 0).float().mean(),
    lambda _, g: torch.as_tensor(np.square(z_of(g).detach().numpy()).mean()),
]


@pytest.mark.parametrize("forward", IDLE)
def test_a_penalty_without_gradient_is_warned_of(forward):
    model = make_model(penalties=[penalty(forward)])
    with pytest.warns(UserWarning, match=r"MyPenalty \(penalties\) has no gradient"):
        train(model)


def test_a_penalty_with_gradient_or_without_weight_is_not():
    still = penalty(lambda _, g: z_of(g).detach().mean())
    still.weight = 0.0
    train(make_model(penalties=[still]))
    train(make_model(penalties=[penalty(lambda _, g: z_of(g).pow(2).mean())]))


class LooseTensor(Prior):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(N_SALIENT, requires_grad=True)

    def forward(self, batch: Any) -> Any:
        return dist.Normal(self.mean, 1.0).to_event(1)


def test_a_tensor_that_would_not_be_trained_is_refused():
    with pytest.raises(
        ValueError, match=r"LooseTensor \(salient_prior\): the tensor 'mean' requires"
    ):
        train(make_model(salient_prior=LooseTensor()))


# What the constructors are given


class Uninitialised(Penalty):
    def __init__(self) -> None:
        self.weight = 1.0

    def forward(self, model_trace: Any, guide_trace: Any, batch: Any) -> Any:
        raise AssertionError


GIVEN = [
    ({"likelihood": "nb"}, "likelihood must be an object of a pyro_contrastive.Likelihood.*'nb'"),
    ({"likelihood": NegativeBinomial}, r"is a class; give an object of it, NegativeBinomial\("),
    ({"likelihood": MMD()}, "not a MMD"),
    ({"likelihood": likelihood(poisson, heads="scale")}, r"a tuple of names, \('scale',\)"),
    ({"salient_prior": StandardNormal}, "the class StandardNormal: give an object"),
    (
        {"guide": lambda batch: None},
        "guide must be an object of a pyro_contrastive.ContrastiveGuide, or of a subclass of your "
        "own; not a function",
    ),
    ({"guide": FullCovarianceGuide}, r"is a class; give an object of it, FullCovarianceGuide\("),
    ({"guide": "full"}, "not 'full'"),
    ({"penalties": MMD()}, r"penalties must be a list: penalties=\[MMD\(...\)\]"),
    ({"penalties": MMD}, r"penalties must be a list: penalties=\[MMD\(...\)\]"),
    ({"penalties": [MMD]}, r"penalties: MMD is a class; give an object of it, MMD\(...\)"),
    ({"penalties": [1.0]}, "penalties must be an object of a pyro_contrastive.Penalty.*float"),
    ({"penalties": [Uninitialised()]}, r"Uninitialised.__init__ must call super\(\).__init__\(\)"),
]


@pytest.mark.parametrize(("given", "message"), GIVEN, ids=range(len(GIVEN)))
@pytest.mark.parametrize("make", [make_model, lambda **given: ContrastiveVAE(10, **given)])
def test_what_is_no_part_is_refused_when_the_model_is_made(make, given, message):
    with pytest.raises(TypeError, match=message):
        make(**given)


def test_a_likelihood_without_heads_is_refused():
    class Headless(Likelihood):
        def forward(self, heads: Any, library: Any) -> Any:
            raise AssertionError

    with pytest.raises(TypeError, match=r"Headless does not say which heads .*\(\"scale\",\)"):
        make_model(likelihood=Headless())


# One part, one model


def test_a_prior_with_parameters_belongs_to_one_model():
    learned = MixtureOfGaussians(N_SALIENT, n_components=2)
    make_model(salient_prior=learned)
    with pytest.raises(ValueError, match=r"salient_prior: this MixtureOfGaussians .* already"):
        make_model(salient_prior=learned)
    make_model(salient_prior=copy.deepcopy(learned))


def test_one_without_may_be_given_to_several_and_one_prior_to_both_latents():
    fixed = FixedPrior(dist.Laplace(0.0, 1.0), N_SALIENT)
    for _ in range(2):
        make_model(salient_prior=fixed, penalties=[HSIC()])
    both = MixtureOfGaussians(N_SALIENT, n_components=2)
    model = make_model(salient_prior=both, background_prior=both, n_background_latent=N_SALIENT)
    assert isinstance(model.module.model.salient_prior, nn.Module)


def test_a_model_that_could_not_be_made_keeps_no_part():
    learned = MixtureOfGaussians(N_SALIENT, n_components=2)
    with pytest.raises(ValueError, match="n_layers"):
        make_model(salient_prior=learned, n_layers=0)
    make_model(salient_prior=learned)


# Guides


def guide(draw_of: Any) -> ContrastiveGuide:
    """Return a guide that draws what ``draw_of(site, distribution, batch)`` does for each site."""

    def forward(self: ContrastiveGuide, batch: Any) -> None:
        with pyro.plate("cells", len(batch), dim=-1):
            for site, (mean, variance) in self.encode(batch).items():
                draw_of(site, self.factor(site, mean, variance), batch)

    return type("MyGuide", (ContrastiveGuide,), {"forward": forward})()


def leave_out(site: str, distribution: Any, batch: Any) -> None:
    if site != "s":
        pyro.sample(site, distribution)


def add(site: str, distribution: Any, batch: Any) -> None:
    pyro.sample(site, distribution)
    pyro.sample(f"{site}_scale", dist.Normal(torch.zeros(len(batch)), 1.0))


def flatten(site: str, distribution: Any, batch: Any) -> None:
    pyro.sample(site, dist.Normal(torch.zeros(len(batch)), 1.0))


def auxiliary(site: str, distribution: Any, batch: Any) -> None:
    zero = torch.zeros(len(batch))
    pyro.sample(f"{site}_aside", dist.Normal(zero, 1.0), infer={"is_auxiliary": True})
    pyro.sample(site, distribution)


GUIDES = [
    (leave_out, r"does not draw the site 's', which the model has: .* \['z', 's'\], .* \['z'\]"),
    (add, r"draws the site '._scale', which the model does not have: .*\['z', 's'\].*is_auxiliary"),
    (flatten, r"draws the site '.' with shape \[\d+\]; the model has \[\d+, \d\] there"),
]


@pytest.mark.parametrize(("draw_of", "message"), GUIDES)
def test_a_guide_that_does_not_draw_the_sites_of_the_model_is_refused(draw_of, message):
    model = make_model(guide=guide(draw_of))
    with pytest.raises(ValueError, match=rf"^MyGuide \(guide\) {message}") as caught:
        train(model)
    assert "testing.check_guide" in "".join(caught.value.__notes__)
    assert model.history is None or len(model.history) == 0


def test_a_guide_may_draw_auxiliary_sites():
    train(make_model(guide=guide(auxiliary)))


def test_a_guide_belongs_to_one_model_and_builds_on_the_base_class():
    mine = ContrastiveGuide()
    make_model(guide=mine)
    with pytest.raises(ValueError, match="This ContrastiveGuide object already belongs to a model"):
        make_model(guide=mine)
    careless = type("Careless", (ContrastiveGuide,), {"build": lambda self, outline: None})()
    with pytest.raises(AttributeError, match=r"Careless.build must call super\(\).build"):
        make_model(guide=careless)
