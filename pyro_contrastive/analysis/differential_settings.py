"""Settings of differential expression, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive._tools.arguments import Whole, check_arguments
from pyro_contrastive.analysis.differential_statistics import Draws
from pyro_contrastive.data.levels import listed, position_of, suggestion

ChangeFunction = Callable[[Draws, Draws, float], Draws]
DomainFunction = Callable[[Draws], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
BatchCodes = tuple[Sequence[int], Sequence[int]]
"""Batches to decode each group under. Both empty: each cell under its own."""

CHANGE_ONLY = (
    "delta",
    "fdr_target",
    "pseudocounts",
    "threshold_counts",
    "test_mode",
    "cred_interval_lvls",
    "change_fn",
    "m1_domain_fn",
)


@dataclass(frozen=True, kw_only=True)
class DifferentialSettings:
    """How two groups are compared. Names and defaults are scvi-tools'.

    Parameters
    ----------
    mode
        ``"change"``: probability of a fold change beyond `delta`. ``"vanilla"``: probability that
        group 1 is above group 2; only `all_stats` and the arguments about draws apply to it.
    delta
        Smallest log2 fold change that counts; ``None``: estimated from all genes.
    fdr_target
        Genes are tagged up to this posterior expected false discovery rate.
    all_stats
        Add statistics of the raw counts.
    n_samples
        Posterior draws per drawn cell, averaged before cells are compared. More draws remove the
        posterior's uncertainty from the result, but not the variation between cells.
    n_samples_overall
        Cells drawn (with replacement) from each group.
    use_permutation, m_permutation
        Compare `m_permutation` random pairs of draws, rather than the i-th draw with the i-th.
    pseudocounts
        Added to expression before the logarithm; ``None``: that of the likelihood, if it has one
        (`Gaussian`: 1), else estimated, with `threshold_counts`.
    threshold_counts
        Mean count below which a gene counts as not expressed.
    test_mode
        ``"three"``: probability of the likelier direction; ``"two"``: of either.
    cred_interval_lvls
        Levels of credible intervals of the change.
    change_fn
        ``f(draws1, draws2, pseudocount)`` in place of the log2 fold change (``"log-fold"``).
    m1_domain_fn
        ``f(change)`` in place of `delta`; returns two boolean arrays, "up" and "down".
    fewest_counts
        Genes with fewer counts in the cells compared are marked, never tagged, and come last: what
        the model says of them is what it says of genes like them, not what their counts show. Not
        in scvi-tools; 0 switches it off. It has no effect on data that are not counts.
    quantity
        What is compared, and what ``scale1`` and ``scale2`` are means of. ``"scale"`` (default), as
        in scvi-tools: the decoder's scale, which is what a gene would have without structural
        zeros. ``"mean"``: the mean of the counts per unit of library size, with them, as treatment
        effects use it. The two differ for likelihoods that inflate zeros.

    Raises
    ------
    ValueError
        If a value is out of range, or would have no effect given the others.
    """

    mode: Literal["change", "vanilla"] = "change"
    delta: float | None = 0.25
    fdr_target: float = 0.05
    all_stats: bool = True
    n_samples: int = 1
    n_samples_overall: int = 5000
    use_permutation: bool = False
    m_permutation: int = 10000
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    test_mode: Literal["two", "three"] = "three"
    cred_interval_lvls: Sequence[float] | None = None
    change_fn: ChangeFunction | Literal["log-fold"] | None = None
    m1_domain_fn: DomainFunction | None = None
    fewest_counts: int = 10
    quantity: Literal["scale", "mean"] = "scale"

    def __post_init__(self) -> None:
        """Refuse what is out of range or would be ignored."""
        check_arguments(vars(self), n_samples_overall=Whole())
        self._check_ranges()
        if self.mode == "vanilla":
            self._refuse(CHANGE_ONLY, 'with mode="vanilla"')
        if not self.use_permutation:
            self._refuse(["m_permutation"], "without use_permutation=True")
        if self.pseudocounts is not None:
            self._refuse(["threshold_counts"], "when pseudocounts is given")
        if self.m1_domain_fn is not None and self.delta is not None:
            self._refuse(["delta"], "when m1_domain_fn is given")

    def _check_ranges(self) -> None:
        levels = () if self.cred_interval_lvls is None else self.cred_interval_lvls
        required = {
            "mode must be 'change' or 'vanilla'": self.mode in {"change", "vanilla"},
            "cred_interval_lvls must be between 0 and 1": all(0 < p < 1 for p in levels),
            "change_fn must be 'log-fold' or a function": self.change_fn in (None, "log-fold")
            or callable(self.change_fn),
            "m1_domain_fn must be a function": self.m1_domain_fn is None
            or callable(self.m1_domain_fn),
        }
        for rule, kept in required.items():
            if not kept:
                msg = f"{rule}, not {getattr(self, rule.split()[0])!r}."
                raise ValueError(msg)

    def _refuse(self, names: Sequence[str], when: str) -> None:
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self)}
        for name in names:
            value = getattr(self, name)
            if value is not defaults[name] and not np.array_equal(value, defaults[name]):
                msg = f"{name}={value!r} has no effect {when}."
                raise ValueError(msg)


def batches_to_decode(
    categories: Sequence[str],
    *,
    batch_correction: bool,
    batchid1: Any = None,
    batchid2: Any = None,
) -> BatchCodes:
    """Return the codes of the batches to decode each group under; none: each cell's own.

    Parameters
    ----------
    categories
        The batches, in code order; empty if none were set up.
    batch_correction
        Decode under given batches.
    batchid1, batchid2
        A batch or several, for each group. Default: all.

    Raises
    ------
    ValueError
        If a batch is unknown, batches are given without `batch_correction`, there are no batches to
        correct for, or the two groups share some batches and not others.
    """
    if not batch_correction:
        if batchid1 is not None or batchid2 is not None:
            msg = "batchid1 and batchid2 have no effect without batch_correction=True."
            raise ValueError(msg)
        return [], []
    if not categories:
        msg = "batch_correction=True needs batches: call setup_anndata with batch_key=."
        raise ValueError(msg)
    codes1 = _batch_codes(batchid1, categories, "batchid1")
    codes2 = _batch_codes(batchid2, categories, "batchid2")
    if codes1 != codes2 and set(codes1) & set(codes2):
        shared = [categories[c] for c in codes1 if c in codes2]
        msg = (
            f"batchid1 and batchid2 share {shared} but are not the same (by default either is "
            f"{list(categories)}). Make them the same, or let them share no batch."
        )
        raise ValueError(msg)
    return codes1, codes2


def _batch_codes(batchid: Any, categories: Sequence[str], name: str) -> list[int]:
    if batchid is None:
        return list(range(len(categories)))
    known = list(categories)
    wanted = listed(batchid)
    found = [position_of(batch, known) for batch in wanted]
    unknown = [str(batch) for batch, code in zip(wanted, found, strict=True) if code is None]
    if unknown or not wanted:
        what = f"holds unknown batches {unknown}" if unknown else "is empty"
        hint = suggestion(unknown[0], known) if unknown else ""
        msg = f"{name} {what}; the batches are {known}.{hint}"
        raise ValueError(msg)
    return sorted({code for code in found if code is not None})
