"""Log-density of a cell's counts as a function of the decoder's last hidden layer.

The last layer, the softmax over genes and the density are one function here, with a gradient in
closed form: with m the mean, rho the softmax and D the derivative of the log-density by log m, the
derivative by the logits of the softmax is ``D - rho sum(D)``.

This saves memory traffic, which is most of the cost. Automatic differentiation would read and write
the arrays of [cells, genes] once for every operation; here each is written once in the forward
pass, and the backward pass is matrix products only. The weights of the cells, which arrive with the
gradient, multiply the hidden layer instead of the slopes, because it is narrow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from pyro_contrastive.density.counts import count_terms, log_density
from pyro_contrastive.density.heads import Layer, linear, smallest_scale
from pyro_contrastive.density.rows import Slopes, by_rows
from pyro_contrastive.density.ways import can_use_rows


def decoded_log_density(
    value: Tensor,
    hidden: Tensor,
    library: Tensor,
    inverse_dispersion: Tensor,
    scale: Layer,
    dropout: Layer | None = None,
    *,
    half: bool = False,
) -> Tensor:
    """Log-probability of the counts of each cell, ``[cells]``, summed over genes.

    Parameters
    ----------
    value
        Counts, ``[cells, genes]``.
    hidden
        The decoder's last hidden layer, ``[cells, n_hidden]``.
    library
        Library size on the natural scale, ``[cells, 1]``.
    inverse_dispersion
        Broadcastable to ``[cells, genes]``.
    scale, dropout
        Layers that give the logits of normalised expression and of a structural zero; ``None`` for
        no zero inflation.
    half
        Multiply matrices in bfloat16, here and in the gradient.
    """
    w, b = dropout if dropout is not None else (None, None)
    log_prob: Tensor = _DecodedLogDensity.apply(  # type: ignore[no-untyped-call]
        value, hidden, library, inverse_dispersion, *scale, w, b, half
    )
    return log_prob


def by_tensors(
    value: Tensor, scale: Tensor, library: Tensor, t: Tensor, logits: Tensor | None
) -> Slopes:
    """Evaluate with torch's functions. Overwrites `scale`, the logits of the scale."""
    # In place wherever possible: most of the time is memory traffic.
    rho = torch.softmax(scale, -1, out=scale).add_(smallest_scale(scale.dtype))
    mean = rho * library
    terms = count_terms(value, mean, t, logits)
    slope = terms.d_mean.mul_(mean)  # by log m
    total = slope.sum(-1, keepdim=True)
    by_scale = torch.addcmul(slope, rho, total, value=-1, out=rho)
    log_prob = terms.value.sum(-1)
    return Slopes(log_prob, by_scale, terms.d_logits, terms.d_inverse_dispersion, total)


class _DecodedLogDensity(Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        hidden: Tensor,
        library: Tensor,
        t: Tensor,
        w_scale: Tensor,
        b_scale: Tensor,
        w_dropout: Tensor | None,
        b_dropout: Tensor | None,
        half: bool,
    ) -> Tensor:
        ctx.half = half
        scale = linear(hidden, w_scale, b_scale, half)
        logits = None if w_dropout is None else linear(hidden, w_dropout, b_dropout, half)
        evaluate = by_rows if can_use_rows(value, scale, library, t) else by_tensors
        log_prob, *slopes = evaluate(value, scale, library, t, logits)
        # The slopes come with the value, since both are made of the same intermediate arrays.
        ctx.save_for_backward(
            *(value, hidden, library, t, w_scale, b_scale, w_dropout, b_dropout), *slopes
        )
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            return _differentiable_gradient(saved[:8], ctx.needs_input_grad, grad, ctx.half)
        hidden, library, t, w_scale, _, w_dropout = saved[1:7]
        d_scale, d_logits, d_t, total = saved[8:]
        _, by_hidden, by_library, by_t, *by_layers, _ = ctx.needs_input_grad
        column = grad.unsqueeze(-1)
        # sum_n grad_n slope_ng hidden_nk: weight the narrow factor, [cells, n_hidden].
        weighted = hidden * column
        into_hidden = into_library = into_t = None
        if by_hidden:
            into_hidden = _product(d_scale, w_scale, ctx.half)
            if w_dropout is not None:
                into_hidden += _product(d_logits, w_dropout, ctx.half)
            into_hidden.mul_(column)
        if by_library:
            into_library = total / library * column
        if by_t:
            per_gene = t.shape == d_t.shape[1:]
            into_t = d_t.t() @ grad if per_gene else (d_t * column).sum_to_size(t.shape)
        into_layers: list[Tensor | None] = []
        # Not needed where only the latents of cells are improved.
        for slopes, by_weight, by_bias in zip(
            (d_scale, d_logits), by_layers[::2], by_layers[1::2], strict=True
        ):
            if slopes is None:
                into_layers += [None, None]
                continue
            into_layers += [
                _product(slopes.t(), weighted, ctx.half) if by_weight else None,
                slopes.t() @ grad if by_bias else None,
            ]
        return None, into_hidden, into_library, into_t, *into_layers, None


def _product(a: Tensor, b: Tensor, half: bool) -> Tensor:
    return (a.bfloat16() @ b.bfloat16()).to(a.dtype) if half else a @ b


def _differentiable_gradient(
    inputs: tuple[Any, ...], needed: tuple[bool, ...], grad: Tensor, half: bool
) -> tuple[Tensor | None, ...]:
    value, hidden, library, t, w_scale, b_scale, w_dropout, b_dropout = inputs
    rho = linear(hidden, w_scale, b_scale, half).softmax(-1)
    logits = None if w_dropout is None else linear(hidden, w_dropout, b_dropout, half)
    rate = (rho + smallest_scale(rho.dtype)) * library
    log_prob = log_density(value, rate, t, logits).sum(-1)
    wanted = [i for i, is_needed in enumerate(needed) if is_needed]
    found = torch.autograd.grad(log_prob, [inputs[i] for i in wanted], grad, create_graph=True)
    gradients: list[Tensor | None] = [None] * len(needed)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)
