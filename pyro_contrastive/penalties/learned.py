"""Penalties that own a network: an adversary, and a classifier."""

from __future__ import annotations

import torch
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties.base import Penalty, mean_over

MIN_CELLS = 2  # to exchange s between cells
LEAK = 0.2


class TotalCorrelation(Penalty):
    r"""Makes z and s of target cells independent, by a discriminator (cVAE, Abid & Zou 2019).

    .. math:: \mathrm{KL}\big(q(z, s) \,\Vert\, q(z) q(s)\big)
        \approx \frac{1}{N_t} \sum_{n: c_n > 0} D(z_n, s_n)

    averaged over the target cells of the mini-batch; 0 if there are none. D is the logit of a
    discriminator that distinguishes pairs (z, s) of one cell from pairs whose s comes from another
    target cell. The optimal D is the log density ratio, for which the penalty is the mutual
    information of z and s, in nats (Kim & Mnih 2018, FactorVAE). It is an estimate: too low while D
    lags behind, and possibly negative. SepVAE's mutual information (Louiset et al. 2023) is the
    same quantity.

    Training: encoders and discriminator have opposite aims, so that each has a loss of its own, in
    which the other is fixed. The penalty is evaluated with D's parameters detached, and
    :meth:`own_loss` (the discriminator's cross-entropy) with z and s detached. The objective adds
    the gradients of both. One step of any optimiser of all parameters, by ``SVI``, torch or
    ``train``, is then a step of each against the other's previous state. Neither the weight nor the
    KL weight changes the discriminator's loss, so that it learns during the warm-up. In evaluation
    mode it does not learn, and the penalty draws no random numbers.

    In simulations, weights of a few units had the full effect. With a weight of 30, in a run of 300
    steps, the encoders outran the discriminator, and z and s ended up more dependent than without
    the penalty.

    cVAE's own code has a linear discriminator, which cannot distinguish the pairs: z and s have the
    same marginals in both kinds, and only their joint distribution differs. Hence the hidden
    layers.

    Parameters
    ----------
    weight
        Multiplies the value.
    n_background_latent, n_salient_latent
        Dimensions of z and s, as in the model.
    n_hidden, n_layers
        Width and number of the discriminator's hidden layers.
    gain
        Multiplies the discriminator's loss. It would not change the steps of Adam but for ``eps``:
        in ``train`` that is 0.01, large compared to these gradients, and would slow them down.
    annealed
        Whether the penalty grows with the KL weight.

    Raises
    ------
    ValueError
        If a size or the gain is not positive; or, when it is used, if z or s has another dimension
        than the discriminator was made for.
    """

    uses_expression = False

    @one_thread()  # weights are drawn
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
        check_arguments(locals(), "TotalCorrelation")
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
        # The gradient passes through the discriminator to the encoders, and leaves it unchanged.
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
        # A factor and not an `if`, which would make the program wait for a GPU.
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
    """Give each chosen cell another one, by a random cycle through all of them.

    Unlike in a random permutation, no cell gets itself. The number of chosen cells is not asked
    for, since that would make the program wait for a GPU.

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
    r"""Makes s distinguish target from background cells (SepVAE, Louiset et al. 2023).

    .. math:: \frac{1}{2} \Big[\overline{\log(1 + e^{-f(s_t)})} + \overline{\log(1 + e^{f(s_b)})}
        \Big], \qquad f(s) = a \cdot s + b

    the cross-entropy of a logistic regression on the draws of s, with the same weight for each
    population; a and b are learned together with the encoder, which has the same aim. In nats: log
    2 where s has no information on the population, 0 where it determines it. 0 if a mini-batch
    lacks one of the populations.

    For background cells it uses the s that the encoder infers, which the decoder does not see.

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
        If the size is not positive; or, when it is used, if s has another dimension.
    """

    uses_expression = False

    @one_thread()  # weights are drawn
    def __init__(
        self, weight: float = 1.0, n_salient_latent: int = 10, *, annealed: bool = True
    ) -> None:
        super().__init__(weight, annealed=annealed)
        check_arguments(locals(), "SalientClassifier")
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
