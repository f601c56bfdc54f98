"""The distribution of counts whose log-density is fused with the decoder's last layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pyro.distributions import Distribution, TorchDistribution, constraints
from torch import Size, Tensor

from pyro_contrastive.density.fused import decoded_log_density
from pyro_contrastive.density.heads import SCALE, Layer
from pyro_contrastive.density.ways import Way, can_fuse, log_way


class DecodedCounts(TorchDistribution):
    """A (zero-inflated) negative binomial over genes that knows the layers behind its parameters.

    It delegates everything to the distribution that `make` returns, except :meth:`log_prob`, which
    evaluates layer, softmax and density as one function, in half the time. The heads are not
    evaluated unless something else asks for them.

    Parameters
    ----------
    make
        Returns the distribution, event shape ``[genes]``.
    library
        Library size on the natural scale, ``[cells, 1]``.
    hidden
        The decoder's last hidden layer, ``[cells, n_hidden]``.
    inverse_dispersion
        Broadcastable to ``[cells, genes]``.
    scale, dropout
        Weight and bias of the layers before the softmax, and of the logits of a structural zero.
    half
        Multiply matrices in bfloat16.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support: ClassVar = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample: ClassVar = False

    def __init__(
        self,
        make: Callable[[], Distribution],
        *,
        library: Tensor,
        hidden: Tensor,
        inverse_dispersion: Tensor,
        scale: Layer,
        dropout: Layer | None,
        half: bool = False,
    ) -> None:
        self._make = make
        self._arguments = (hidden, library, inverse_dispersion, scale, dropout)
        self._half = half
        super().__init__(hidden.shape[:1], scale[0].shape[:1], validate_args=False)

    @cached_property
    def whole(self) -> Any:
        """The distribution made from separate heads."""
        return self._make()

    @property
    def base_dist(self) -> Any:
        """The distribution of single counts, of batch shape ``[cells, genes]``."""
        return self.whole.base_dist

    @property
    def mean(self) -> Tensor:
        """Expected counts, ``[cells, genes]``."""
        mean: Tensor = self.whole.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """Variances of the counts, ``[cells, genes]``."""
        variance: Tensor = self.whole.variance
        return variance

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution with a larger batch shape."""
        return self if Size(batch_shape) == self.batch_shape else self.whole.expand(batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Natural log-probability (nats) of the counts of each cell.

        Parameters
        ----------
        value
            Counts, ``[..., cells, genes]``.
        """
        log_prob: Tensor
        if value.shape == self.batch_shape + self.event_shape:
            log_prob = decoded_log_density(value, *self._arguments, half=self._half)
        else:
            log_way(Way.heads, "the counts are not those of one mini-batch")
            log_prob = self.whole.log_prob(value)
        return log_prob

    def sample(self, sample_shape: Sequence[int] = Size()) -> Tensor:
        """Draw counts, ``[*sample_shape, cells, genes]``, without gradient."""
        counts: Tensor = self.whole.sample(Size(sample_shape))
        return counts


def decoded_counts(
    make: Callable[[], Distribution],
    heads: Mapping[str, Tensor],
    library: Tensor,
    inverse_dispersion: Tensor,
    dropout: str | None,
) -> Distribution:
    """Return :class:`DecodedCounts` where `ways.can_fuse` allows it, else `make()`.

    Parameters
    ----------
    make, library, inverse_dispersion
        See :class:`DecodedCounts`.
    heads
        The decoder's output.
    dropout
        Name of the head with the logits of a structural zero; ``None`` without zero inflation.
    """
    names = [SCALE] if dropout is None else [SCALE, dropout]
    if not can_fuse(heads, names, library):
        return make()
    scale, *others = heads.layers(names)
    return DecodedCounts(
        make,
        library=library,
        hidden=heads.hidden,
        inverse_dispersion=inverse_dispersion,
        scale=scale,
        dropout=others[0] if others else None,
        half=heads.half,
    )
