"""A maker of every likelihood, ours and a user's, and what each takes: for tests of all of them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch.nn.functional import softplus

from pyro_contrastive import (
    Bernoulli,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


class MyPoisson(Likelihood):
    """As in the README."""

    heads = ("scale",)

    def forward(self, heads, library):
        return dist.Poisson(library * heads["scale"], is_sparse=True).to_event(1)


class WithoutScale(Likelihood):
    """Counts whose means are what they are, with no normalised expression."""

    heads = ("level",)

    def forward(self, heads, library):
        return dist.Poisson(softplus(heads["level"]) + 1e-6, is_sparse=True).to_event(1)


MADE = {
    "zinb": ZeroInflatedNegativeBinomial,
    "nb": NegativeBinomial,
    "nb by batch": lambda: NegativeBinomial("gene-batch"),
    "zinb by cell": lambda: ZeroInflatedNegativeBinomial("gene-cell"),
    "poisson": Poisson,
    "zip": ZeroInflatedPoisson,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "any gaussian": lambda: Gaussian(log1p=False),
    "my poisson": MyPoisson,
    "without scale": WithoutScale,
}
LAYERS = {"bernoulli": "open", "gaussian": "logs", "any gaussian": "scaled"}
NO_EXPRESSION = {"any gaussian", "without scale"}
NO_LIBRARY = {"gaussian", "any gaussian"}
