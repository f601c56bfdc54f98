"""Differential expression."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.differential import differential_expression
from pyro_contrastive.analysis.differential_groups import Selection, group_pairs, with_targets
from pyro_contrastive.analysis.differential_settings import DifferentialSettings, batches_to_decode
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.analysis.query import Query
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.methods.base import NO_CELLS, Batches, Level, ModelBase
from pyro_contrastive.methods.means import (
    SampleKey,
    differential_means,
    means_pairs,
    means_settings,
)
from pyro_contrastive.methods.refined import refined_cells, refinement_of


class DifferentialMethods(ModelBase):
    """Which genes differ between groups of cells."""

    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: Level | Iterable[Level] | None = None,
        group2: Level | None = None,
        idx1: Selection | None = None,
        idx2: Selection | None = None,
        mode: Literal["change", "vanilla", "means"] = "change",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Batches = None,
        batchid2: Batches = None,
        fdr_target: float = 0.05,
        silent: bool = False,
        target_idx: Selection | None = None,
        n_samples: int = 1,
        *,
        sample_key: SampleKey = None,
        refine: bool | int = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> pd.DataFrame:
        r"""Compare the expression of groups of cells: single cells, or the means of the counts.

        ``mode="means"`` is the one to take for "which genes differ": a test of the mean counts of
        two groups among cells that are alike in the background latent. Composition and depth may
        differ between the groups without causing false discoveries, and it finds what a test with
        the true cell types would find.

        The other modes are scvi-tools' (lvm-DE, Boyeau et al., PNAS 2023) and ask which genes
        differ between nearly all pairs of cells. Expression is drawn from the posterior. A treated
        cell is decoded with its salient latent, a background cell with none, cell by cell, also
        where a group holds both. `adata` is not changed.

        Parameters
        ----------
        adata, batch_size, silent, refine, seed
            Cells, mini-batch size, progress bar, refinement and seed: see *Shared arguments* of
            :class:`~pyro_contrastive.ContrastiveVI`.
        groupby, group1, group2
            Column of ``adata.obs``; a group or several, each compared in turn (default: all); and
            the group they are compared with (default: all other cells). Groups are values of the
            column, or their text. Without `groupby` and `idx1`, ``mode="means"`` compares every
            treatment with the background.
        idx1, idx2
            Instead of `groupby`: two groups of cells, each a mask, indices or a query of
            ``adata.obs``. The second is by default all cells that are not in the first.
        mode
            ``"change"`` (default): probability that the log2 fold change is beyond `delta`.
            ``"vanilla"``: probability that expression is higher in the first group.
            ``"means"``: a test of the mean counts. Of the arguments below, `fdr_target`,
            `sample_key`, `batch_size`, `refine` and `seed` apply to it.
        delta
            Smallest log2 fold change of interest. Default 0.25; ``None``: estimated from all genes.
        all_stats
            Add means and proportions of the raw counts (default); ``raw_normalized_mean`` only if
            the likelihood has a library size.
        batch_correction
            Decode both groups under the same batches. Default: each cell under its own.
        batchid1, batchid2
            Batches to decode each group under, with `batch_correction`. Default: all.
        fdr_target
            Expected proportion of false discoveries among the tagged genes. Default 0.05.
        target_idx
            Which cells are target cells, as a mask, indices or a query. Default: by their
            condition.
        n_samples
            Posterior draws averaged for each drawn cell. Default 1.
        sample_key
            With ``mode="means"``: column of ``adata.obs`` that says which donor (patient, animal,
            sample) a cell is from. Donors are then the unit of the test, at least two of each
            group. Default: the column set up, if any. ``False``: cells are replicates all the same,
            and the result is about these very donors.
        **kwargs
            See :class:`~pyro_contrastive.analysis.differential_settings.DifferentialSettings`:
            ``n_samples_overall``, ``use_permutation``, ``pseudocounts``, ``quantity`` ... With
            ``mode="means"`` see :class:`~pyro_contrastive.analysis.means.settings.MeansSettings`:
            ``strata`` (a column of cell types, or a number of clusters of z, 8 by default),
            ``lfc_threshold``, ``by_stratum`` (in which cell types), ``interval``,
            ``fewest_cells``, ``fewest_counts``, ``donor_test`` (``"pydeseq2"`` for that package's
            test of donors).

        Returns
        -------
        A row per gene (and group), the most certain first, with the columns of scvi-tools:
        ``proba_de``, ``bayes_factor``, ``scale1``, ``scale2``, ``lfc_mean`` ...,
        ``is_de_fdr_<fdr_target>``, and with `all_stats` ``raw_mean1`` ... ``not_tested`` says why
        a gene is never tagged and comes last: fewer than ``fewest_counts`` (10) counts in the cells
        compared, else it is empty. (scvi-tools tags genes without any count; ``fewest_counts=0``
        does the same.)

        With ``mode="means"``: ``lfc`` (log2), ``lfc_se``, ``lower``, ``upper``, ``p_value``,
        ``p_adj`` (Benjamini-Hochberg over the genes of a comparison), ``is_de_fdr_<fdr_target>``;
        ``mean1`` and ``mean2``, counts of a cell of average depth; ``n_cells1``, ``n_cells2`` and
        ``n_strata``, the cells and strata used; with donors ``n_donors1`` and ``n_donors2``;
        ``not_tested``, why a gene has no result (such as too few counts), else empty; ``note``,
        which points to tagged genes that tell the sexes apart. With ``by_stratum=True`` a row per
        gene and ``stratum``.

        Raises
        ------
        KeyError, ValueError, TypeError
            If a column, group or batch is unknown, a group is empty, groups overlap, an argument
            has no effect, it is not known which cells are target cells, or a group has fewer than
            two donors.
        ImportError
            If ``donor_test="pydeseq2"`` and PyDESeq2 is not installed.

        Notes
        -----
        *Means.* For gene g and cell n of stratum k, on side c (0 or 1), with total count l_n, the
        mean is :math:`l_n \exp(a_{gk} + b_g c_n)`, and nothing is assumed of the variance: the
        log ratio b is a quasi-Poisson estimate, its error that of the cells' scatter (a sandwich),
        and the p-value that of the score statistic, which also holds for rare genes. Strata are
        clusters of the background latent, found as a mixture of Gaussians that share their
        covariance (:func:`~pyro_contrastive.analysis.means.clusters.clusters` says why), or the
        values of a column you give, within batches; cells of a stratum that holds fewer than 5
        cells of a side are left out. **Without donors, cells are
        the replicates**: the test is about these cells, and differences between donors count as
        effects if the donors differ between the groups, or respond differently.

        *Donors.* For every gene, the counts of a donor's cells in a group are compared with those
        expected of as many cells of the same strata, so that composition does not matter. The log
        ratios are compared between groups, or within donors where each has cells of both groups;
        where some do, a donor's level is a random effect. Donors are weighted by their precision
        (cells sampled, and the typical variance between donors), and the variance of each gene is
        squeezed towards that of others (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004), so that
        three donors of each group are enough to find clear effects. The p-value is that of a
        t-test with the degrees of freedom that donors and squeezing give. The alternative,
        PyDESeq2 (Muzellec et al., Bioinformatics 39, 2023), is given the same sums of counts,
        divided by what the composition makes of them; where only some donors have cells of both
        groups, it takes all for different ones. On untreated cells of five patients of whom two
        were called treated, our test finds no gene of 300 in any of the ten ways to choose two,
        PyDESeq2 up to 26, and a test with cells as replicates more than 200
        (``benchmarks/results/donors.md``).

        *Change and vanilla.* Single cells drawn from the two groups are compared, not means of the
        groups: a gene is tagged if nearly all pairs of cells differ by more than `delta`, and
        fewest are where groups hold several cell types, whose differences are in every pair. The
        posterior knows nothing of errors of the decoder, so that the false discovery rate they
        report does not hold: comparing 25 with 25 cells of a simulated type it was .02 to .04
        without hidden counts in training (``molecule_dropout``) and .21 to .26 with them, which
        find a tenth more; with the preset "separated" .20 to .29 and .36 to .40. Take these modes
        where the question is about single cells, or to repeat an analysis made with scvi-tools.

        Examples
        --------
        Genes that respond, over all cell types, and by cell type::

            genes = model.differential_expression(mode="means")
            by_type = model.differential_expression(
                mode="means", strata="cell_type", by_stratum=True, lfc_threshold=0.5
            )

        With patients as the unit, and for comparison with cells as replicates::

            genes = model.differential_expression(mode="means", sample_key="patient")
            of_these_patients = model.differential_expression(mode="means", sample_key=False)
        """
        check_arguments(locals())
        refinement_of(refine, self)
        if mode == "means":
            given: dict[str, Any] = {
                "delta": delta,
                "all_stats": all_stats,
                "batch_correction": batch_correction,
                "batchid1": batchid1,
                "batchid2": batchid2,
                "target_idx": target_idx,
                "n_samples": n_samples,
            }
            means = means_settings(given, kwargs | {"fdr_target": fdr_target})
            chosen = (groupby, group1, group2, idx1, idx2)
            pairs = means_pairs(self, self._adata(adata).obs, *chosen)
            with progress("Differential expression", len(pairs), silent=silent):
                return differential_means(
                    self,
                    adata,
                    pairs,
                    means,
                    sample_key=sample_key,
                    batch_size=batch_size,
                    refine=refine,
                    seed=seed,
                )
        if sample_key is not None:
            msg = f'sample_key has no effect with mode={mode!r}: use mode="means".'
            raise ValueError(msg)
        _refuse_unknown(kwargs)
        settings = DifferentialSettings(
            mode=mode,
            delta=delta,
            fdr_target=fdr_target,
            all_stats=all_stats,
            n_samples=n_samples,
            **kwargs,
        )
        obs = self._adata(adata).obs
        pairs = group_pairs(
            obs, groupby=groupby, group1=group1, group2=group2, idx1=idx1, idx2=idx2
        )
        key = self.setup.batch_key
        batches = batches_to_decode(
            self.setup.categories[key] if key else [],
            batch_correction=batch_correction,
            batchid1=batchid1,
            batchid2=batchid2,
        )
        needed = NO_CELLS
        if target_idx is None:
            named = [cells for pair in pairs for cells in (pair.cells1, pair.cells2)]
            needed = np.unique(np.concatenate(named))
            self._check_conditions_known(adata, needed)
        data = self._data(adata, needed)
        if data.condition is None and target_idx is None and not self.is_trained:
            data = _all_as_targets(data)
        refined = refined_cells(self, adata, data, refine)
        if refined is not None and target_idx is not None:
            # A cell has another posterior as a target cell than as a background cell.
            refined = refined.anew()
        data = with_targets(data, obs, target_idx)
        n_draws = 2 * len(pairs) * settings.n_samples_overall
        with seeded(seed), progress("Differential expression", n_draws, silent=silent):
            cells = np.arange(len(data))
            query = Query(self.module, data, cells, batch_size, refined=refined)
            return differential_expression(query, pairs, self.genes, settings, batches=batches)

    def _check_conditions_known(self, adata: AnnData | None, cells: NDArray[np.int64]) -> None:
        """Refuse cells that were not given to `train` as background or target cells."""
        if self.setup.condition_key is not None or self._conditions is None:
            return
        chosen = self._adata(adata)
        codes = self._condition_codes(chosen, self._extract(chosen))
        n_unknown = 0 if codes is None else int((codes[cells] < 0).sum())
        if n_unknown:
            msg = (
                f"{n_unknown} of these cells were neither background nor target when the model was "
                "trained. Say which cells are target cells: target_idx=."
            )
            raise ValueError(msg)


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(DifferentialSettings)}
    unknown = [name for name in kwargs if name not in known]
    if unknown:
        msg = (
            f"differential_expression takes no {', '.join(unknown)}. Beside its own arguments it "
            f"takes those of DifferentialSettings: {', '.join(sorted(known))}."
        )
        raise TypeError(msg)


def _all_as_targets(data: CellData) -> CellData:
    """Take every cell for a target cell, as an untrained model of scvi-tools does."""
    warnings.warn(
        "The model is untrained and knows no background cells: all are decoded with their salient "
        "latent, and the result means nothing. Train the model first.",
        UserWarning,
        stacklevel=3,
    )
    return data.with_codes(np.full(len(data), BACKGROUND + 1))
