"""Exchange what several processes found in a step, so that all of them take the same step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_contrastive.training.finite import NonFiniteLossError
from pyro_contrastive.training.processes import Processes
from pyro_contrastive.training.steps import Evaluated


class Exchange:
    """Averages loss, terms and gradients over processes, weighted by their numbers of cells.

    The loss is a mean over cells, and each process has an equal number of cells of both populations
    (but for a population smaller than a mini-batch), so that this average is the loss of all cells
    of the step together. All tensors travel as one.

    Parameters
    ----------
    processes
        The processes.
    parameters
        Those whose gradients to average, in the same order everywhere.
    """

    def __init__(self, processes: Processes, parameters: Sequence[Tensor]) -> None:
        self.processes = processes
        self.parameters = list(parameters)
        self._layout: tuple[tuple[bool, ...], tuple[str, ...]] | None = None
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []
        self._n_interrupted = torch.zeros(())

    def __call__(self, own: Evaluated, n_cells: int) -> Evaluated:
        """Return the average over processes; its gradients are left in the parameters."""
        has_gradient, names = self._agreed_layout(own)
        trained = [p for p, has in zip(self.parameters, has_gradient, strict=True) if has]
        if self._flat is None:
            self._flat, self._views = _laid_out(trained, len(names) + 4)
        flat, n_scalars = self._flat, len(names) + 4
        scalars = [own.loss, *(own.terms[name] for name in names), torch.ones_like(own.loss)]
        means = torch.stack([scalar.to(flat).reshape(()) for scalar in scalars])
        is_interrupted = flat.new_full((), float(self.processes.is_interrupted))
        with torch.no_grad():
            for view, parameter in zip(self._views, trained, strict=True):
                if parameter.grad is None:
                    view.zero_()
                else:
                    torch.mul(parameter.grad, n_cells, out=view)
            flat[-n_scalars:-2] = means * n_cells
            flat[-2], flat[-1] = own.total.to(flat), is_interrupted
            self.processes.add_up(flat)
            flat[:-2] /= flat[-3].clone()  # the number of cells of all processes
        for parameter, view in zip(trained, self._views, strict=True):
            parameter.grad = view
        found = flat[-n_scalars:].clone()  # the next step writes to `flat`
        self._n_interrupted = found[-1]
        terms = dict(zip(names, found[1:], strict=False))
        shared = [parameter.grad for parameter in self.parameters]
        return Evaluated(found[0], terms, shared, found[-2])

    def stop_if_interrupted(self) -> None:
        """Raise ``KeyboardInterrupt`` in all processes, if Ctrl-C was pressed in one of them."""
        is_interrupted = bool(self._n_interrupted)
        self._n_interrupted = torch.zeros(())
        if is_interrupted:
            self.processes.is_interrupted = False
            raise KeyboardInterrupt

    def same_error(self, own: NonFiniteLossError, *, is_own: bool) -> NonFiniteLossError:
        """Return the same error in all processes: that of the first whose own step failed."""
        said = self.processes.gather(str(own) if is_own else None)
        for rank, text in enumerate(said):
            if text is not None:
                return NonFiniteLossError(f"In process {rank} of {len(said)}: {text}")
        return own

    def _agreed_layout(self, own: Evaluated) -> tuple[tuple[bool, ...], tuple[str, ...]]:
        """Return which parameters have gradients in any process, and the names of the terms."""
        found = tuple(p.grad is not None for p in self.parameters), tuple(own.terms)
        if self._layout is None:
            everywhere = self.processes.gather(found)
            has_gradient = tuple(
                any(each) for each in zip(*(g for g, _ in everywhere), strict=True)
            )
            self._layout = has_gradient, everywhere[0][1]
        is_new = any(new and not old for new, old in zip(found[0], self._layout[0], strict=True))
        if is_new or set(found[1]) != set(self._layout[1]):
            msg = (
                "The parts of the loss, or the parameters it depends on, differ between steps or "
                "processes; with several processes they must be the same in all."
            )
            raise RuntimeError(msg)
        return self._layout


def _laid_out(parameters: Sequence[Tensor], n_scalars: int) -> tuple[Tensor, list[Tensor]]:
    """Return one tensor for all gradients and some scalars, and views of the gradients in it.

    The views have the strides of the parameters. Encoders' first weights are stored gene by gene,
    and torch's fused optimisers take for granted that gradients are stored in the same order.
    """
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].detach().new_zeros(sum(sizes) + n_scalars)
    parts = flat.split_with_sizes([*sizes, n_scalars])
    pairs = zip(parts, parameters, strict=False)
    return flat, [part.as_strided(p.shape, p.stride()) for part, p in pairs]
