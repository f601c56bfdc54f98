"""Sums over cells, filled some cells at a time: all that a check keeps of the replicates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.ppc.statistics import SUMS, Moments

Floats = NDArray[np.float64]
Draws = NDArray[np.float32]
Ints = NDArray[np.int64]


def by_stratum(x: Draws, strata: Ints) -> Iterator[tuple[int, Floats]]:
    """Yield each stratum's number and cells, as float64, since sums of squares lose digits."""
    for stratum in np.unique(strata):
        yield int(stratum), x[:, strata == stratum].astype(np.float64)


class GeneSums:
    """Moments of each gene, ``[samples, strata, genes]``.

    Parameters
    ----------
    n_samples, n_strata, n_genes
        Sizes.
    """

    def __init__(self, n_samples: int, n_strata: int, n_genes: int) -> None:
        shape = (n_samples, n_strata, n_genes)
        self.n = np.zeros(n_strata)
        self.sums = {name: np.full(shape, each.start) for name, each in SUMS.items()}

    def add(self, x: Draws, strata: Ints) -> None:
        """Add some cells, ``[samples, cells, genes]``."""
        for k, values in by_stratum(x, strata):
            m = Moments.of(values, axis=1)
            self.n[k] += float(m.n)
            for name, sums in self.sums.items():
                sums[:, k] = SUMS[name].combine(sums[:, k], getattr(m, name))

    def of(self, members: Ints) -> Moments:
        """Return the moments of the cells of some strata, ``[samples, genes]``."""
        joined = {
            name: SUMS[name].combine.reduce(values[:, members], axis=1)
            for name, values in self.sums.items()
        }
        return Moments(n=np.array(self.n[members].sum()), **joined)


class PairSums:
    """Sums and products of some genes, ``[samples, strata, genes(, genes)]``.

    Parameters
    ----------
    n_samples, n_strata
        Sizes.
    genes
        Positions of the genes.
    logs
        Take log(1 + x) first; otherwise a few large counts would dominate.
    """

    def __init__(self, n_samples: int, n_strata: int, genes: Ints, *, logs: bool) -> None:
        self.genes, self.logs = genes, logs
        self.n = np.zeros(n_strata)
        self.total = np.zeros((n_samples, n_strata, len(genes)))
        self.products = np.zeros((n_samples, n_strata, len(genes), len(genes)))

    def add(self, x: Draws, strata: Ints) -> None:
        """Add some cells, ``[samples, cells, genes]``."""
        for k, values in by_stratum(x[..., self.genes], strata):
            y = np.log1p(values) if self.logs else values
            self.n[k] += y.shape[1]
            self.total[:, k] += y.sum(axis=1)
            self.products[:, k] += np.swapaxes(y, 1, 2) @ y

    def of(self, members: Ints) -> tuple[Floats, Floats, Floats]:
        """Return number of cells, sums and products over some strata."""
        n = np.full((len(self.total), 1, 1), self.n[members].sum())
        return n, self.total[:, members].sum(axis=1), self.products[:, members].sum(axis=1)


class RankSums:
    """How the data rank among their replicates, entry by entry.

    The rank is randomised: with L replicates below the value and E equal to it, of S in all,

        u = (L + v (E + 1)) / (S + 1),    v uniform on (0, 1)

    is uniform on (0, 1) if data and replicates have the same distribution, for counts too (Czado,
    Gneiting & Held, Biometrics 2009, define it with the exact distribution in place of draws).

    Parameters
    ----------
    n_strata
        Number of strata.
    levels
        Probabilities of the central intervals whose coverage is counted.
    n_bins
        Bins of the histogram of u.
    rng
        Random numbers of v.
    """

    def __init__(
        self, n_strata: int, levels: tuple[float, ...], n_bins: int, rng: np.random.Generator
    ) -> None:
        self.levels, self.n_bins, self.rng = levels, n_bins, rng
        self.n = np.zeros(n_strata)
        self.histogram = np.zeros((n_strata, n_bins))
        self.histogram_squares = np.zeros((n_strata, n_bins))
        self.covered = np.zeros((n_strata, len(levels)))
        self.covered_squares = np.zeros((n_strata, len(levels)))

    def add(self, observed: Draws, x: Draws, strata: Ints) -> None:
        """Add some cells: data ``[cells, genes]``, replicates ``[samples, cells, genes]``."""
        below = np.zeros(observed.shape, dtype=np.float32)
        equal = np.ones(observed.shape, dtype=np.float32)
        for draw in x:
            below += draw < observed
            equal += draw == observed
        u = (below + self.rng.random(observed.shape, dtype=np.float32) * equal) / (len(x) + 1)
        # Shares over the genes of a cell: cells are independent, but genes of a cell are not.
        off_centre = np.abs(u - np.float32(0.5))
        inside = np.stack([(off_centre <= p / 2).mean(axis=1) for p in self.levels], axis=1)
        bins = np.minimum((u * self.n_bins).astype(np.int64), self.n_bins - 1)
        cell = np.arange(len(u))[:, None] * self.n_bins
        counts = np.bincount((bins + cell).ravel(), minlength=len(u) * self.n_bins)
        shares = counts.reshape(len(u), self.n_bins) / u.shape[1]
        for k in np.unique(strata):
            chosen = strata == k
            self.n[k] += chosen.sum()
            self.covered[k] += inside[chosen].sum(axis=0)
            self.covered_squares[k] += np.square(inside[chosen]).sum(axis=0)
            self.histogram[k] += shares[chosen].sum(axis=0)
            self.histogram_squares[k] += np.square(shares[chosen]).sum(axis=0)

    def coverage(self, members: Ints) -> tuple[Floats, Floats]:
        """Share of entries inside each interval, and its standard error, over some strata."""
        return self._mean_and_error(members, self.covered, self.covered_squares)

    def shares(self, members: Ints) -> tuple[Floats, Floats]:
        """Share of entries in each bin of the histogram, and its standard error."""
        return self._mean_and_error(members, self.histogram, self.histogram_squares)

    def _mean_and_error(
        self, members: Ints, total: Floats, squares: Floats
    ) -> tuple[Floats, Floats]:
        n = self.n[members].sum()
        mean = total[members].sum(axis=0) / n
        variance = np.maximum(squares[members].sum(axis=0) / n - np.square(mean), 0.0)
        return mean, np.sqrt(variance / max(n - 1, 1))
