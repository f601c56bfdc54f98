"""Settings of a test of means, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from pyro_contrastive._tools.arguments import Whole, check_arguments

__all__ = ["DEFAULT_DONOR_TEST", "MeansSettings"]

DonorTest = Literal["moderated_t", "pydeseq2"]
DEFAULT_DONOR_TEST: DonorTest = "moderated_t"


@dataclass(frozen=True, kw_only=True)
class MeansSettings:
    """How the means of two groups of cells are compared.

    Parameters
    ----------
    strata
        Within which cells are compared: a column of ``adata.obs`` (such as cell types), or the
        number of clusters of the background latent to make (1: all cells are one stratum). If a
        batch was registered, strata are within batches.
    lfc_threshold
        The test is whether the absolute log2 fold change exceeds this. Default 0: whether there is
        any difference.
    by_stratum
        Test every stratum by itself. Default: one test over all of them.
    interval
        Coverage of the interval between ``lower`` and ``upper``.
    fewest_cells
        A stratum is used if both groups have this many cells in it; and a donor, if it has this
        many of a group.
    fewest_counts
        A gene is tested if it has this many counts in the cells used.
    fdr_target
        False discovery rate at which genes are tagged.
    donor_test
        How donors are compared, where they are the unit. ``"moderated_t"`` (default): t-tests of
        the log rates of donors, weighted by their precision, with variances squeezed over genes.
        ``"pydeseq2"``: negative binomial regression of the counts of donors by PyDESeq2
        (``pip install "pyro-contrastive[donors]"``).

    Raises
    ------
    TypeError, ValueError
        If a value has the wrong type or is out of range.
    """

    strata: str | int = 8
    lfc_threshold: float = 0.0
    by_stratum: bool = False
    interval: float = 0.95
    fewest_cells: int = 5
    fewest_counts: int = 10
    fdr_target: float = 0.05
    donor_test: DonorTest = DEFAULT_DONOR_TEST

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        strata: Any = self.strata  # untyped callers may give anything
        if type(strata) is bool or not isinstance(strata, str | Integral):
            msg = (
                "strata must be a column of adata.obs or a number of clusters, not "
                f"{self.strata!r}."
            )
            raise TypeError(msg)
        if self.donor_test not in get_args(DonorTest):
            msg = f"donor_test must be one of {get_args(DonorTest)}, not {self.donor_test!r}."
            raise ValueError(msg)
        check_arguments(vars(self), fewest_cells=Whole(2), fewest_counts=Whole())
        if not isinstance(strata, str):
            check_arguments(vars(self), strata=Whole())
