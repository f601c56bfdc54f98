"""The best posterior of the guide's family for given cells, fitted cell by cell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_contrastive._tools.torch_tools import evaluating
from pyro_contrastive.analysis.likelihood import losses_of
from pyro_contrastive.analysis.runs import draw_posterior
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import ContrastiveGuide, Moments
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["LocalFit", "LocalGuide", "fit_local"]


@dataclass(frozen=True)
class LocalFit:
    """How a local guide is optimised.

    Parameters
    ----------
    n_steps
        Steps of Adam, its learning rate falling linearly to 0.
    lr
        Learning rate at the start. Adam moves a parameter by at most about this much in a step,
        whatever the gradient; moments are on the scale of the latents and of log variances.
    n_particles
        Posterior draws per step.
    """

    n_steps: int = 200
    lr: float = 0.1
    n_particles: int = 4


class LocalGuide(nn.Module):
    """The guide's program with free moments for every cell, in place of the encoders' output.

    It starts at the encoders' output. Its only parameters are these moments.

    Parameters
    ----------
    guide
        Guide whose families to use; an instance of `ContrastiveGuide`.
    batch
        The cells.

    Raises
    ------
    TypeError
        If the guide is another program, whose moments are not known.
    """

    def __init__(self, guide: nn.Module, batch: CellBatch) -> None:
        super().__init__()
        if not isinstance(guide, ContrastiveGuide):
            msg = (
                f"A local guide takes the moments of a ContrastiveGuide as its parameters; this "
                f"model has a {type(guide).__name__}, which may have none."
            )
            raise TypeError(msg)
        with torch.no_grad():
            moments = guide.encode(batch)
        self._guide = (guide,)  # in a tuple, so that its parameters are not those of this module
        self.means = nn.ParameterDict({site: mean.clone() for site, (mean, _) in moments.items()})
        self.log_variances = nn.ParameterDict(
            {site: variance.log() for site, (_, variance) in moments.items()}
        )

    def moments(self) -> dict[str, Moments]:
        """Mean and variance of each site, ``[cells, latents]``; of the log of a positive one."""
        return {site: (mean, self.log_variances[site].exp()) for site, mean in self.means.items()}

    def forward(self, batch: CellBatch) -> None:
        """Draw the latents of the same cells."""
        self._guide[0].draw(self.moments(), batch)

    def fixed(self, batch: CellBatch) -> None:
        """Draw the latents from moments that get no gradient."""
        moments = {s: (mean.detach(), var.detach()) for s, (mean, var) in self.moments().items()}
        self._guide[0].draw(moments, batch)


def fit_local(
    vae: ContrastiveVAE, batch: CellBatch, settings: LocalFit | None = None
) -> LocalGuide:
    """Maximise the ELBO of each cell over the moments of its posterior, the decoder fixed.

    The cells do not influence each other: the sum of their ELBOs is maximised, and Adam treats
    every moment by itself.

    Parameters
    ----------
    vae
        The model, which is left unchanged.
    batch
        The cells.
    settings
        How to optimise. Default: :class:`LocalFit`.
    """
    given = settings or LocalFit()
    with evaluating(vae):
        local = LocalGuide(vae.guide, batch)
        parameters = list(local.parameters())
        # A short memory of squared gradients: the first are by far the largest, and with Adam's
        # usual 0.999 they would still slow it down at the end.
        optimizer = torch.optim.Adam(parameters, lr=given.lr, betas=(0.9, 0.95))
        for step in range(given.n_steps):
            optimizer.param_groups[0]["lr"] = given.lr * (1 - step / given.n_steps)
            with torch.enable_grad():
                loss = _negative_elbo(vae, batch, given.n_particles, local)
                # Not backward(), which would leave gradients on the decoder's parameters.
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return local.requires_grad_(False)


def _negative_elbo(
    vae: ContrastiveVAE, batch: CellBatch, n_samples: int, local: LocalGuide
) -> Tensor:
    """Return the sum over cells, for its gradient in the moments.

    The density of the draws is taken at moments without a gradient. The part of the gradient that
    this leaves out, the score, is 0 on average, and without it the gradient has no noise where the
    guide is exact (Roeder, Wu & Duvenaud, "Sticking the landing", NeurIPS 2017).
    """
    draws = draw_posterior(vae, batch, n_samples, guide=local)
    density = poutine.replay(local.fixed, trace=draws)
    terms = losses_of(vae, batch, n_samples, analytic=False, guide=density)
    shape = (n_samples, len(batch))
    return torch.stack([term.expand(shape).mean(0).sum() for term in terms.values()]).sum()
