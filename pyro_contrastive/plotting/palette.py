"""Colours for any number of categories: fixed for few, spread over colour space for many."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray

from pyro_contrastive.plotting.style import FEW, GREY, MANY

__all__ = ["category_colors"]

# Bounds that keep a small point from looking black, white or grey.
_LIGHTNESS, _MIN_CHROMA = (0.3, 0.88), 0.05
_GRID = 18
# OKLab (Ottosson 2020): from linear sRGB to cone responses, from their cube roots to lightness
# and two axes of hue, in which equal steps look about equally large.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@lru_cache(maxsize=32)
def category_colors(n_categories: int) -> tuple[str, ...]:
    """Return as many different colours as there are categories.

    Parameters
    ----------
    n_categories
        Number of categories. Up to 11 colours remain distinct under colour blindness. Each further
        one is the colour farthest from all before it (Glasbey et al., Color Research & Application
        2007), from white and from the grey of background cells; under colour blindness some of
        these may look alike.
    """
    chosen = FEW if n_categories <= len(FEW) else MANY
    if n_categories <= len(chosen):
        return chosen[:n_categories]
    steps = np.linspace(0, 1, _GRID)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    vivid = np.hypot(lab[:, 1], lab[:, 2]) > _MIN_CHROMA
    usable = vivid & (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1])
    rgb, lab = rgb[usable], lab[usable]
    taken = _oklab(np.array([to_rgb(color) for color in (*chosen, GREY, "#FFFFFF")]))
    nearest = np.linalg.norm(lab[:, None] - taken, axis=-1).min(axis=1)
    colors = list(chosen)
    while len(colors) < n_categories:
        farthest = int(nearest.argmax())
        colors.append(to_hex(rgb[farthest]).upper())
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[farthest], axis=1))
    return tuple(colors)


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert sRGB [colours, 3] from 0 to 1 to OKLab."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)  # noqa: PLR2004
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T
