"""Draws for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.interop.arviz import Export, LogLikelihood, to_arviz
from pyro_contrastive.methods.decoding import DecodingHelpers


class ExportMethods(DecodingHelpers):
    """Draws of latents and data in the form that ArviZ takes."""

    def to_arviz(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 100,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        predictive: bool = True,
        prior: bool = True,
        log_likelihood: LogLikelihood | None = "cell",
        seed: int | None = None,
        silent: bool = False,
    ) -> Any:
        """Return draws for ArviZ, one chain, with named cells and genes.

        The draws come from the guide: they are independent, so that diagnostics of Markov chains
        have nothing to find, and as good as the guide is. How far they are from the posterior is in
        ``sample_stats["log_weight"]``: log p(x, latents) - log q(latents | x) of every draw and
        cell, the importance weight (its spread over draws would be 0 for an exact guide).

        ``az.loo`` and ``az.compare`` take the log-likelihood given the latents. Every cell has
        latents of its own, so leaving a cell out leaves nothing known of them: importance sampling
        from its posterior to that is seldom reliable, ArviZ will say so (Pareto k above 0.7), and
        it is right. For comparing models use log p(x) with the latents integrated out, as
        :meth:`get_marginal_ll` on cells that did not train.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.
        n_samples
            Draws.
        gene_list
            Genes of the data and replicates, in the model's order; default all. The log-likelihood
            per cell is of all genes, in any case.
        batch_size
            Cells at a time; default 1,024, or fewer with many draws.
        predictive, prior
            Include ``posterior_predictive``; ``prior`` and ``prior_predictive``.
        log_likelihood
            ``"cell"`` (default): [draws, cells]; ``"entry"``: [draws, cells, genes], which
            ``az.plot_loo_pit`` needs; ``None``: none.
        seed
            Seed; default: torch's global state.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        What the installed ArviZ works with: ``xarray.DataTree`` (ArviZ 1.0 and later) or
        ``arviz.InferenceData`` (before). Its groups are ``posterior`` (``z``, ``s`` as the decoder
        sees it: 0 in background cells, ``library`` if the likelihood has one, parameters that have
        a prior),
        ``sample_stats``, ``observed_data`` and, as asked, ``posterior_predictive``, ``prior``,
        ``prior_predictive`` and ``log_likelihood``; data are called ``x``.

        Raises
        ------
        ImportError
            If ArviZ is not installed.
        ValueError
            If the arrays would take more than 4 GB (the error says what to leave out), a gene is
            unknown, or `log_likelihood` is none of the three.
        """
        if log_likelihood not in {"cell", "entry", None}:
            msg = f"log_likelihood must be 'cell', 'entry' or None, not {log_likelihood!r}."
            raise ValueError(msg)
        if n_samples < 1:
            msg = f"n_samples must be at least 1, not {n_samples}."
            raise ValueError(msg)
        chosen, data, cells = self._cells(adata, indices)
        if not len(cells):
            msg = "There are no cells to export: indices selects none."
            raise ValueError(msg)
        decoding = self._decoding(gene_list, None, 1.0, n_samples, False, batch_size, None)
        genes = np.arange(len(self.setup.genes))[decoding.genes]
        export = Export(n_samples, genes, predictive, prior, log_likelihood, batch_size, seed)
        with progress("Draws", len(cells), silent=silent):
            return to_arviz(
                self.module,
                data,
                cells,
                export,
                cell_names=chosen.obs_names[cells].to_numpy(),
                gene_names=np.asarray(self.setup.genes, dtype=object)[genes],
                attributes={
                    "inference_library": "pyro_contrastive",
                    "likelihood": type(self.module.model.likelihood).__name__,
                },
            )
