"""What each latent holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import latent_usage as usage
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.columns import one_or_several, texts
from pyro_contrastive.methods.latents import LatentMethods


class LatentCheckMethods(LatentMethods):
    """Which dimensions are used, and what leaks into which latent."""

    def latent_signal(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Tell how much each dimension of the latents says of a cell, by variances.

        Unlike :meth:`get_latent_usage`, which measures by the prior, it works with any prior.

        Parameters
        ----------
        adata, indices, seed, silent
            As in :meth:`get_elbo`.

        Returns
        -------
        One row per dimension: ``latent``, ``dimension``; ``kl``, the mean KL divergence from the
        prior in nats (NaN if the prior does not factor over dimensions, as a mixture or a flow);
        ``variance_of_means`` between cells and ``mean_variance`` within one; ``signal``, the former
        over their sum: 0 where every cell has the same posterior; ``used``, whether that is 0.1 at
        least. Salient dimensions over target cells.
        """
        _, data, cells = self._some_cells(adata, indices)
        with seeded(seed), progress("Latent usage", len(cells), silent=silent):
            return usage.latent_usage(self.module, data, cells)

    def leakage(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        labels_keys: Sequence[str] | str | None = None,
        *,
        n_permutations: int = 20,
        seed: int = 0,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Probe each latent for what it should hold, and for what it should not.

        The condition in z and in s of all cells; labels that the conditions share, and batches, in
        z of all cells and in s of target cells. By posterior draws, not means: a difference that is
        small beside the posterior's width is not seen by the decoder either.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_elbo`. Take a few thousand cells: probes take their time.
        labels_keys
            Columns of labels that the conditions share; default the labels and the batch set up.
        n_permutations
            Shuffles of the labels, for what chance gives.
        seed
            Of draws, folds and shuffles.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        One row per latent and label: ``latent``, ``of``, ``probe`` (``"linear"`` or
        ``"neighbors"``, whichever did better), ``balanced_accuracy``, ``auc``, ``chance``,
        ``upper_chance``, ``p_value``, ``excess``, ``mixing`` and the numbers of classes and cells;
        see :func:`~pyro_contrastive.analysis.leakage.leakage_row`.
        """
        from pyro_contrastive.analysis import leakage  # noqa: PLC0415  # scikit-learn

        chosen, data, cells = self._some_cells(adata, indices)
        is_target = self._conditions_of(data)[cells] > 0
        if n_permutations < 1:
            msg = f"n_permutations must be at least 1, not {n_permutations}."
            raise ValueError(msg)
        keys = self._label_keys(chosen, labels_keys, "labels_keys")
        probes: list[tuple[str, str, Any, Any]] = []
        with seeded(seed), progress("Leakage", 2 * len(cells), silent=silent):
            draws = {
                kind: self.get_latent_representation(
                    adata, cells, give_mean=False, representation_kind=kind, silent=True
                )
                for kind in ("background", "salient")
            }
        for latent, values in draws.items():
            probes.append((latent, "condition", values, is_target))
            there = np.ones_like(is_target) if latent == "background" else is_target
            for key in keys:
                labels = texts(chosen.obs.iloc[cells], key)
                probes.append((latent, key, values[there], labels[there]))
        rows = [
            {
                "latent": latent,
                "of": of,
                **leakage.leakage_row(values, labels, n_permutations=n_permutations, seed=seed),
            }
            for latent, of, values, labels in probes
        ]
        return pd.DataFrame(rows)

    def _conditions_of(self, data: CellData) -> NDArray[np.int64]:
        if data.condition is None:
            msg = "The model knows no conditions: set the data up with condition_key=, or train."
            raise ValueError(msg)
        return data.condition

    def _label_keys(self, adata: AnnData, given: object, argument: str) -> list[str]:
        """Return the columns asked for, or those set up of which these cells have the column."""
        if given is None:
            registered = (self.setup.labels_key, self.setup.batch_key)
            return list(dict.fromkeys(k for k in registered if k is not None and k in adata.obs))
        keys = one_or_several(argument, given, adata.obs)
        missing = [key for key in keys if key not in adata.obs]
        if missing:
            msg = f"labels: adata.obs has no column {missing}; it has {list(adata.obs.columns)}."
            raise KeyError(msg)
        return keys
