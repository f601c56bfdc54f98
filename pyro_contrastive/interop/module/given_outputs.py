"""Model and guide with given draws and distributions, instead of computed ones."""

from __future__ import annotations

import pyro
from pyro import poutine
from pyro.distributions import Distribution
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.density.distributions import (
    NegativeBinomialDistribution,
    ZeroInflatedNegativeBinomialDistribution,
)
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.interop.module import populations as groups
from pyro_contrastive.interop.module.populations import Groups
from pyro_contrastive.model import CELLS, ContrastiveModel


def counts_distribution(px_rate: Tensor, px_r: Tensor, px_dropout: Tensor | None) -> Distribution:
    """Return the (zero-inflated) negative binomial the reference's ``px_*`` describe."""
    if px_dropout is None:
        return NegativeBinomialDistribution(px_rate, px_r).to_event(1)
    return ZeroInflatedNegativeBinomialDistribution(px_rate, px_r, px_dropout).to_event(1)


class GivenOutputs:
    """Model and guide that use given draws and distributions instead of computing them.

    Parameters
    ----------
    model, guide
        The programs to run.
    inference_outputs, generative_outputs
        What `ContrastiveVAE.inference` and `.generative` returned.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        guide: ContrastiveGuide,
        inference_outputs: Groups,
        generative_outputs: Groups,
    ) -> None:
        self._model = model
        self._guide = guide
        latents = {"z": "qz", "s": "qs"}
        if model.library_prior is not None:
            latents["library"] = "ql"
        self.moments = {
            site: (
                groups.join_required(inference_outputs, f"{q}_m"),
                groups.join_required(inference_outputs, f"{q}_v"),
            )
            for site, q in latents.items()
        }
        self.log_library = groups.join_required(inference_outputs, "library")
        draws = {site: groups.join_required(inference_outputs, site) for site in latents}
        if "library" in draws:
            draws["library"] = self.log_library.exp()
        self.draws = groups.trace_of(draws)
        self.px = generative_outputs
        n_draws = draws["z"].shape[0] if draws["z"].ndim > 2 else 1  # noqa: PLR2004
        self.particles = {"num_particles": n_draws, "vectorize_particles": n_draws > 1}

    def guide(self, batch: CellBatch) -> None:
        """Run the factors of the guide with the given moments and draws."""
        poutine.replay(self._guide.draw, trace=self.draws)(self.moments, batch)

    def model(self, batch: CellBatch) -> None:
        """Run the model's priors, and observe the counts under the given distribution."""
        self._model.shared(batch)
        with pyro.plate(CELLS, len(batch), dim=-1):
            self._model.latents(batch)
            pyro.sample("x", self.x_dist(batch), obs=batch.x)

    def x_dist(self, batch: CellBatch) -> Distribution:
        """Return the distribution of the counts that the outputs describe."""
        px_r = groups.join_dispersion(self.px)
        if px_r is not None:
            px_rate = groups.join_required(self.px, "px_rate")
            return counts_distribution(px_rate, px_r, groups.join(self.px, "px_dropout"))
        names = self._model.likelihood.heads
        heads = {name: groups.join_required(self.px, f"px_{name}") for name in names}
        return self._model.x_dist(heads, self.log_library.exp(), batch)
