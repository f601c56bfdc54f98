"""Penalties that own a network: an adversary, and a classifier."""

from __future__ import annotations

import torch
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties.base import Penalty, mean_over

MIN_CELLS = 2  # to exchange s between cells
LEAK = 0.2


class TotalCorrelation(Penalty):
    r"""Makes z and s of target cells independent, by a discriminator (cVAE, Abid & Zou 2019).

    .. math:: \mathrm{KL}\big(q(z, s) \,\Vert\, q(z) q(s)\big)
        \approx \frac{1}{N_t} \sum_{n: c_n > 0} D(z_n, s_n)

    averaged over the target cells of the mini-batch; 0 if there are none. D is the logit of a
    discriminator that tells pairs (z, s) of one cell from pairs whose s comes from another target
    cell. At its best D is the log density ratio, and the penalty the mutual information of z and s,
    in nats (Kim & Mnih 2018, FactorVAE). It is an estimate: below the truth while D lags behind,
    and it may be negative. SepVAE's mutual information (Louiset et al. 2023) is the same quantity.

    How it is trained. Encoders and discriminator want opposite things of D, so each gets a loss of
    its own, with the other held fixed: the penalty is evaluated with D's parameters detached,
    :meth:`own_loss` (the discriminator's cross-entropy) with z and s detached. The objective adds
    the gradients of both, so that the one step of any optimiser of all parameters, ``SVI`` or torch
    or ``train``, is a step of each player against the other as it was before. Neither the weight
    nor the KL weight touches the discriminator, which learns during the warm-up. In evaluation mode
    it does not learn, and the penalty draws no random numbers.

    Weights of a few units did all there was to do in simulations. With 30, in a run of 300 steps,
    the encoders outran the discriminator, and z and s ended up more dependent than without.

    cVAE's own code has a linear discriminator. That one cannot tell the pairs apart: z and s have
    the same marginals in both kinds, and only their product differs. Hence the hidden layers.

    Parameters
    ----------
    weight
        Multiplies the value.
    n_background_latent, n_salient_latent
        Dimensions of z and s, as in the model.
    n_hidden, n_layers
        Width and number of the discriminator's hidden layers.
    gain
        Multiplies the discriminator's loss. Adam takes the same step whatever it is, but for its
        ``eps``: that is 0.01 in ``train``, large beside these gradients, and would slow it down.
    annealed
        Whether the penalty grows with the KL weight.

    Raises
    ------
    ValueError
        If a size is not positive, the gain is not, or, when it is used, z or s has other
        dimensions than the discriminator was made for.
    """

    uses_expression = False

    def __init__(
        self,
        weight: float = 1.0,
        n_background_latent: int = 10,
        n_salient_latent: int = 10,
        *,
        n_hidden: int = 64,
        n_layers: int = 2,
        gain: float = 100.0,
        annealed: bool = True,
    ) -> None:
        super().__init__(weight, annealed=annealed)
        sizes = {
            "n_background_latent": n_background_latent,
            "n_salient_latent": n_salient_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                msg = f"TotalCorrelation: {name} must be at least 1, not {size}."
                raise ValueError(msg)
        if not gain > 0:
            msg = f"TotalCorrelation: gain must be positive, not {gain}."
            raise ValueError(msg)
        self.n_background_latent = n_background_latent
        self.n_salient_latent = n_salient_latent
        self.n_hidden = n_hidden
        self.n_layers = n_layers
        self.gain = gain
        n_latent = n_background_latent + n_salient_latent
        hidden = [
            layer
            for i in range(n_layers)
            for layer in (nn.Linear(n_hidden if i else n_latent, n_hidden), nn.LeakyReLU(LEAK))
        ]
        self.discriminator = nn.Sequential(*hidden, nn.Linear(n_hidden, 1))

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the mean logit of the discriminator over target cells."""
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        pairs = torch.cat(self._latents(guide_trace), dim=-1)  # [..., cells, latents]
        logits: Tensor = functional_call(self.discriminator, fixed, (pairs,))
        return mean_over(logits.squeeze(-1), batch.is_target)

    def own_loss(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the discriminator's cross-entropy, times the gain."""
        z, s = (draw.detach() for draw in self._latents(guide_trace))
        other = s[..., another_cell(batch.is_target), :]
        joint = self.discriminator(torch.cat([z, s], dim=-1)).squeeze(-1)
        product = self.discriminator(torch.cat([z, other], dim=-1)).squeeze(-1)
        entropy = mean_over(softplus(-joint) + softplus(product), batch.is_target) / 2
        return self.gain * entropy * (batch.is_target.sum() >= MIN_CELLS)

    def _latents(self, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        z, s = (guide_trace.nodes[site]["value"] for site in "zs")
        made_for = (self.n_background_latent, self.n_salient_latent)
        if (z.shape[-1], s.shape[-1]) != made_for:
            msg = (
                f"TotalCorrelation was made for {made_for[0]} background and {made_for[1]} salient "
                f"latents; the model has {z.shape[-1]} and {s.shape[-1]}. Give it the model's "
                "n_background_latent and n_salient_latent."
            )
            raise ValueError(msg)
        return z, s


def another_cell(chosen: Tensor) -> Tensor:
    """Give each chosen cell another one, at random: a cycle through all of them.

    Unlike in a random permutation no cell keeps its own. Works without knowing how many there are,
    for which a GPU would have to be waited for.

    Parameters
    ----------
    chosen
        Boolean ``[cells]``.

    Returns
    -------
    Indices ``[cells]``: of another chosen cell for chosen ones (its own if it is the only one).
    """
    key = torch.rand(chosen.shape, device=chosen.device) + ~chosen  # chosen ones come first
    order = key.argsort()
    place = torch.arange(len(chosen), device=chosen.device) + 1
    following = order[torch.where(place == chosen.sum(), 0, place).clamp(max=len(chosen) - 1)]
    return torch.empty_like(order).index_copy_(0, order, following)


class SalientClassifier(Penalty):
    r"""Wants s to tell target from background cells (SepVAE, Louiset et al. 2023).

    .. math:: \frac{1}{2} \Big[\overline{\log(1 + e^{-f(s_t)})} + \overline{\log(1 + e^{f(s_b)})}
        \Big], \qquad f(s) = a \cdot s + b

    the cross-entropy of a logistic regression from the draws of s, each population with the same
    weight; a and b are learned with the encoder, which wants the same thing. In nats: log 2 where s
    tells nothing, 0 where it tells all. 0 if a mini-batch lacks one of the populations.

    Background cells get the s that the encoder infers for them; the decoder does not see it.

    Parameters
    ----------
    weight
        Multiplies the value.
    n_salient_latent
        Dimension of s, as in the model.
    annealed
        Whether the penalty grows with the KL weight.

    Raises
    ------
    ValueError
        If the size is not positive, or, when it is used, s has another dimension.
    """

    uses_expression = False

    def __init__(
        self, weight: float = 1.0, n_salient_latent: int = 10, *, annealed: bool = True
    ) -> None:
        super().__init__(weight, annealed=annealed)
        if n_salient_latent < 1:
            msg = f"SalientClassifier: n_salient_latent must be at least 1, not {n_salient_latent}."
            raise ValueError(msg)
        self.n_salient_latent = n_salient_latent
        self.classifier = nn.Linear(n_salient_latent, 1)

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the cross-entropy, averaged over both populations."""
        s = guide_trace.nodes["s"]["value"]  # [..., cells, latents]
        if s.shape[-1] != self.n_salient_latent:
            msg = (
                f"SalientClassifier was made for {self.n_salient_latent} salient latents; the "
                f"model has {s.shape[-1]}. Give it the model's n_salient_latent."
            )
            raise ValueError(msg)
        logits = self.classifier(s).squeeze(-1)
        target = batch.is_target
        entropy = mean_over(softplus(-logits), target) + mean_over(softplus(logits), ~target)
        return entropy / 2 * (target.any() & ~target.all())
