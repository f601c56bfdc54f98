"""Does the model make data like those it has seen: posterior predictive checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.ppc import (
    PosteriorPredictiveCheck,
    Statistic,
    check_against_replicates,
)
from pyro_contrastive.analysis.ppc.collect import dense
from pyro_contrastive.analysis.ppc.custom import Function, as_statistics
from pyro_contrastive.analysis.predictive import (
    Predicting,
    chunk_seed,
    collect_dense,
    replicates,
)
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.columns import one_or_several
from pyro_contrastive.methods.predictive import PredictiveHelpers
from pyro_contrastive.observed.matrix import Matrix

UNNAMED_CONDITIONS = ("background", "target")


class CheckMethods(PredictiveHelpers):
    """The data beside what the fitted model would have made of the same cells."""

    def posterior_predictive_check(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 25,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        groupby: str | Sequence[str] | None = None,
        statistics: Iterable[str] | None = None,
        functions: Mapping[str, Function | Statistic] | None = None,
        correlation_genes: Sequence[str] | None = None,
        interval: float = 0.9,
        name: str = "model",
        seed: int | None = None,
        silent: bool = False,
    ) -> PosteriorPredictiveCheck:
        """Compare statistics of the data with those of replicates drawn from the fitted model.

        Replicates are those of :meth:`posterior_predictive_sample`; with an observed library size
        each has the depth of its cell, so that ``library_size`` says little then (for a Poisson:
        nothing at all, unless size factors were registered). They pass some cells at a time: of
        each replicate only sums over cells are kept, by gene and group, and a few numbers per cell.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`. Cells that did not train are the harder test.
        n_samples
            Replicates of the data; their number sets how small a p-value can get.
        gene_list
            Genes to look at; default all. Cells are then described by these genes only.
        batch_size
            Cells at a time; default 1,024, or fewer with many draws.
        groupby
            Columns of ``adata.obs``: statistics of genes are found in each group too. Default: the
            batch and the labels registered. The condition is always among them.
        statistics
            Names; default all that have a meaning for the likelihood: ``"library_size"`` (of
            cells), ``"mean"``, ``"variance"``, ``"cv"`` (coefficient of variation),
            ``"zero_fraction"`` and ``"maximum"`` (of genes and of cells), ``"variance_trend"`` and
            ``"zero_fraction_trend"`` (against the mean), ``"correlation"`` (of pairs of genes),
            ``"effect"`` (of each treatment), ``"calibration"``.
        functions
            Statistics of your own, ``{name: function}``: from a dense matrix ``[cells, genes]`` to
            one value per cell, one per gene, or a single number. A value per cell must depend on
            the counts of this cell only; the function is then called on some cells at a time. Any
            other sees all cells at once (of each group), and one dense replicate is in memory,
            refused above 2 GB.
        correlation_genes
            Genes whose pairs are looked at; default the 30 of largest variance of log(1 + counts).
        interval
            Probability between ``lower`` and ``upper``; takes at least 2 / (1 - `interval`) - 1
            replicates.
        name
            Name of the model in the tables.
        seed
            Seed; default: torch's global state.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        A :class:`~pyro_contrastive.analysis.ppc.PosteriorPredictiveCheck`: start with its
        ``summary()``. Several models, on the same cells:
        ``PosteriorPredictiveCheck.compare({"nb": check, "zinb": other})``.

        Raises
        ------
        KeyError
            If a column of `groupby` does not exist; the error lists the columns.
        ValueError
            If a statistic is unknown or has no meaning for the likelihood (the error says why),
            there are too few replicates for the interval, a gene is unknown, or the condition of a
            cell is none of those registered.

        Examples
        --------
        >>> from pyro_contrastive import ContrastiveVI
        >>> from pyro_contrastive.data import load_kang
        >>> adata = load_kang()[::50, :100].copy()
        >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        >>> model = ContrastiveVI(adata, n_hidden=8)
        >>> check = model.posterior_predictive_check(statistics=["zero_fraction"], seed=0)
        >>> check.genes[["gene", "group", "observed"]].head(2)
            gene group  observed
        0   HES4   all  0.814286
        1  ISG15   all  0.371429
        """
        chosen = self._adata(adata)
        data, cells, predicting = self._replicates_of(
            adata,
            indices,
            n_samples=n_samples,
            gene_list=gene_list,
            batch_size=batch_size,
            seed=seed,
        )
        genes = np.arange(len(self.setup.genes))[predicting.decoding.genes]
        observed: Matrix = data.rows(cells)[:, genes]
        own = as_statistics(functions, lambda n: dense(observed[:n]))
        passes = 1 + n_samples * any(s.per != "cell" for s in own.values())
        groups, contrast = self._groups(chosen, data, cells, groupby)
        likelihood = self.module.model.likelihood
        names = np.asarray(self.setup.genes)[genes]
        with seeded(seed):
            rank_seed = int(torch.randint(2**62, ()))
        with progress("Posterior predictive check", passes * len(cells), silent=silent):
            return check_against_replicates(
                observed,
                lambda: (part.x for part in replicates(self.module, data, cells, predicting)),
                counts=bool(likelihood.support.is_discrete),
                groups=groups,
                contrast=contrast,
                statistics=statistics,
                functions=own,
                n_samples=n_samples,
                whole=self._whole(data, cells, predicting, len(genes)),
                gene_names=names,
                cell_names=chosen.obs_names[cells],
                correlation_genes=self._positions(correlation_genes, names),
                interval=interval,
                model=name,
                described=type(likelihood).__name__,
                seed=rank_seed,
            )

    def _groups(
        self,
        adata: AnnData,
        data: CellData,
        cells: NDArray[np.int64],
        groupby: str | Sequence[str] | None,
    ) -> tuple[dict[str, Any], tuple[str, str] | None]:
        """Labels of the cells by key, and which group of which key treatments are held against."""
        if groupby is not None:
            keys = one_or_several("groupby", groupby, adata.obs)
        else:
            registered = (self.setup.batch_key, self.setup.labels_key)
            keys = [key for key in registered if key is not None and key in adata.obs]
        missing = [key for key in keys if key not in adata.obs]
        if missing:
            msg = f"groupby: adata.obs has no column {missing}; it has {list(adata.obs.columns)}."
            raise KeyError(msg)
        groups: dict[str, Any] = {}
        contrast = None
        if data.condition is not None:
            key = self.setup.condition_key or "condition"
            names = np.asarray(data.conditions or UNNAMED_CONDITIONS, dtype=object)
            groups[key] = names[data.condition[cells]]
            if (data.condition[cells] == BACKGROUND).any():
                contrast = (key, str(names[BACKGROUND]))
        groups |= {key: adata.obs[key].iloc[cells] for key in keys if key not in groups}
        return groups, contrast

    def _whole(
        self, data: CellData, cells: NDArray[np.int64], predicting: Predicting, n_genes: int
    ) -> Callable[[int], NDArray[np.float32]]:
        """Return the function that draws one replicate as a whole, by its number."""

        def draw(number: int) -> NDArray[np.float32]:
            # Other numbers than those of the mini-batches, which begin at 0.
            seed = chunk_seed(predicting.seed, 2**32 + number)
            one = replace(predicting, decoding=replace(predicting.decoding, n_samples=1), seed=seed)
            parts: Iterator[Any] = replicates(self.module, data, cells, one)
            return collect_dense(parts, 1, len(cells), n_genes)[0]

        return draw

    def _positions(
        self, genes: Sequence[str] | None, names: NDArray[Any]
    ) -> NDArray[np.int64] | None:
        if genes is None:
            return None
        genes = list(genes)  # a set or a generator too
        known = {gene: position for position, gene in enumerate(names)}
        unknown = [gene for gene in genes if gene not in known]
        if unknown:
            msg = f"correlation_genes: {unknown[:3]} are not among the genes looked at."
            raise ValueError(msg)
        return np.array([known[gene] for gene in dict.fromkeys(genes)], dtype=np.int64)
