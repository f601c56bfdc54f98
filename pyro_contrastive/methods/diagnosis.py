"""The diagnosis of a fit, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import Whole, check_arguments
from pyro_contrastive.analysis.diagnosis.measurements import GenesFound
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.columns import check_key, texts
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.differential import DifferentialMethods
from pyro_contrastive.methods.held_out import cells_to_judge, trained_cells
from pyro_contrastive.methods.labels import known_conditions, label_keys
from pyro_contrastive.methods.posterior import PosteriorMethods
from pyro_contrastive.training.history import History

GENES_FDR = 0.05


class DiagnosisMethods(PosteriorMethods, DifferentialMethods):
    """All diagnostics in one call, with a verdict for each."""

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
        n_permutations: int = 20,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Check for everything that commonly goes wrong, and explain what was found.

        The first row, ``"salient map"``, answers "my salient UMAP is one blob". It says whether the
        salient latent has collapsed, and if so whether there is nothing salient to find, the
        response went into the background latent, or the model has not found it; or else whether it
        carries the condition, and whether the treated cells form groups in it. A response that is
        too weak to show in single cells is recognised by the genes whose means differ.

        Parameters
        ----------
        adata, silent
            Cells and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        indices
            Positions, or a mask, of the cells to choose from. Default: those that did not train
            (`held_out_indices`), because everything looks better on cells that did; all cells if
            fewer than ten of either population are left, or it is not known which trained. The row
            *cells* says which it was.
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
            Shuffles of the labels by which each probe is compared with chance. Default 20.
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
            * *genes that differ*: how many ``differential_expression(mode="means")`` finds at a
              false discovery rate of 5 %, of all cells to choose from, also those that trained:
              the test has no use for the salient latent. Only for counts with a library size.
            * *use of the salient latent*: log-likelihood a treated cell would lose without s, nats,
              mean over cells. Of cells that did not train it can be negative.
            * *unused dimensions* of either: number of them. See :meth:`latent_signal`.
            * *condition in z*, *condition in s*, *labels in s*, *batch in s*, *batch in z*,
              *treatments in s*: how well a probe predicts them from posterior draws, 0 for chance
              and 1 for always right. See :meth:`leakage`.
            * *donors*, if ``sample_key`` was set up: the smaller number of donors of the two
              conditions. *donors in s*: how well a probe tells the donors of treated cells.
            * *pareto k*, of the guide, and *pareto k, refined*: medians over cells. See
              :meth:`pareto_k`.
            * *amortisation gap*: what refinement adds to the ELBO, nats per cell.
            * *looseness of the ELBO*: log p(x) less the ELBO of the guide, nats per cell.
            * *training*: the share of the fall of the negative ELBO that the last tenth of the
              epochs brought, or the share by which it has risen since its best; and the epoch
              whose weights were put back, if they were. For a model that has not been trained it is
              the first row, with value 0.
            * *cells*: how many cells all this is of, and whether they trained the model.
            * with `nuts_cells`, *error of z* (and so on): root mean square difference of the
              encoder's means from those of NUTS, in posterior standard deviations; *width of z*:
              ratio of standard deviations.
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
        check_arguments(locals(), n_cells=Whole(20))
        # scikit-learn takes a second to import.
        from pyro_contrastive.analysis.diagnosis import (  # noqa: PLC0415
            donors,
            findings,
            measure,
            posterior_findings,
        )
        from pyro_contrastive.analysis.leakage import MIN_PER_CLASS  # noqa: PLC0415

        query = self._query_of_some(adata, indices, refine=self.is_trained)
        codes = known_conditions(query.data)
        cells = cells_to_judge(self, adata, indices, codes, MIN_PER_CLASS)
        query = query.of(measure.balanced_sample(codes, cells, n_cells, seed))
        shared, batch = self._shared_labels(self._adata(adata).obs, query.cells, labels_key)
        with progress("Diagnosis", 4 * len(query), silent=silent):
            measured = measure.measure(
                query,
                shared=shared,
                batch=batch,
                elbo=elbo_by_epoch(self._history),
                restored_epoch=self._history.restored_epoch,
                genes=self._genes_that_differ(adata, indices, codes, seed),
                n_k_cells=n_khat_cells,
                n_permutations=n_permutations,
                seed=seed,
            )
        rows = findings.findings(measured)
        sample_key = self.setup.sample_key
        if sample_key is not None and sample_key in (obs := self._adata(adata).obs):
            of_cell = texts(obs, sample_key)
            rows += donors.donor_findings(
                query, of_cell, sample_key, n_permutations=n_permutations, seed=seed
            )
        if not self.is_trained:
            rows.insert(0, findings.UNTRAINED)
        else:
            seen, is_asked = trained_cells(self, adata), indices is not None
            rows.append(findings.cells_finding(codes, query.cells, seen, is_asked=is_asked))
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

    def _genes_that_differ(
        self,
        adata: AnnData | None,
        indices: ArrayLike | None,
        codes: NDArray[np.int64],
        seed: int,
    ) -> GenesFound | None:
        """Test the means of all treated against all background cells; ``None``: not applicable."""
        likelihood = self.module.model.likelihood
        is_count = likelihood.uses_library and likelihood.support.is_discrete
        if not (self.is_trained and is_count):
            return None
        cells = as_indices(indices, self._adata(adata).obs_names)
        is_target = codes[cells] != BACKGROUND
        try:
            table = self.differential_expression(
                adata,
                idx1=cells[is_target],
                idx2=cells[~is_target],
                mode="means",
                fdr_target=GENES_FDR,
                seed=seed,
                silent=True,
            )
        except ValueError as error:  # too few donors, or a condition that is its batch
            return GenesFound(refused=str(error))
        found = int(table[f"is_de_fdr_{GENES_FDR}"].sum())
        tested = int(table["p_value"].notna().sum())
        return GenesFound(found, tested, self.setup.sample_key)

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
        labels = {key: texts(obs.iloc[cells], key) for key in keys}
        # Donors in s have a row of their own.
        shared = {k: v for k, v in labels.items() if k != self.setup.sample_key or k == labels_key}
        return shared, {} if batch is None else {batch: labels[batch]}


def elbo_by_epoch(history: History) -> pd.Series:
    """Negative ELBO of held-out cells, or else of training cells; empty after loading."""
    frames = history.frames()
    for name in ("elbo_validation", "elbo_train"):
        if name in frames and len(frames[name].dropna()):
            return frames[name].iloc[:, 0].dropna()
    return pd.Series(dtype=float)
