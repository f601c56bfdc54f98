"""A maker of every guide of ours, small, and of a user's: for tests of all of them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyro_contrastive import (
    ConditionalGuide,
    ContrastiveGuide,
    FlowGuide,
    FullCovarianceGuide,
    LowRankGuide,
)


class OwnProgram(ContrastiveGuide):
    """A posterior with heavier tails, and an s whose mean moves with z, by a program of its own."""

    def build(self, outline):
        super().build(outline)
        n_z, n_s = outline.n_background_latent, outline.n_salient_latent
        self.slope = torch.nn.Linear(n_z, n_s)

    def forward(self, batch):
        self.shared()
        moments = self.encode(batch)
        with pyro.plate("cells", len(batch), dim=-1):
            mean, variance = moments.pop("z")
            z = self.draw_of("z", mean, variance)
            mean, variance = moments.pop("s")
            there = batch.is_target.unsqueeze(-1)
            self.draw_of("s", mean + torch.where(there, self.slope(z).tanh(), 0.0), variance)
            for site, (mean, variance) in moments.items():
                self.draw_of(site, mean, variance)

    def draw_of(self, site, mean, variance):
        base = dist.StudentT(10.0, mean, variance.sqrt()).to_event(1)
        transforms = [dist.transforms.ExpTransform()] if self.is_positive(site) else []
        return pyro.sample(site, dist.TransformedDistribution(base, transforms))


OURS = {
    "mean-field": ContrastiveGuide,
    "full": FullCovarianceGuide,
    "low-rank": lambda: LowRankGuide(2),
    "flow": lambda: FlowGuide(2, n_hidden=8),
    "conditional": ConditionalGuide,
}
MADE = OURS | {"own": OwnProgram}
