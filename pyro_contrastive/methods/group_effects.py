"""The table of treatment effects by group of cells and sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.means.blocks import blocks_of
from pyro_contrastive.analysis.means.decoded_sums import decoded_sums_of_some
from pyro_contrastive.analysis.means.group_effect import GroupEffect
from pyro_contrastive.analysis.means.group_effects import group_effects
from pyro_contrastive.analysis.means.settings import MeansSettings
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.levels import listed
from pyro_contrastive.methods.base import Level, ModelBase
from pyro_contrastive.methods.grouped_cells import GroupedCells, grouped_cells, strata_within
from pyro_contrastive.methods.labels import UNNAMED_CONDITIONS
from pyro_contrastive.methods.means import check_counts
from pyro_contrastive.methods.queries import decoding_of

__all__ = ["GroupEffectMethods"]

Codes = NDArray[np.int64]
ALL_DONORS = "all donors"


class GroupEffectMethods(ModelBase):
    """What a treatment did to groups of cells, by sample."""

    def get_group_effects(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        sample_key: str | None = None,
        gene_list: Sequence[str] | None = None,
        *,
        treatment: Level | Iterable[Level] | None = None,
        indices: ArrayLike | None = None,
        strata: str | int = 8,
        by_stratum: bool = False,
        interval: float = 0.95,
        fewest_cells: int = 5,
        fewest_counts: int = 10,
        n_samples: int = 10,
        batch_size: int | None = None,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        r"""Return the effect of a treatment per gene, group of cells and sample: a table to print.

        The effect is measured from the counts of treated and of background cells, among cells of
        the group that are alike in the background latent, as ``differential_expression`` does with
        ``mode="means"``. Beside it stands what the model says of the same cells.

        Intervals of single cells (:meth:`get_treatment_effect`) cannot be averaged to one of their
        mean: the errors of cells that share a decoder are not independent, and the posterior knows
        nothing of errors of the decoder. So the interval comes from the counts.

        Parameters
        ----------
        adata, indices, batch_size, refine, seed, silent
            Cells, mini-batch size, refinement, seed and progress bar: see *Shared arguments* of
            :class:`~pyro_contrastive.ContrastiveVI`.
        groupby
            Column of ``adata.obs`` with the groups, for example cell types. Cells with a missing
            value belong to none. Default: all cells are one group.
        sample_key
            Column with the sample (donor, patient, animal) of each cell. There is a row for each
            sample with treated cells, and one over all of them. Default: the column that the data
            were set up with, if any; without one, a group has one row per gene.
        gene_list
            Which genes. Default: all.
        treatment
            A treatment or several. Default: every one.
        strata
            Within which cells are compared, beside the groups: a number of clusters of the
            background latent of all cells, or a column. Strata are within batches, if there are
            any. ``1``: all cells of a group (and batch).
        by_stratum
            The strata are the groups, instead of `groupby`.
        interval
            Coverage of the intervals.
        fewest_cells
            A stratum is used if both sides have this many cells in it.
        fewest_counts
            A gene has an effect if it has this many counts in the cells compared.
        n_samples
            Posterior draws per treated cell, for ``model_lfc``. Default 10.

        Returns
        -------
        A row per gene (the index), ``group``, ``treatment`` and, given a sample key, ``sample``,
        with

        * ``lfc``: log2 fold change of the mean, with its interval, ``lower`` and ``upper``;
        * ``model_lfc``: log2 of the mean over the treated cells of the expression that the model
          decodes (the mean of the counts, dropout included), over the same without the salient
          latent; of at most 1,000 cells, drawn at random, for each stratum of a group and sample;
        * ``treated_mean``, ``background_mean``: counts of a cell of average depth;
        * ``n_cells``, ``n_background_cells``, ``n_strata``: the treated and background cells that
          were compared, and their strata;
        * given a sample key, ``n_samples`` and ``compared_with``: how many samples the effect is a
          mean of, and which background cells it is compared with;
        * ``not_estimated``: why a number is missing, else empty.

        Raises
        ------
        KeyError, ValueError, TypeError
            If a column, treatment or gene is unknown, the data are not counts with a library size,
            there are no background cells, or an argument has no meaning.

        Notes
        -----
        A group of `groupby` whose few cells share no cluster of z is compared as a whole (within
        batches, if any); ``n_strata`` shows it.

        *One sample.* The estimate is quasi-Poisson, its error the scatter of the cells (a
        sandwich), and the interval that of Student's t with as many degrees of freedom as the
        smaller side has cells beyond one per stratum. **It is about these cells**: cells of one
        donor are no replicates, and the interval says nothing of other donors.

        *All donors.* If at least two samples hold cells of both kinds, this is the mean of their
        effects, each compared with itself, and Student's interval of the mean over samples: what
        other donors would show. If samples are treated or untreated but not both, each is compared
        with the background cells of all samples, and the row is the mean of the treated samples
        minus that of the untreated ones, with Welch's interval. With one sample on a side there is
        no interval. A sample counts as one, however many cells it has.

        A sample without enough background cells of its own is compared with the background cells
        of all samples of the group, and ``compared_with`` says so.

        Examples
        --------
        ::

            table = model.get_group_effects(groupby="cell_type", sample_key="donor", seed=0)
            table[table["sample"] == "all donors"].loc["ISG15"]
        """
        check_arguments(locals())
        settings = MeansSettings(
            strata=strata,
            by_stratum=by_stratum,
            interval=interval,
            fewest_cells=fewest_cells,
            fewest_counts=fewest_counts,
        )
        if by_stratum and groupby is not None:
            msg = "by_stratum=True makes the strata the groups: give either it or groupby=."
            raise ValueError(msg)
        if sample_key is None:
            sample_key = getattr(self.setup, "sample_key", None)
        check_counts(self, "get_group_effects")
        obs = self._adata(adata).obs
        decoding = decoding_of(
            self, gene_list=gene_list, n_samples=n_samples, return_mean=True, quantity="mean"
        )
        query = self._query_of_some(adata, indices, batch_size, refine=refine)
        query = replace(query, decoding=decoding)
        cells = grouped_cells(self, obs, query, groupby, sample_key, settings, seed or 0)
        codes = _treatments(self, cells, treatment)
        names = self.setup.conditions or UNNAMED_CONDITIONS
        n_treated = int(np.isin(cells.condition, codes).sum())
        tables = []
        with seeded(seed), progress("Effects on groups", n_treated, silent=silent):
            for code in codes:
                table = _of_treatment(cells, code, settings, self.genes, sample_key is not None)
                table.insert(1, "treatment", names[code])
                tables.append(table)
        return pd.concat(tables)


def _treatments(
    model: ModelBase, cells: GroupedCells, treatment: Level | Iterable[Level] | None
) -> list[int]:
    """Return the codes of the treatments asked for; each must have cells."""
    present = [code for code in np.unique(cells.condition).tolist() if code != BACKGROUND]
    if treatment is None:
        if not present:
            msg = "None of these cells is a treated cell with counts: there is nothing to compare."
            raise ValueError(msg)
        return present
    names = listed(treatment)
    codes = list(dict.fromkeys(model._condition_code(name, "treatment") for name in names))
    for name, code in zip(names, codes, strict=False):
        if code == BACKGROUND:
            msg = f"treatment={name!r} is the background, with which treatments are compared."
            raise ValueError(msg)
        if code not in present:
            msg = f"None of these cells was given {name!r}."
            raise ValueError(msg)
    return codes


def _of_treatment(
    cells: GroupedCells, code: int, settings: MeansSettings, genes: Sequence[str], by_sample: bool
) -> pd.DataFrame:
    """Make the rows of one treatment: by group, by sample."""
    query = cells.query
    chosen = query.decoding.genes
    treated = cells.condition == code
    compared = treated | (cells.condition == BACKGROUND)
    samples = np.unique(cells.sample[treated]).tolist()
    places, block_sets = [], []
    for group in range(len(cells.groups)):
        here = np.flatnonzero(compared & (cells.group == group))
        x = query.data.chosen(query.cells[here], query.genes)
        codes = (cells.sample[here], strata_within(cells, here, treated, settings))
        places.append(here)
        block_sets.append(
            blocks_of(x, cells.sizes[here], *codes, treated[here], settings.fewest_cells)
        )
    offsets = np.cumsum([0, *(len(blocks.sample) for blocks in block_sets)])
    block = np.full(len(query), -1)
    for here, blocks, offset in zip(places, block_sets, offsets, strict=False):
        block[here] = offset + blocks.cell_block
    decoded = decoded_sums_of_some(
        query.of(query.cells[treated]), block[treated], int(offsets[-1])
    )  # [blocks of all groups, 2, genes]
    tables = []
    for group, blocks in enumerate(block_sets):
        own = decoded[offsets[group] : offsets[group + 1]]
        effects = group_effects(blocks, own, samples, settings)
        for effect in effects if by_sample else effects[:1]:
            table = _table(effect, cells.samples, by_sample)
            table.insert(0, "group", cells.groups[group])
            table.index = pd.Index(np.asarray(genes)[chosen], name="gene")
            tables.append(table)
    return pd.concat(tables)


def _table(effect: GroupEffect, samples: Sequence[str], by_sample: bool) -> pd.DataFrame:
    columns = {name: value for name, value in vars(effect).items() if name != "sample"}
    if not by_sample:
        del columns["n_samples"], columns["compared_with"]
        return pd.DataFrame(columns)
    name = ALL_DONORS if effect.sample is None else samples[effect.sample]
    return pd.DataFrame({"sample": name} | columns)
