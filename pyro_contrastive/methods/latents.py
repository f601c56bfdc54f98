"""Latents and library sizes of cells, which dimensions are used, and what leaks into which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import latent_usage as usage
from pyro_contrastive.analysis.posterior import latent_representation, library_size
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.columns import check_key, texts
from pyro_contrastive.data.indices import check_some
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.held_out import cells_to_judge
from pyro_contrastive.methods.labels import UNNAMED_CONDITIONS, known_conditions, label_keys

RepresentationKind = Literal["salient", "background"]

MAX_NEIGHBORS = 50
"""Neighbours of a cell for the mixing scores, in samples that are large enough."""


class LatentMethods(ModelBase):
    """Positions of cells in the latent spaces, and what these hold."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        representation_kind: RepresentationKind = "salient",
        *,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> NDArray[np.float32]:
        """Return the salient or the background latent of each cell.

        Parameters
        ----------
        adata, indices, batch_size, refine, seed, silent
            Cells, mini-batch size, refinement, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        give_mean
            The posterior mean (default), or one draw from the posterior.
        representation_kind
            ``"salient"`` (default) or ``"background"``.

        Returns
        -------
        Array ``[cells, latents]``. The salient latent is what the encoder makes of the counts,
        q(s | x), whatever the condition of the cell. So there is one for background cells too, as
        in scvi-tools, although the decoder never uses it, and for cells whose condition is missing
        or was not registered. It says where among the treated cells such a cell would lie if it
        were treated; it cannot say that it is. `refine` leaves it as it is in background cells,
        whose counts carry no evidence about it.

        Raises
        ------
        ValueError
            If `representation_kind` is neither of the two.
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, need_condition=False, refine=refine)
        with seeded(seed), progress("Latents", len(query), silent=silent):
            return latent_representation(query, representation_kind, give_mean=give_mean)

    def get_latent_library_size(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        *,
        refine: bool | int = False,
        seed: int | None = None,
        silent: bool = False,
    ) -> NDArray[np.float32]:
        """Return the library size of each cell, on the natural scale.

        Parameters
        ----------
        adata, indices, batch_size, refine, seed, silent
            Cells, mini-batch size, refinement, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.
        give_mean
            The mean of the log-normal posterior, exp(m + v / 2) (default), or one draw from it. An
            observed library size (total count or size factor) is returned unchanged.

        Returns
        -------
        Array ``[cells, 1]``.
        """
        check_arguments(locals())
        query = self._query(adata, indices, batch_size, need_condition=False, refine=refine)
        with seeded(seed), progress("Library sizes", len(query), silent=silent):
            return library_size(query, give_mean=give_mean)

    def get_latent_usage(
        self,
        representation_kind: RepresentationKind = "salient",
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        *,
        threshold: float = 0.5,
        batch_size: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Tell which dimensions of a latent are in use, by how far the guide is from the prior.

        With :class:`~pyro_contrastive.SparseSalient` it reports the dimensions that remain. With
        other priors it shows which ones collapsed to the prior.

        Parameters
        ----------
        representation_kind
            ``"salient"`` (default) or ``"background"``.
        adata, indices, batch_size, silent
            Cells, mini-batch size and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`. For the salient latent, the target cells
            among them are used: the others have none.
        threshold
            A dimension is active above this many nats per cell. Default 0.5, a convention: look
            for a gap.

        Returns
        -------
        One row per dimension: ``nats``, the KL divergence of q(latent | x) from the prior, mean
        over cells; ``spread``, the standard deviation of the posterior means over cells;
        ``active``, whether ``nats`` exceeds the threshold.

        Raises
        ------
        ValueError
            If `representation_kind` is neither of the two, or the prior does not factor over
            dimensions (mixtures and flows do not; see :meth:`latent_signal`).
        """
        check_arguments(locals())
        query = self._query_of_some(adata, indices, batch_size)
        # Seeded, since KL divergences without a closed form are estimated from draws.
        with seeded(0), progress("Latent usage", len(query), silent=silent):
            found = usage.latent_usage(query)
        found = found[found["latent"] == representation_kind].set_index("dimension")
        if found["kl"].isna().any():
            priors = {"salient": "salient_prior", "background": "background_prior"}
            prior = getattr(self.module.model, priors[representation_kind])
            msg = (
                f"{type(prior).__name__} does not factor over dimensions, so that only the sum "
                "over dimensions is known: kl_z and kl_s in model.history. latent_signal() works "
                "with any prior: it compares variances."
            )
            raise ValueError(msg)
        table = pd.DataFrame({"nats": found["kl"], "spread": found["variance_of_means"] ** 0.5})
        table["active"] = table["nats"] > threshold
        return table

    def latent_signal(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        """Tell how much each dimension of the latents says about a cell, by variances.

        Unlike :meth:`get_latent_usage`, which compares with the prior, it works with any prior.

        Parameters
        ----------
        adata, indices, seed, silent
            Cells, seed and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`.

        Returns
        -------
        One row per dimension: ``latent``, ``dimension``; ``kl``, the mean KL divergence from the
        prior in nats (NaN if the prior does not factor over dimensions, as a mixture or a flow);
        ``variance_of_means`` between cells and ``mean_variance`` within one; ``signal``, the former
        over their sum: 0 where every cell has the same posterior; ``used``, whether it is at least
        0.1. For salient dimensions, over target cells.
        """
        check_arguments(locals())
        query = self._query_of_some(adata, indices)
        with seeded(seed), progress("Latent usage", len(query), silent=silent):
            return usage.latent_usage(query)

    def score_latents(
        self,
        adata: AnnData | None = None,
        labels_key: str | None = None,
        *,
        indices: ArrayLike | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Score how well the two latents separate: condition, and labels if there are any.

        Parameters
        ----------
        adata
            The cells: see *Shared arguments* in :class:`~pyro_contrastive.ContrastiveVI`.
        labels_key
            Column of labels that the conditions share. Default: the one set up, if any.
        indices
            Positions, or a mask, of the cells. Default: those that did not train
            (`held_out_indices`), because on those that did a latent separates even conditions that
            a coin decided; all cells if fewer than ten of either population are left, or it is not
            known which trained.
        seed
            Seed of clusterings and shuffles. Default 0.

        Returns
        -------
        See :func:`~pyro_contrastive.analysis.separation.score_latents`: mixing and silhouette of
        the condition in both latents; NMI, ARI and silhouette of the labels; and beside each what
        shuffled conditions or labels give.

        Raises
        ------
        ValueError
            If the model knows no conditions, or a cell has no label.
        KeyError
            If the column does not exist; the error lists the columns.
        """
        check_arguments(locals())
        # scikit-learn takes a second to import.
        from pyro_contrastive.analysis.leakage import MIN_PER_CLASS  # noqa: PLC0415
        from pyro_contrastive.analysis.separation import score_latents  # noqa: PLC0415

        obs = self._adata(adata).obs
        codes = known_conditions(self._query(adata, None).data)
        cells = cells_to_judge(self, adata, indices, codes, MIN_PER_CLASS)
        check_some(cells)
        names = np.asarray(self.setup.conditions or UNNAMED_CONDITIONS)
        if labels_key is not None:
            check_key("labels_key", labels_key, obs)
        key = self.setup.labels_key if labels_key is None else labels_key
        return score_latents(
            self.get_latent_representation(adata, cells, representation_kind="background"),
            self.get_latent_representation(adata, cells, representation_kind="salient"),
            names[codes[cells]],
            labels=None if key is None else texts(obs.iloc[cells], key),
            background_category=names[0],
            n_neighbors=max(1, min(MAX_NEIGHBORS, len(cells) // 4)),
            seed=seed,
        )

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

        A probe is a classifier that predicts a label from a latent. The condition is predicted from
        z and from s of all cells; labels that the conditions share, and batches, from z of all
        cells and from s of target cells. Latents are posterior draws, not means: a difference that
        is small compared with the posterior's width is invisible to the decoder too.

        Parameters
        ----------
        adata, indices, silent
            Cells and progress bar: see *Shared arguments* in
            :class:`~pyro_contrastive.ContrastiveVI`. A few thousand cells are enough; probes are
            slow.
        labels_keys
            Columns of labels that the conditions share. Default: the labels and the batch set up.
        n_permutations
            Shuffles of the labels, to see what chance gives. Default 20.
        seed
            Seed of draws, folds and shuffles. Default 0.

        Returns
        -------
        One row per latent and label: ``latent``, ``of``, ``probe`` (``"linear"`` or
        ``"neighbors"``, whichever did better), ``balanced_accuracy``, ``auc``, ``chance``,
        ``upper_chance``, ``p_value``, ``excess``, ``mixing`` and the numbers of classes and cells;
        see :func:`~pyro_contrastive.analysis.leakage.leakage_row`.
        """
        check_arguments(locals())
        from pyro_contrastive.analysis import leakage  # noqa: PLC0415  # scikit-learn

        obs = self._adata(adata).obs
        query = self._query_of_some(adata, indices)
        is_target = known_conditions(query.data)[query.cells] > 0
        registered = (self.setup.labels_key, self.setup.batch_key)
        keys = label_keys(obs, labels_keys, "labels_keys", registered)
        probes: list[tuple[str, str, Any, Any]] = []
        with seeded(seed), progress("Leakage", 2 * len(query), silent=silent):
            draws = {
                kind: latent_representation(query, kind, give_mean=False)
                for kind in ("background", "salient")
            }
        for latent, values in draws.items():
            probes.append((latent, "condition", values, is_target))
            there = np.ones_like(is_target) if latent == "background" else is_target
            for key in keys:
                labels = texts(obs.iloc[query.cells], key)
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
