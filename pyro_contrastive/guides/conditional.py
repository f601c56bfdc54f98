"""A posterior in which the encoder of s also sees z."""

from __future__ import annotations

import pyro
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import ContrastiveGuide, Moments
from pyro_contrastive.model import CELLS
from pyro_contrastive.networks import Encoder
from pyro_contrastive.outline import ModelOutline


class ConditionalGuide(ContrastiveGuide):
    r"""Posterior in which s depends on z: its encoder sees the counts and the draw of z.

    ::

        for each cell n:
            z_n ~ Normal(mean_z(x_n), variance_z(x_n))
            s_n ~ Normal(mean_s(x_n, z_n), variance_s(x_n, z_n))
            l_n ~ LogNormal(mean_l(x_n), variance_l(x_n))

    Given z, the counts say better what is left for s to explain.

    :meth:`encode` returns the moments of s at the mean of z. Its marginal ones have no closed form,
    and are estimated from draws. A :class:`~pyro_contrastive.VampPrior` of s needs another guide,
    because it has no z to show to this encoder.
    """

    def _salient_encoder(self, outline: ModelOutline) -> Encoder:
        return self._encoder(outline, outline.n_salient_latent, n_seen=outline.n_background_latent)

    def encode(self, batch: CellBatch, only: str | None = None) -> dict[str, Moments]:
        """Evaluate the encoders; moments of s are those at the mean of z."""
        found: dict[str, Moments] = {}
        for site in ("z", "s", "library"):
            if only not in {None, site} or (site == "library" and self.library_encoder is None):
                continue
            if site == "s":
                z = found["z"] if "z" in found else super().encode(batch, "z")["z"]
                found["s"] = self._given(z[0], batch)
            else:
                found |= super().encode(batch, site)
        return found

    def forward(self, batch: CellBatch) -> None:
        """Encode the counts of `batch` and draw the latents."""
        moments = {"z": super().encode(batch, "z")["z"]}
        if self.library_encoder is not None:
            moments |= super().encode(batch, "library")
        self.draw(moments, batch)

    def draw(self, moments: dict[str, Moments], batch: CellBatch) -> None:
        """Draw z, s and, if latent, the library size.

        Where `moments` have none of s, they are what its encoder returns for the draw of z.
        """
        self.shared()
        with pyro.plate(CELLS, len(batch), dim=-1):
            z = self._sample("z", self.factor("z", *moments["z"]), moments["z"])
            of_s = moments["s"] if "s" in moments else self._given(self._real("z", z), batch)
            self._sample("s", self.factor("s", *of_s), of_s)
            if "library" in moments:
                found = moments["library"]
                self._sample("library", self.factor("library", *found), found)

    def _given(self, z: Tensor, batch: CellBatch) -> Moments:
        """Moments of s given z on its real scale, ``[..., cells, latents]``."""
        # Penalties on s of background cells are not to change their z.
        z = torch.where(batch.is_target.unsqueeze(-1), z, z.detach())
        covariates = self.covariates(batch, like=z)
        covariates = covariates.expand(*z.shape[:-1], covariates.shape[-1])
        weight = self.s_encoder.input_weight
        if batch.rows is not None and self.takes_logs:
            product = self._sparse_input(batch.rows).linear(weight)
        else:
            product = F.linear(self._dense_input(batch), weight)
        moments = self.s_encoder.of_product(product, torch.cat([covariates, z], dim=-1))
        return self._where_used(moments, batch)

    def has_closed_marginal(self, site: str) -> bool:
        """Return whether it is another latent than s."""
        return site != "s" and super().has_closed_marginal(site)
