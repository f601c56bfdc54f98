"""Is the posterior right? Pareto k, NUTS and simulation-based calibration of a fitted model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import posterior_accuracy as accuracy
from pyro_contrastive.analysis.calibration import Calibration, Method, calibrate
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.analysis.nuts import NutsSettings
from pyro_contrastive.analysis.pareto import check_draws, k_threshold
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.analysis.refinement import Refinement
from pyro_contrastive.analysis.stored_posteriors import StoredPosteriors
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.calibration import quantities_of


class PosteriorMethods(ModelBase):
    """How close the guide is to the true posterior, cell by cell and on simulated cells."""

    def pareto_k(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 500,
        batch_size: int | None = None,
        *,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        r"""Return the Pareto k of the guide in each cell: how far from the posterior it is.

        The shape of the tail of the importance weights
        :math:`p(x, z, s, l) / q(z, s, l \mid x)` (Yao, Vehtari, Simpson & Gelman, ICML 2018;
        Vehtari et al., JMLR 2024). Below 0.5 the weights have a variance and the guide can be
        corrected. Above 0.7 it is not close to the posterior in all directions at once, although
        means of single latents may still be right (:meth:`posterior_accuracy` measures these).
        Above 1 the weights have no mean. It grows with the number of latents. The decoder is taken
        as learned.

        Parameters
        ----------
        adata, indices, refine, seed, silent
            Cells, refinement, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        n_samples
            Posterior draws per cell, at least 25. Default 500; a few hundred are needed to judge a
            tail.
        batch_size
            Cells at a time. Default 64 (memory is 50 draws x cells x genes).

        Returns
        -------
        Indexed by cell: ``k``; ``high``, whether it is above the threshold for this many draws;
        ``elbo``, ``log_p`` (importance-weighted, Pareto-smoothed) in nats.
        """
        check_arguments(locals())
        check_draws(n_samples)
        query = self._query(adata, indices, batch_size, refine=refine)
        with seeded(seed), progress("Pareto k", len(query), silent=silent):
            weights = log_weights_of_cells(query, n_samples)
        found = estimate(weights)
        return pd.DataFrame(
            {
                "k": found.k,
                "high": found.k > k_threshold(n_samples),
                "elbo": weights.mean(axis=1),
                "log_p": found.psis,
            },
            index=query.names,
        )

    def refine_posterior(
        self,
        indices: ArrayLike | None = None,
        n_steps: int = 30,
        batch_size: int | None = None,
        *,
        silent: bool = False,
    ) -> None:
        """Refine the posteriors of cells once, and keep them in the model.

        Methods called with ``refine=True`` (or the same number of steps) then use them, with the
        answers they would have given anyway, and :meth:`save` writes them. They are dropped when
        the model is trained again, and ignored where weights, cells or counts have changed.

        Parameters
        ----------
        indices, batch_size, silent
            Which of the model's cells, mini-batch size and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`. Posteriors kept before are replaced.
        n_steps
            Steps. Default 30.

        Raises
        ------
        ValueError
            If the model is not trained or has no data of its own, there are no such cells, or
            `n_steps` is below 1.

        Examples
        --------
        Intervals for all cells, and for some of them again, without refining twice::

            model.refine_posterior()
            effect = model.get_treatment_effect(refine=True)
            model.save("model")  # with the refined posteriors
        """
        check_arguments(locals())
        self._stored_posteriors = None
        query = self._query_of_some(None, indices, batch_size, refine=n_steps)
        with progress("Refinement", len(query), silent=silent):
            for _ in query.with_programs():
                pass
        assert query.refined is not None
        names = self._adata(None).obs_names
        self._stored_posteriors = StoredPosteriors.of(query.refined, query.data, names)

    def posterior_accuracy(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 1000,
        *,
        nuts: bool = True,
        n_draws: int = 200,
        n_warmup: int = 100,
        n_chains: int = 2,
        n_steps: int = 30,
        seed: int | None = None,
        silent: bool = False,
    ) -> PosteriorAccuracy:
        """Compare the guide with refined posteriors and with NUTS, cell by cell.

        The decoder is taken as learned, and parameters that have a prior are at their posterior
        mean (for NUTS) or drawn (for the ELBOs). The amortisation gap is what the guide loses
        against the refined posterior, a multivariate normal fitted to the cell itself; the
        approximation gap is what that posterior loses against log p(x) (Cremer, Li & Duvenaud,
        ICML 2018). NUTS draws from the posterior itself.

        Parameters
        ----------
        adata, indices, seed, silent
            Cells, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`. Here `indices` is required: about ten cells,
            since NUTS takes seconds to a minute for each.
        n_samples
            Posterior draws per cell for log p(x) and k, at least 25. Default 1,000.
        nuts
            Whether to run NUTS (default).
        n_draws, n_warmup, n_chains
            Draws of each chain that are kept (200), draws before them (100), chains per cell (2).
        n_steps
            Steps of the refinement. Default 30.

        Raises
        ------
        ValueError
            If `indices` is not given, or a number is too small (four draws and one chain at
            least, so that there is a variance).
        """
        check_arguments(locals())
        if indices is None:
            msg = (
                "posterior_accuracy takes seconds to a minute per cell: give the indices of a few."
            )
            raise ValueError(msg)
        if nuts and (n_draws < 4 or n_warmup < 1 or n_chains < 1):  # noqa: PLR2004
            msg = (
                "NUTS needs n_draws of at least 4, and n_warmup and n_chains of at least 1, not "
                f"{n_draws}, {n_warmup} and {n_chains}."
            )
            raise ValueError(msg)
        check_draws(n_samples)
        query = self._query_of_some(adata, indices)
        with seeded(seed), progress("Posterior accuracy", len(query), silent=silent):
            return accuracy.posterior_accuracy(
                query,
                n_samples=n_samples,
                refinement=Refinement(n_steps),
                nuts=NutsSettings(n_draws, n_warmup, n_chains) if nuts else None,
            )

    def simulation_based_calibration(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_simulations: int = 500,
        n_draws: int = 99,
        *,
        gene_list: Sequence[str] | None = None,
        method: Method = "guide",
        seed: int | None = None,
        silent: bool = False,
    ) -> Calibration:
        """Test on simulated cells whether posteriors, and so all intervals, are right.

        The fitted model makes cells whose latents, expression and treatment effects are known. Each
        is then analysed like a real one, and the known value ranked among the posterior draws. If
        the posterior is right, a 90 % interval covers 90 % of the known values, whichever interval
        it is, and the ranks are uniform (Talts et al., arXiv 1804.06788, 2018).

        What to do with the answer, the column ``reading`` of its ``table``:

        * *Uniform*: intervals of this quantity, and probabilities of differential expression, mean
          what they say, as far as the model describes the cells.
        * *Too narrow*: intervals are overconfident, and too many effects seem certain. This is what
          the guide usually is. Repeat with ``method="refined"``; if the ranks are uniform then,
          analyse with ``refine=True``. If not, give ``refine`` more steps.
        * *Too wide*: intervals are cautious. Effects that they show are there.
        * *Too low* or *too high*: estimates are biased. Train longer, or use ``refine=True``.

        A uniform log-likelihood shows that the posterior uses the data: one that ignores them may
        have uniform ranks of everything else (Modrák et al., Bayesian Analysis 2023).

        It takes the decoder for the truth. How well that describes real cells is another question,
        for :meth:`posterior_predictive_check`. Simulated cells have latents drawn from the priors.
        If those of real cells do not look like that (penalties on *s* see to it), the encoder has
        seen no such cells in training, and the guide may fail here although it is better on real
        cells: look at those with :meth:`posterior_accuracy` and :meth:`pareto_k`.

        Parameters
        ----------
        adata, indices, seed, silent
            The real cells, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        n_simulations
            Number of cells to simulate, each in place of a real cell drawn at random, of which it
            has condition, batch, covariates and observed library size. Default 500.
        n_draws
            Posterior draws for each; ranks go from 0 to this number. Default 99; 19, 99 and 199
            divide evenly into bins.
        gene_list
            Genes whose normalised expression and treatment effect (of target cells) are ranked, as
            :meth:`get_normalized_expression` and :meth:`get_treatment_effect` define them. Default:
            the five of the highest mean, about which the counts say most; none if the likelihood
            has no normalised expression.
        method
            ``"guide"`` (default); ``"refined"``, its refined posteriors; or ``"nuts"``, to check
            that a fault is not the model's: slow, use 50 simulations.

        Returns
        -------
        Calibration
            ``.table`` tests the ranks of each quantity for uniformity; ``.ranks`` has them, for
            :func:`pyro_contrastive.plotting.plot_ranks`. Quantities are ``z1`` ..., ``s1`` ...,
            ``library`` (if latent), ``log_likelihood``, and for each gene ``expression of <gene>``
            and ``effect on <gene>``.

        Raises
        ------
        ValueError
            If `method` is none of these, the numbers are too small to test anything (10
            simulations), or a gene is unknown.

        Examples
        --------
        >>> from pyro_contrastive import ContrastiveVI
        >>> from pyro_contrastive.data import load_kang
        >>> adata = load_kang()[::50, :100].copy()
        >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        >>> model = ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=1)
        >>> found = model.simulation_based_calibration(gene_list=["ISG15"], seed=0)
        >>> list(found.table.index)
        ['z1', 'z2', 's1', 'log_likelihood', 'expression of ISG15', 'effect on ISG15']
        """
        check_arguments(locals())
        if n_simulations < 10 or n_draws < 1:  # noqa: PLR2004  # two bins of five
            msg = (
                "Calibration needs at least 10 simulations and 1 draw, not "
                f"{n_simulations} and {n_draws}."
            )
            raise ValueError(msg)
        query = self._query_of_some(adata, indices)
        rng = np.random.default_rng(seed)
        replace = n_simulations > len(query)
        query = query.of(rng.choice(query.cells, n_simulations, replace=replace))
        quantities = quantities_of(self, query, gene_list)
        with seeded(seed), progress("Calibration", len(query), silent=silent):
            return calibrate(query, n_draws, quantities=quantities, method=method)
