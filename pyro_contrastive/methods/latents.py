"""Latents and library sizes of cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.latent_usage import latent_usage
from pyro_contrastive.analysis.posterior import SITES, latent_representation, library_size
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.data.columns import check_key, texts
from pyro_contrastive.methods.base import ModelBase

RepresentationKind = Literal["salient", "background"]


class LatentMethods(ModelBase):
    """Where cells lie in the latent spaces."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        representation_kind: RepresentationKind = "salient",
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> NDArray[np.float32]:
        """Return the salient or the background latent of each cell.

        Parameters
        ----------
        adata
            Cells with the model's genes and covariates; default those the model was made with.
        indices
            Which cells, as indices or boolean mask; default all. A mask that is a pandas Series is
            aligned by its index, which must hold the cell names; integers are positions, and their
            index is not looked at.
        give_mean
            The posterior mean (default), or one draw from the posterior.
        batch_size
            Cells encoded at a time; default 1,024.
        representation_kind
            ``"salient"`` or ``"background"``.
        seed
            Seed of the draw.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        Array ``[cells, latents]``. The salient latent is what the encoder makes of the counts,
        q(s | x), whatever the condition of the cell: it is computed for background cells too, as in
        scvi-tools, although the decoder never uses it; and for cells of which the condition is
        missing, or none of those the model was set up with. For these it says where among the
        treated cells they would lie if they were treated; it cannot say that they are.

        Raises
        ------
        ValueError
            If `representation_kind` is neither of the two.
        """
        _, data, chosen = self._cells(adata, indices, need_condition=False)
        with seeded(seed), progress("Latents", len(chosen), silent=silent):
            return latent_representation(
                self.module,
                data,
                chosen,
                representation_kind,
                give_mean=give_mean,
                batch_size=batch_size,
            )

    def get_latent_library_size(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> NDArray[np.float32]:
        """Return the library size of each cell, natural scale.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        give_mean
            Mean of the log-normal posterior, exp(m + v / 2), or one draw from it. An observed
            library size (total counts, or the size factor) is returned as it is.
        seed
            Seed of the draw.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        Array ``[cells, 1]``.
        """
        _, data, chosen = self._cells(adata, indices, need_condition=False)
        with seeded(seed), progress("Library sizes", len(chosen), silent=silent):
            return library_size(
                self.module, data, chosen, give_mean=give_mean, batch_size=batch_size
            )

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
        """Tell which dimensions of a latent are in use, by what the guide says in each.

        With :class:`~pyro_contrastive.SparseSalient` this is the report of the dimensions that
        remain; with other priors it shows which collapsed to the prior.

        Parameters
        ----------
        representation_kind
            ``"salient"`` or ``"background"``.
        adata
            Cells with the model's genes and conditions; default those it was made with.
        indices
            Which cells, as indices or boolean mask; default all. For the salient latent the target
            cells among them, for others have none.
        threshold
            Nats per cell from which on a dimension counts as active. A convention: look for a gap.
        batch_size
            Cells at a time; default 1,024.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        One row per dimension: ``nats``, the KL divergence of q(latent | x) from the prior, mean
        over cells; ``spread``, the standard deviation of the posterior means over cells;
        ``active``, whether ``nats`` exceeds the threshold.

        Raises
        ------
        ValueError
            If `representation_kind` is neither of the two, or the prior does not say something of
            each dimension by itself (mixtures and flows do not; see :meth:`latent_signal`).
        """
        if representation_kind not in SITES:
            msg = f"representation_kind must be one of {list(SITES)}, not {representation_kind!r}."
            raise ValueError(msg)
        _, data, cells = self._some_cells(adata, indices)
        # Draws are made on the way, for priors without a closed form.
        with seeded(0), progress("Latent usage", len(cells), silent=silent):
            usage = latent_usage(self.module, data, cells, batch_size)
        usage = usage[usage["latent"] == representation_kind].set_index("dimension")
        if usage["kl"].isna().any():
            priors = {"salient": "salient_prior", "background": "background_prior"}
            prior = getattr(self.module.model, priors[representation_kind])
            msg = (
                f"{type(prior).__name__} says nothing of a dimension by itself, so that only the "
                "sum over dimensions is known: kl_z and kl_s in model.history. latent_signal() "
                "tells, by variances, with any prior."
            )
            raise ValueError(msg)
        table = pd.DataFrame({"nats": usage["kl"], "spread": usage["variance_of_means"] ** 0.5})
        table["active"] = table["nats"] > threshold
        return table

    def score_latents(
        self, adata: AnnData | None = None, labels_key: str | None = None, *, seed: int = 0
    ) -> pd.DataFrame:
        """Score how well the two latents separate: condition, and labels if there are.

        Parameters
        ----------
        adata
            Cells with the model's genes and conditions; default those it was made with.
        labels_key
            Column of labels that the conditions share; default the one set up, if any.
        seed
            Of the clusterings.

        Returns
        -------
        See :func:`~pyro_contrastive.analysis.separation.score_latents`: mixing and silhouette of
        the condition in both latents; NMI, ARI and silhouette of the labels.

        Raises
        ------
        ValueError
            If the model knows no conditions, or a cell has no label.
        KeyError
            If the column does not exist; the error lists the columns.
        """
        # scikit-learn takes a second to import.
        from pyro_contrastive.analysis.separation import score_latents  # noqa: PLC0415

        chosen, data, _ = self._cells(adata, None)
        if data.condition is None:
            msg = "The model knows no conditions: set the data up with condition_key=, or train."
            raise ValueError(msg)
        names = np.asarray(self.setup.conditions or ("background", "target"))
        if labels_key is not None:
            check_key("labels_key", labels_key, chosen.obs)
        key = self.setup.labels_key if labels_key is None else labels_key
        return score_latents(
            self.get_latent_representation(adata, representation_kind="background"),
            self.get_latent_representation(adata, representation_kind="salient"),
            names[data.condition],
            labels=None if key is None else texts(chosen.obs, key),
            background_category=names[0],
            seed=seed,
        )
