"""Methods that check the posterior, and the diagnosis of everything in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import posterior_accuracy as accuracy
from pyro_contrastive.analysis.calibration import Calibration, Method, calibrate
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.analysis.local_posterior import LocalFit
from pyro_contrastive.analysis.nuts import NutsSettings
from pyro_contrastive.analysis.pareto import check_draws, k_threshold
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.columns import check_key, texts
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.labels import known_conditions, label_keys
from pyro_contrastive.training.history import History


class DiagnosisMethods(ModelBase):
    """Pareto k, NUTS, simulation-based calibration, and all diagnostics in one call."""

    def diagnose(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        labels_key: str | None = None,
        *,
        n_cells: int = 1000,
        n_khat_cells: int = 60,
        nuts_cells: int = 0,
        calibration_cells: int = 0,
        n_permutations: int = 10,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Check for everything that commonly goes wrong, and explain what was found.

        The first row, ``"salient map"``, answers "my salient UMAP is one blob". It says whether the
        salient latent has collapsed, and if so whether there is nothing salient to find, the
        response went into the background latent, or the model has not found it; or else whether it
        carries the condition, and whether the treated cells form groups in it.

        Parameters
        ----------
        adata, indices, silent
            Cells and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        labels_key
            Column of labels that the conditions share, such as cell types. Default: the one set
            up. Without labels, the rows about them are left out.
        n_cells
            Number of cells to use, half of them background cells, drawn at random. Default
            1,000.
        n_khat_cells
            Number of these cells for which the Pareto k is computed. Default 60.
        nuts_cells
            Number of these cells for which the guide is compared with NUTS. Default 0, since it
            takes minutes. See :meth:`posterior_accuracy`.
        calibration_cells
            Number of cells to simulate for simulation-based calibration. Default 0; 500 are enough.
            See :meth:`simulation_based_calibration`.
        n_permutations
            Shuffles of the labels by which each probe is compared with chance. Default 10.
        seed
            Seed of everything drawn. Default 0.

        Returns
        -------
        pandas.DataFrame
            One row per diagnostic: ``value``, ``verdict`` (``"good"``, ``"look"``: look closer
            before relying on it, ``"bad"``), ``reading`` and ``try``.

            * *salient map*: see above. The value says how much larger the silhouette of
              groups is than that of a single cloud; if the latent has collapsed, it is the value
              of the next row.
            * *use of the salient latent*: log-likelihood a treated cell would lose without s, nats.
            * *unused dimensions* of either: number of them. See :meth:`latent_signal`.
            * *condition in z*, *condition in s*, *labels in s*, *batch in s*, *batch in z*,
              *treatments in s*: how well a probe predicts them from posterior draws, 0 for chance
              and 1 for always right. See :meth:`leakage`.
            * *pareto k*: median over cells. See :meth:`pareto_k`.
            * *looseness of the ELBO*: log p(x) less the ELBO, nats per cell.
            * *training*: the share of the fall of the negative ELBO that the last tenth of the
              epochs brought, or the share by which it has risen since its best. A
              loaded model has no such row. For a model that has not been trained it is the first
              row, with value 0.
            * with `nuts_cells`, *error of z* (and so on): root mean square difference of the
              encoder's means from those of NUTS, in posterior standard deviations; *width of z*:
              ratio of standard deviations; *amortisation gap*, nats per cell.
            * with `calibration_cells`, *calibration*: number of quantities whose ranks are not
              uniform.

            The thresholds of the verdicts are rules of thumb. They are explained where they are
            defined, in ``pyro_contrastive/analysis/diagnosis/measurements.py`` and
            ``findings.py`` next to it.

        Raises
        ------
        ValueError
            If it is not known which cells are background and target, there are fewer than ten of
            either, or a number of cells is too small.

        Examples
        --------
        >>> from pyro_contrastive import ContrastiveVI
        >>> from pyro_contrastive.data import load_kang
        >>> adata = load_kang()[::40].copy()
        >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        >>> model = ContrastiveVI(adata, n_hidden=8)
        >>> _ = model.train(max_epochs=1, enable_progress_bar=False)
        >>> table = model.diagnose(n_khat_cells=5, n_permutations=2)
        >>> table.loc["salient map", "verdict"]
        'bad'
        """
        # scikit-learn takes a second to import.
        from pyro_contrastive.analysis.diagnosis import (  # noqa: PLC0415
            findings,
            measure,
            posterior_findings,
        )

        _check_numbers(n_cells, n_khat_cells, nuts_cells, calibration_cells)
        query = self._query_of_some(adata, indices)
        codes = known_conditions(query.data)
        query = query.of(measure.balanced_sample(codes, query.cells, n_cells, seed))
        shared, batch = self._shared_labels(self._adata(adata).obs, query.cells, labels_key)
        with progress("Diagnosis", 4 * len(query), silent=silent):
            measured = measure.measure(
                query,
                shared=shared,
                batch=batch,
                elbo=elbo_by_epoch(self._history),
                n_k_cells=n_khat_cells,
                n_permutations=n_permutations,
                seed=seed,
            )
        rows = findings.findings(measured)
        if not self.is_trained:
            rows.insert(0, findings.UNTRAINED)
        some = np.random.default_rng(seed).permutation(query.cells)
        if nuts_cells:
            compared = self.posterior_accuracy(
                adata, np.sort(some[:nuts_cells]), seed=seed, silent=silent
            )
            rows += posterior_findings.accuracy_findings(compared)
        if calibration_cells:
            ranked = self.simulation_based_calibration(
                adata, query.cells, calibration_cells, seed=seed, silent=silent
            )
            rows.append(posterior_findings.calibration_finding(ranked))
        return findings.as_table(rows)

    def pareto_k(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 500,
        batch_size: int | None = None,
        *,
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
        adata, indices, seed, silent
            Cells, seed and progress bar: see *Shared arguments* in
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
        check_draws(n_samples)
        query = self._query_of_some(adata, indices, batch_size)
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
        local_steps: int = 200,
        seed: int | None = None,
        silent: bool = False,
    ) -> PosteriorAccuracy:
        """Compare the encoder with the best posterior of its family, and with NUTS, cell by cell.

        The decoder is taken as learned, and parameters that have a prior are at their posterior
        mean (for NUTS) or drawn (for the ELBOs). The amortisation gap is what the encoder loses
        against a normal posterior fitted to the cell itself; the approximation gap is what that
        posterior loses against log p(x) (Cremer, Li & Duvenaud, ICML 2018). NUTS draws from the
        posterior itself.

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
        local_steps
            Steps of Adam for the fitted posterior. Default 200.

        Raises
        ------
        ValueError
            If `indices` is not given, or a number is too small (four draws and one chain at
            least, so that there is a variance).
        TypeError
            If the guide is not a `ContrastiveGuide`.
        """
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
                local=LocalFit(n_steps=local_steps),
                nuts=NutsSettings(n_draws, n_warmup, n_chains) if nuts else None,
            )

    def simulation_based_calibration(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_simulations: int = 500,
        n_draws: int = 99,
        *,
        method: Method = "guide",
        seed: int | None = None,
        silent: bool = False,
    ) -> Calibration:
        """Rank latents that made simulated cells among posterior draws given those cells.

        Latents are drawn from their priors and data from the likelihood, in place of real cells
        whose condition, batch, covariates and observed library size they take. If the posterior is
        right, the ranks are uniform (Talts et al., arXiv 1804.06788, 2018). The log-likelihood is
        ranked too, which detects a posterior that ignores the data (Modrák et al., Bayesian
        Analysis 2023).

        It asks whether the guide inverts the model where the *model* puts cells. If latents of real
        cells do not look like draws from the prior, the encoder has seen no such cells in training,
        and the ranks may fail although the posterior of real cells is right: check those with
        :meth:`posterior_accuracy` and :meth:`pareto_k`.

        Parameters
        ----------
        adata, indices, seed, silent
            The real cells, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        n_simulations
            Number of cells to simulate, each in place of a real cell drawn at random. Default 500.
        n_draws
            Posterior draws for each; ranks go from 0 to this number. Default 99; 19, 99 and 199
            divide evenly into bins.
        method
            ``"guide"`` (default), or ``"nuts"``, to check that the fault is the guide's: slow, use
            50 simulations.

        Returns
        -------
        Calibration
            ``.table`` tests the ranks of each quantity for uniformity; ``.ranks`` has them, for
            :func:`pyro_contrastive.plotting.plot_ranks`.

        Raises
        ------
        ValueError
            If `method` is neither, or the numbers are too small to test anything (10 simulations).
        """
        if method not in {"guide", "nuts"}:
            msg = f"method must be 'guide' or 'nuts', not {method!r}."
            raise ValueError(msg)
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
        with seeded(seed), progress("Calibration", len(query), silent=silent):
            return calibrate(query, n_draws, method=method)

    def _shared_labels(
        self, obs: pd.DataFrame, cells: NDArray[np.int64], labels_key: str | None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Labels and batches of some cells by column, and the batches alone."""
        if labels_key is not None:
            check_key("labels_key", labels_key, obs)
        batch = self.setup.batch_key
        keys = label_keys(obs, labels_key, "labels_key", (self.setup.labels_key, batch))
        if batch is not None and batch not in keys:
            keys.append(batch)
        shared = {key: texts(obs.iloc[cells], key) for key in keys}
        return shared, {} if batch is None else {batch: shared[batch]}


def elbo_by_epoch(history: History) -> pd.Series:
    """Negative ELBO of held-out cells, or else of training cells; empty after loading."""
    frames = history.frames()
    for name in ("elbo_validation", "elbo_train"):
        if name in frames and len(frames[name].dropna()):
            return frames[name].iloc[:, 0].dropna()
    return pd.Series(dtype=float)


def _check_numbers(
    n_cells: int, n_khat_cells: int, nuts_cells: int, calibration_cells: int
) -> None:
    """Refuse numbers of cells that are too small for a verdict."""
    least = {"n_cells": (n_cells, 20), "n_khat_cells": (n_khat_cells, 1)}
    least |= {"nuts_cells": (nuts_cells, 0), "calibration_cells": (calibration_cells, 0)}
    for name, (number, fewest) in least.items():
        if number < fewest:
            msg = f"diagnose: {name} must be at least {fewest}, not {number}."
            raise ValueError(msg)
