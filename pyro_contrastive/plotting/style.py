"""Shared by all figures: colours, markers, and Axes without clutter."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct under all common forms of colour blindness; without black, and
# with yellow last, because it is faint on white.
FEW = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# Eleven of Krzywinski's twelve colours for more than seven categories, ordered so that the first
# ones differ most under simulated colour blindness. The twelfth, a pale pink, is left out because
# it equals the light blue for people without blue cones.
MANY = (
    *("#009F81", "#8400CD", "#FFC33B", "#A40122", "#00FCCF", "#FF6E3A"),
    *("#00C2F9", "#9F0162", "#008DF9", "#FF5AAF", "#E20134"),
)
MARKERS = ("o", "^", "s", "D", "v", "P")
LATENT_COLORS = {"background": "#0072B2", "salient": "#D55E00"}
INK, FAINT = "#333333", "#DDDDDD"
# Colour of background cells: about the grey that differs most from the colours above.
GREY = "#BBBBBB"


def new_axes(width: float, height: float) -> Axes:
    """Make a figure of this size in inches, and return its Axes."""
    # Made by pyplot so that notebooks display the figure.
    _, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return axes


def tidy(axes: Axes, *, left: bool = True) -> Axes:
    """Remove the lines of the frame that carry no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_visible(left)
    return axes
