"""ContrastiveVI: the AnnData-level class users meet first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from pyro.infer import Trace_ELBO

from pyro_contrastive.analysis.posterior import latent_representation
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.indices import as_indices, populations
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.priors import PriorLike
from pyro_contrastive.saving import (
    SavedModel,
    components_of,
    elbo_name,
    read_folder,
    write_folder,
)
from pyro_contrastive.torch_tools import numpy_rng, seeded
from pyro_contrastive.training.history import EarlyStopping, History
from pyro_contrastive.training.plan import TrainingPlan, default_max_epochs
from pyro_contrastive.training.splits import split_populations
from pyro_contrastive.vae import ContrastiveVAE

if TYPE_CHECKING:
    from pyro_contrastive.training.fit import FitResult

RepresentationKind = Literal["salient", "background"]


class ContrastiveVI:
    """Contrastive analysis of single-cell counts (Weinberger, Lin & Lee, Nature Methods 2023).

    Same names and defaults as ``scvi.external.ContrastiveVI``. The Pyro programs are
    ``model.module.model`` and ``model.module.guide``.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    n_hidden
        Width of the hidden layers.
    n_background_latent, n_salient_latent
        Dimensions of the background latent z (variation shared by all cells) and of the salient
        latent s (variation that only target cells have).
    n_layers
        Number of hidden layers of each encoder and of the decoder.
    dropout_rate
        Dropout in the encoders.
    use_observed_lib_size
        Take a cell's total count as its library size (default), or infer it, with a log-normal
        prior per batch.
    wasserstein_penalty
        Weight of the penalty that pins the salient latent of background cells to 0.
    likelihood, background_prior, salient_prior, penalties, elbo, elbo_kwargs
        As in :class:`~pyro_contrastive.ContrastiveVAE`.

    Raises
    ------
    ValueError
        If `adata` is not registered, or its size factors and a latent library size are both asked
        for.

    Examples
    --------
    >>> from pyro_contrastive import ContrastiveVI
    >>> from pyro_contrastive.data import load_kang
    >>> adata = load_kang()[::20].copy()
    >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    >>> model = ContrastiveVI(adata, n_hidden=16)
    >>> _ = model.train(max_epochs=1, progress_bar=False)
    >>> model.get_latent_representation(representation_kind="salient").shape[1]
    10
    """

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_background_latent: int = 10,
        n_salient_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        use_observed_lib_size: bool = True,
        wasserstein_penalty: float = 0,
        *,
        likelihood: Likelihood | None = None,
        background_prior: PriorLike | None = None,
        salient_prior: PriorLike | None = None,
        penalties: Sequence[Penalty] = (),
        elbo: type[Trace_ELBO] = Trace_ELBO,
        elbo_kwargs: dict[str, Any] | None = None,
    ) -> None:
        settings: dict[str, Any] = {
            "n_hidden": n_hidden,
            "n_background_latent": n_background_latent,
            "n_salient_latent": n_salient_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "use_observed_lib_size": use_observed_lib_size,
            "wasserstein_penalty": wasserstein_penalty,
            "elbo_kwargs": elbo_kwargs or {},
        }
        setup = Setup.of(adata)
        setup.check_genes(adata)
        library: dict[str, Any] = {}
        if not use_observed_lib_size:
            if setup.size_factor_key is not None:
                msg = (
                    "The setup names a size_factor_key, which is an observed library size; use "
                    "use_observed_lib_size=True, or set up the data without it."
                )
                raise ValueError(msg)
            moments = setup.extract(adata).library_moments(setup.n_batch)
            library = dict(zip(("library_log_means", "library_log_vars"), moments, strict=True))
        components = {
            "likelihood": likelihood,
            "background_prior": background_prior,
            "salient_prior": salient_prior,
            "penalties": penalties,
        }
        self._assemble(setup, settings, components | library, elbo)
        self.adata: AnnData | None = adata

    def _assemble(
        self,
        setup: Setup,
        settings: dict[str, Any],
        parts: dict[str, Any],
        elbo: type[Trace_ELBO],
    ) -> None:
        """Make the module, from a registered AnnData or from a saved model alike."""
        self.setup = setup
        self.settings = settings
        self.module = ContrastiveVAE(
            n_input=len(setup.genes),
            n_batch=setup.n_batch,
            n_cats_per_cov=setup.n_cats_per_cov,
            n_continuous_cov=len(setup.continuous_covariate_keys),
            elbo=elbo,
            **settings,
            **parts,
        )
        self.module.eval()
        self.is_trained = False
        self._history = History()

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        condition_key: str | None = None,
        background: str | float | None = None,
    ) -> None:
        """Say what is what in `adata`; checks it, and leaves a record in ``adata.uns``.

        Parameters
        ----------
        adata
            Cells by genes, in memory.
        layer
            Layer with the raw counts; default ``adata.X``.
        batch_key
            Column of ``adata.obs`` with the batch of each cell: told to encoders and decoder.
        labels_key
            Column with labels (cell types), for analysis; the model is not told of it.
        size_factor_key
            Column with size factors, used as library size instead of the total counts.
        categorical_covariate_keys, continuous_covariate_keys
            Columns with further covariates: told to encoders and decoder.
        condition_key
            Column with the condition of each cell. Without it, give the indices of background and
            target cells to :meth:`train`.
        background
            Which value of the condition marks background (control) cells, as it stands in the
            column (a string, a number or a truth value). All others are target.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If the counts are not raw counts (the error names the cell and the gene), a column has
            missing values, gene names repeat, or `background` is not one of the conditions.
        """
        Setup.register(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            condition_key=condition_key,
            background=background,
        )

    def train(
        self,
        background_indices: ArrayLike | None = None,
        target_indices: ArrayLike | None = None,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = False,
        plan_kwargs: dict[str, Any] | None = None,
        *,
        early_stopping_monitor: str = "elbo_validation",
        early_stopping_patience: int = 45,
        early_stopping_min_delta: float = 0.0,
        check_val_every_n_epoch: int = 1,
        progress_bar: bool = True,
        seed: int | None = None,
    ) -> FitResult:
        """Fit the model. A second call goes on from the weights there are.

        As in scvi-tools, a second call makes a new optimiser, and the KL weight grows from its
        start again (``plan_kwargs={"min_kl_weight": 1}`` keeps it at 1).

        Parameters
        ----------
        background_indices, target_indices
            Indices (or boolean masks) of background and target cells. Default: from the condition
            given to :meth:`setup_anndata`.
        max_epochs
            Passes over the larger population; default 400 up to 20,000 cells, then fewer.
        accelerator, devices
            As in Lightning; "auto" takes CUDA when there is one. Exactly one device is used.
        train_size, validation_size
            Fractions of each population that train and that are held out; default 0.9 and 0.1.
            Held-out quantities are recorded when both populations have held-out cells.
        shuffle_set_split
            Shuffle the cells before they are split.
        batch_size
            Cells of each population in a step, at most.
        early_stopping
            Stop when `early_stopping_monitor` has not improved by `early_stopping_min_delta` for
            `early_stopping_patience` checks, and put back the best weights.
        plan_kwargs
            See :class:`~pyro_contrastive.training.TrainingPlan`: ``lr``, ``n_epochs_kl_warmup`` ...
        early_stopping_monitor, early_stopping_patience, early_stopping_min_delta
            See `early_stopping`.
        check_val_every_n_epoch
            How often the held-out ELBO is computed, and early stopping considered.
        progress_bar
            Show one.
        seed
            Seed of the split, the order of the cells and all noise; default: torch's global state
            (``pyro.set_rng_seed``). The same seed gives the same result on a CPU.

        Returns
        -------
        How the run ended: epochs, seconds, whether it stopped early or was interrupted.

        Raises
        ------
        ValueError
            If it is not known which cells are background and target, or they overlap; if a number
            is out of range; if early stopping watches a quantity that will not be there.
        NonFiniteLossError
            If the loss becomes NaN or infinite; says at which site.
        """
        # Lightning takes seconds to import, and only training needs it.
        from pyro_contrastive.training.devices import one_device  # noqa: PLC0415
        from pyro_contrastive.training.fit import fit  # noqa: PLC0415

        plan = TrainingPlan.from_kwargs(plan_kwargs)
        fabric = one_device(accelerator, devices)
        data = self._data(None)
        cells = populations(data.condition, background_indices, target_indices, len(data))
        data = data.with_condition(*cells)
        if max_epochs is None:
            max_epochs = default_max_epochs(sum(map(len, cells)))
        stopping = None
        if early_stopping:
            stopping = EarlyStopping(
                early_stopping_monitor, early_stopping_patience, early_stopping_min_delta
            )
        with seeded(seed):
            rng = numpy_rng()
            split = split_populations(
                *cells,
                train_size=train_size,
                validation_size=validation_size,
                shuffle=shuffle_set_split,
                rng=rng,
            )
            result = fit(
                self.module,
                data,
                split,
                plan,
                self._history,
                max_epochs=max_epochs,
                batch_size=batch_size,
                fabric=fabric,
                rng=rng,
                early_stopping=stopping,
                check_val_every_n_epoch=check_val_every_n_epoch,
                progress_bar=progress_bar,
            )
        self.is_trained = True
        return result

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Losses by epoch: ``{name: frame with one column, indexed by epoch}``.

        ``elbo_train``, ``elbo_validation``, ``reconstruction_loss_*``, ``kl_local_*``, ``kl_z_*``,
        ``kl_s_*`` and penalties: negative ELBO and its parts per background/target pair, without
        the KL weight; ``train_loss_epoch`` with it; ``kl_weight`` at the end of the epoch.
        """
        return self._history.frames()

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the model's order."""
        return list(self.setup.genes)

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        representation_kind: RepresentationKind = "salient",
        *,
        seed: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the salient or the background latent of each cell.

        Parameters
        ----------
        adata
            Cells with the model's genes and covariates; default those the model was made with.
        indices
            Which cells, as indices or boolean mask; default all.
        give_mean
            The posterior mean (default), or one draw from the posterior.
        batch_size
            Cells encoded at a time; default 1,024.
        representation_kind
            ``"salient"`` or ``"background"``.
        seed
            Seed of the draw.

        Returns
        -------
        Array ``[cells, latents]``. The salient latent is computed for background cells too, as in
        scvi-tools, although the decoder never uses it.

        Raises
        ------
        ValueError
            If `representation_kind` is neither of the two.
        """
        data = self._data(adata)
        chosen = as_indices(indices, len(data))
        with seeded(seed):
            return latent_representation(
                self.module,
                data,
                chosen,
                representation_kind,
                give_mean=give_mean,
                batch_size=batch_size,
            )

    def save(
        self,
        dir_path: str | Path,
        overwrite: bool = False,
        save_anndata: bool = False,
    ) -> None:
        """Save the model as a folder: weights (safetensors), settings and history (JSON).

        Parameters
        ----------
        dir_path
            The folder. It appears complete or not at all.
        overwrite
            Replace a folder that is there.
        save_anndata
            Add the AnnData, as ``adata.h5ad``.

        Raises
        ------
        FileExistsError
            If the folder is there and `overwrite` is not set, or it holds other files too.
        TypeError
            If ``module.objective`` was replaced by one that cannot be saved.
        """
        saved = SavedModel(
            setup=self.setup,
            settings=self.settings,
            elbo=elbo_name(self.module),
            components=components_of(self.module),
            history=self._history,
            is_trained=self.is_trained,
            weights=self.module.state_dict(),
        )
        adata = self._adata(None) if save_anndata else None
        write_folder(Path(dir_path), saved, adata, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        *,
        likelihood: Likelihood | None = None,
        background_prior: PriorLike | None = None,
        salient_prior: PriorLike | None = None,
        penalties: Sequence[Penalty] | None = None,
    ) -> Self:
        """Load what :meth:`save` wrote; onto the CPU, wherever it was trained.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            Data for the model; default the saved ones, if they were saved. Without any, give
            ``adata=`` to the methods that need data.
        likelihood, background_prior, salient_prior, penalties
            Components of your own, when they cannot be imported by name.

        Raises
        ------
        FileNotFoundError
            If the folder or a file of it is missing.
        ValueError
            If a file is damaged, the data differ from what the model was set up with, or a
            component must be given.
        """
        given = {
            "likelihood": likelihood,
            "background_prior": background_prior,
            "salient_prior": salient_prior,
            "penalties": penalties,
        }
        saved, saved_adata = read_folder(Path(dir_path))
        model = cls.__new__(cls)
        parts = saved.make_components(given) | saved.library_moments()
        with seeded(0):  # starting values, to be replaced: they must not cost random numbers
            model._assemble(saved.setup, saved.settings, parts, saved.elbo_class())
        saved.load_weights(model.module)
        model._history = saved.history
        model.is_trained = saved.is_trained
        model.adata = adata if adata is not None else saved_adata
        if adata is not None:
            model.setup.extract(adata)  # says what differs, now
        return model

    def _adata(self, adata: AnnData | None) -> AnnData:
        chosen = adata if adata is not None else self.adata
        if chosen is None:
            msg = "The model was loaded without data: give adata=."
            raise ValueError(msg)
        return chosen

    def _data(self, adata: AnnData | None) -> CellData:
        return self.setup.extract(self._adata(adata))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}: {v}" for k, v in self.settings.items() if k != "elbo_kwargs")
        likelihood = type(self.module.model.likelihood).__name__
        trained = f"trained for {self._history.n_epochs} epochs" if self.is_trained else "untrained"
        return (
            f"ContrastiveVI ({trained})\n{settings}\n"
            f"{len(self.setup.genes)} genes, {self.setup.n_batch} batches, "
            f"likelihood: {likelihood}, conditions: {', '.join(self.setup.conditions) or 'not set'}"
        )
