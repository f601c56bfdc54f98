"""Whether the posterior can be trusted, and the diagnosis of everything in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.columns import check_key, texts
from pyro_contrastive.methods.latent_checks import LatentCheckMethods
from pyro_contrastive.methods.trust import TrustMethods

Indices = NDArray[np.int64]


class DiagnosisMethods(TrustMethods, LatentCheckMethods):
    """All diagnostics in one call."""

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
        """Look at everything that commonly goes wrong, and say in words what it means.

        The first row, ``"salient map"``, answers "my salient UMAP is one blob": whether the salient
        latent has collapsed, and then whether there is nothing salient to find, it went into the
        background latent, or the model has not found it; or whether it carries the condition, and
        with or without groups among the treated cells.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.
        labels_key
            Column of labels that the conditions share, such as cell types; default the one set up.
            Without, nothing is said of labels.
        n_cells
            On how many cells, half of them background cells, drawn at random. Default 1,000.
        n_khat_cells
            On how many of these the Pareto k is computed. Default 60.
        nuts_cells
            On how many of these the guide is compared with NUTS; default 0: not at all, for it
            takes minutes. See :meth:`posterior_accuracy`.
        calibration_cells
            How many cells to simulate for simulation-based calibration; default 0: none. 500 are
            enough. See :meth:`simulation_based_calibration`.
        n_permutations
            Shuffles of the labels by which each probe is compared with chance. Default 10.
        seed
            Of everything drawn. Default 0.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        pandas.DataFrame
            One row per diagnostic: ``value``, ``verdict`` (``"good"``, ``"look"``: look closer
            before relying on it, ``"bad"``), ``reading`` and ``try``.

            * *salient map*: see above. The value is the excess of the silhouette of groups over
              that of one cloud, or with a collapsed latent the next one.
            * *use of the salient latent*: log-likelihood a treated cell would lose without s, nats.
            * *unused dimensions* of either: number of them. See :meth:`latent_signal`.
            * *condition in z*, *condition in s*, *labels in s*, *batch in s*, *batch in z*,
              *treatments in s*: how well they are told from posterior draws, 0 for chance and 1 for
              never wrong. See :meth:`leakage`.
            * *pareto k*: median over cells. See :meth:`pareto_k`.
            * *looseness of the ELBO*: log p(x) less the ELBO, nats per cell.
            * *training*: share of the fall of the negative ELBO brought by the last tenth of the
              epochs, or by which it has risen since its best; not after loading. The first row,
              and 0, of a model that has not been trained.
            * with `nuts_cells`, *error of z* (and so on): root mean square difference of the
              encoder's means from those of NUTS, in posterior standard deviations; *width of z*:
              ratio of standard deviations; *amortisation gap*, nats per cell.
            * with `calibration_cells`, *calibration*: number of quantities whose ranks are not
              uniform.

            The thresholds of the verdicts are rules of thumb; they stand, with reasons, in
            ``pyro_contrastive/analysis/diagnosis/facts.py`` and ``findings.py`` beside it.

        Raises
        ------
        ValueError
            If it is not known which cells are background and target, or there are fewer than ten of
            either; if a number of cells is too small.

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
        from pyro_contrastive.analysis.diagnosis import diagnose, findings  # noqa: PLC0415

        _check_numbers(n_cells, n_khat_cells, nuts_cells, calibration_cells)
        chosen, data, among = self._some_cells(adata, indices)
        codes = self._conditions_of(data)
        cells = diagnose.balanced_sample(codes, among, n_cells, seed)
        shared, batch = self._shared_labels(chosen, cells, labels_key)
        with progress("Diagnosis", 4 * len(cells), silent=silent):
            facts = diagnose.measure(
                self.module,
                data,
                cells,
                shared=shared,
                batch=batch,
                elbo=self._elbo_by_epoch(),
                n_k_cells=n_khat_cells,
                n_permutations=n_permutations,
                seed=seed,
            )
        rows = findings.findings(facts)
        if not self.is_trained:
            rows.insert(0, findings.UNTRAINED)
        some = np.random.default_rng(seed).permutation(cells)
        if nuts_cells:
            found = self.posterior_accuracy(
                adata, np.sort(some[:nuts_cells]), seed=seed, silent=silent
            )
            rows += findings.accuracy_findings(found)
        if calibration_cells:
            rows.append(
                findings.calibration_finding(
                    self.simulation_based_calibration(
                        adata, cells, calibration_cells, seed=seed, silent=silent
                    )
                )
            )
        table = pd.DataFrame(
            [
                {
                    "diagnostic": row.diagnostic,
                    "value": row.value,
                    "verdict": row.verdict,
                    "reading": row.reading,
                    "try": row.advice,
                }
                for row in rows
            ]
        )
        return table.set_index("diagnostic")

    def _shared_labels(
        self, adata: AnnData, cells: Indices, labels_key: str | None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Labels and batches of some cells by column, and the batches alone."""
        if labels_key is not None:
            check_key("labels_key", labels_key, adata.obs)
        keys = self._label_keys(adata, labels_key, "labels_key")
        batch = self.setup.batch_key
        if batch is not None and batch not in keys:
            keys.append(batch)
        shared = {key: texts(adata.obs.iloc[cells], key) for key in keys}
        return shared, {} if batch is None else {batch: shared[batch]}

    def _elbo_by_epoch(self) -> pd.Series:
        frames = self._history.frames()
        for name in ("elbo_validation", "elbo_train"):
            if name in frames and len(frames[name].dropna()):
                return frames[name].iloc[:, 0].dropna()
        return pd.Series(dtype=float)


def _check_numbers(
    n_cells: int, n_khat_cells: int, nuts_cells: int, calibration_cells: int
) -> None:
    """Refuse numbers of cells that would give a verdict on nothing."""
    least = {"n_cells": (n_cells, 20), "n_khat_cells": (n_khat_cells, 1)}
    least |= {"nuts_cells": (nuts_cells, 0), "calibration_cells": (calibration_cells, 0)}
    for name, (number, fewest) in least.items():
        if number < fewest:
            msg = f"diagnose: {name} must be at least {fewest}, not {number}."
            raise ValueError(msg)
