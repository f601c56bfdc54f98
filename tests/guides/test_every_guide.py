"""Every model can have every guide, ours or a user's, and every question can be asked of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from every_guide import MADE, OURS
from pyro.infer import TraceMeanField_ELBO
from small_model import SMALL, make, small_adata

from pyro_contrastive import ContrastiveVI, NegativeBinomial

MODELS: dict[str, Any] = {
    "default": dict,
    "contrastiveVI": lambda: "contrastiveVI",  # with a latent library size
    "MM-cVAE": lambda: "MM-cVAE",
    "SepVAE": lambda: "SepVAE",
    "multiGroupVI": lambda: "multiGroupVI",
    "CPLVM": lambda: "CPLVM",
    "separated": lambda: "separated",
    "analytic KL": lambda: {"elbo": TraceMeanField_ELBO},
    "dispersion prior": lambda: {
        "dispersion_prior": dist.Gamma(2.0, 1.0),
        "likelihood": NegativeBinomial(),
    },
}


def made(guide: str, model: str) -> ContrastiveVI:
    """Make a small model of 26 cells, with two treatments and two batches."""
    adata, given = small_adata(), MODELS[model]()
    if isinstance(given, dict):
        return make(adata, "three", guide=MADE[guide](), **given)
    ContrastiveVI.setup_anndata(
        adata, batch_key="lane", condition_key="three", background="control"
    )
    sizes = {name: SMALL[name] for name in ("n_background_latent", "n_salient_latent")}
    return ContrastiveVI.from_preset(adata, given, n_hidden=8, guide=MADE[guide](), **sizes)


def trained(guide: str, model: str) -> ContrastiveVI:
    torch.manual_seed(0)
    fitted = made(guide, model)
    fitted.train(max_epochs=3, batch_size=5, train_size=0.8, seed=1, enable_progress_bar=False)
    return fitted


QUICK = {"default", "multiGroupVI"}


@pytest.mark.parametrize(
    "model", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]
)
@pytest.mark.parametrize("guide", MADE)
def test_every_question_has_an_answer(guide, model, tmp_path) -> None:
    fitted = trained(guide, model)
    cells = np.arange(0, 26, 2)
    answers = {
        "z": fitted.get_latent_representation(representation_kind="background"),
        "s": fitted.get_latent_representation(),
        "draw": fitted.get_latent_representation(give_mean=False, seed=0),
        "library": fitted.get_latent_library_size(),
        "expression": fitted.get_counterfactual_expression("drug1", indices=cells, seed=0),
        "effect": next(iter(fitted.get_treatment_effect(n_samples=39, seed=0).values())),
        "elbo": fitted.get_elbo(return_mean=False, seed=0),
        "likelihood": fitted.get_marginal_ll(n_mc_samples=3, return_mean=False, seed=0),
        "k": fitted.pareto_k(indices=cells, n_samples=25, seed=0),
        "signal": fitted.latent_signal(seed=0).select_dtypes("number").drop(columns="kl"),
        "refined s": fitted.get_latent_representation(refine=10),
        "refined k": fitted.pareto_k(indices=cells, n_samples=25, refine=10, seed=0),
        "replicate": fitted.posterior_predictive_sample(indices=cells, n_samples=2, seed=0),
    }
    for name, answer in answers.items():
        found = answer.toarray() if hasattr(answer, "toarray") else np.asarray(answer)
        assert np.isfinite(found.astype(float)).all(), name
    fitted.save(tmp_path / "model")
    own = {} if guide in OURS else {"guide": MADE[guide]()}
    loaded = ContrastiveVI.load(tmp_path / "model", adata=fitted.adata, **own)
    assert type(loaded.module.guide) is type(fitted.module.guide)
    np.testing.assert_array_equal(loaded.get_latent_representation(), answers["s"])
    np.testing.assert_array_equal(loaded.get_elbo(return_mean=False, seed=0), answers["elbo"])
