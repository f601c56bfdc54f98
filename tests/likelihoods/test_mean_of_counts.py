"""The sites `mean` and `mean_scale`: the mean of the data that the model draws."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import make_vae
from pyro import poutine
from small_model import make, small_adata

from pyro_contrastive import (
    Bernoulli,
    CellBatch,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

COUNTS = [
    ZeroInflatedNegativeBinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedPoisson,
    Bernoulli,
    lambda: NegativeBinomial(dispersion="gene-cell"),
]


def latents_of(n_cells):
    generator = torch.Generator().manual_seed(0)
    return {
        "z": torch.randn(n_cells, 3, generator=generator),
        "s": torch.randn(n_cells, 2, generator=generator),
    }


@pytest.mark.parametrize("made", COUNTS)
def test_the_mean_is_that_of_many_draws(made) -> None:
    torch.manual_seed(1)
    vae = make_vae(likelihood=made()).eval()
    library = torch.tensor([[20.0], [150.0], [400.0]])
    batch = CellBatch(condition=torch.tensor([0, 1, 1]), library=library)
    with torch.no_grad():
        model = poutine.condition(vae.model, latents_of(3))
        nodes = poutine.trace(model).get_trace(batch).nodes
        drawn = nodes["x"]["fn"].sample((20_000,))
    error = drawn.std(0) / 20_000**0.5
    assert ((nodes["mean"]["value"] - drawn.mean(0)).abs() < 5 * error + 1e-4).all()
    torch.testing.assert_close(nodes["mean_scale"]["value"] * library, nodes["mean"]["value"])
    scale = nodes["scale"]["value"]
    if "Zero" in type(vae.model.likelihood).__name__:
        assert (nodes["mean_scale"]["value"] < scale).all()
    elif type(vae.model.likelihood) is not Bernoulli:
        torch.testing.assert_close(nodes["mean_scale"]["value"], scale, rtol=1e-4, atol=1e-7)


def test_numbers_that_are_not_counts_have_their_expression() -> None:
    vae = make_vae(likelihood=Gaussian()).eval()
    batch = CellBatch(condition=torch.tensor([0, 1]))
    nodes = poutine.trace(poutine.condition(vae.model, latents_of(2))).get_trace(batch).nodes
    torch.testing.assert_close(nodes["mean_scale"]["value"], nodes["scale"]["value"])
    assert "mean" not in nodes
    without = make_vae(likelihood=Gaussian(log1p=False)).eval()
    assert not {"scale", "mean_scale", "mean"} & set(
        poutine.trace(without.model).get_trace(batch).nodes
    )


class Meanless(dist.Poisson):
    """A distribution whose mean has no closed form."""

    @property
    def mean(self):
        raise NotImplementedError


class WithoutMean(Likelihood):
    heads = ("scale",)

    def forward(self, heads, library):
        return Meanless(library * heads["scale"]).to_event(1)


def test_without_a_mean_the_scale_can_be_asked_for() -> None:
    model = make(small_adata(), likelihood=WithoutMean())
    with pytest.raises(ValueError, match=r"has no 'mean_scale'.*override Likelihood.mean_scale"):
        model.get_treatment_effect(n_samples=39)
    effect = model.get_treatment_effect(n_samples=39, quantity="scale", seed=0)["mean"]
    assert np.isfinite(effect).all(axis=None)
    with pytest.raises(ValueError, match="quantity must be 'scale' or 'mean', not 'rate'"):
        model.get_normalized_expression(quantity="rate")


def test_an_effect_on_the_structural_zeros_alone_is_an_effect() -> None:
    model = make(small_adata(), n_layers_decoder=0)
    likelihood = model.module.model.likelihood
    n_z = model.module.n_background_latent
    with torch.no_grad():
        likelihood.layers["scale"].weight[:, n_z : n_z + 2] = 0.0  # s does not touch the scale
        likelihood.layers["dropout"].weight[:, n_z : n_z + 2] = 3.0
    treated = np.arange(12, 26)
    asked = {"indices": treated, "n_samples": 39, "seed": 0}
    scale = model.get_treatment_effect(quantity="scale", **asked)["mean"]
    np.testing.assert_allclose(scale, 0.0, atol=1e-5)
    mean = model.get_treatment_effect(**asked)["mean"]
    assert mean.abs().to_numpy().max() > 0.5
    treated_draws, control_draws = (
        model.get_counterfactual_expression(condition, return_mean=False, **asked)
        for condition in ("treated", "control")
    )
    expected = (np.log2(treated_draws + 1e-5) - np.log2(control_draws + 1e-5)).mean(0)
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-3)


def test_times_the_library_it_is_the_expected_count() -> None:
    adata = small_adata()
    model = make(adata)
    per_unit, counts = (
        model.get_normalized_expression(quantity="mean", library_size=size, seed=0)["salient"]
        for size in (1.0, "latent")
    )
    totals = np.asarray(adata.X.sum(1))
    np.testing.assert_allclose(counts, per_unit * totals, rtol=1e-5)
