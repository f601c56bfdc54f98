"""A recording of a step as a CUDA graph: a GPU gets all of its operations at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

CAPTURED_ON = {"cuda"}
"""Types of devices that can."""
_N_FIRST = 3
"""Runs before the one that is captured, in which libraries allocate what they need."""


class Captured:
    """Plays a recording by launching its graph, on inputs of one set of shapes.

    A graph reads and writes the memory it was captured with. Inputs are copied there. Gradients
    stay there, so they hold until the next playing; all else that is found is copied from there.

    Parameters
    ----------
    play
        Function of the inputs that returns a dictionary of what it finds; ``"gradients"`` in it
        are not copied. It is called some times: what it changes is to be put back.
    inputs
        Inputs like those it is to be played on.
    """

    def __init__(self, play: Callable[..., dict[str, Any]], inputs: Sequence[Tensor]) -> None:
        self._play = play  # it owns tensors that the graph reads
        self._inputs = [tensor.clone() for tensor in inputs]
        self._found, self._replay = capture(lambda: play(*self._inputs), inputs[0].device)

    def __call__(self, *inputs: Tensor) -> dict[str, Any]:
        """Play it."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._replay()
        copied = {name: value for name, value in self._found.items() if name != "gradients"}
        return self._found | tree_map(torch.clone, copied)


def capture(
    function: Callable[[], dict[str, Any]], device: torch.device
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Return what a function finds on a GPU, and what makes it find that anew.

    What the function reads must live as long as that is called.
    """
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not say
        try:
            aside.wait_stream(here)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(aside):
                for _ in range(_N_FIRST):
                    function()
                # (In a stream of its own making torch would capture on whatever device came first.)
                with torch.cuda.graph(graph, stream=aside):
                    found = function()
            here.wait_stream(aside)
        finally:  # torch stays in the stream of a capture that failed
            torch.cuda.set_stream(here)
    return found, graph.replay
