"""Genes whose expression tells the sexes apart, whatever else is compared."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["SEX_LINKED", "is_sex_linked"]

SEX_LINKED = frozenset(
    {
        # From the inactive X chromosome, in females.
        "XIST",
        "TSIX",
        # From the Y chromosome, outside its pseudoautosomal regions, in many tissues of males.
        "DDX3Y",
        "EIF1AY",
        "EIF2S3Y",  # of mice
        "KDM5D",
        "NLGN4Y",
        "PRKY",
        "RPS4Y1",
        "RPS4Y2",
        "TMSB4Y",
        "TTTY14",
        "TTTY15",
        "TXLNGY",
        "USP9Y",
        "UTY",
        "ZFY",
        "ZFY1",  # of mice
        "ZFY2",  # of mice
    }
)
"""Symbols in capitals; those of mice are the same words, with one capital letter."""


def is_sex_linked(genes: Iterable[object]) -> NDArray[np.bool_]:
    """Tell which genes tell the sexes apart, by their symbols, of humans or mice: ``[genes]``.

    Where they lead a list of differences, the groups are probably of different sex.

    Parameters
    ----------
    genes
        Symbols, such as ``"XIST"`` or ``"Xist"``. A version or suffix after a dot is ignored, as
        is a number that made names unique (``"XIST-1"``).
    """
    names = (str(gene).upper().partition(".")[0] for gene in genes)
    return np.array(
        [n in SEX_LINKED or n.removesuffix("-1") in SEX_LINKED for n in names], dtype=bool
    )
