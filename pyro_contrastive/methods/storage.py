"""Saving and loading, and summaries under the names scvi-tools has for them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
from anndata import AnnData
from pyro.infer import Trace_ELBO

from pyro_contrastive._tools.arguments import check_arguments, check_path
from pyro_contrastive._tools.first_process import is_first_process
from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.stored_posteriors import StoredPosteriors
from pyro_contrastive.data.counts import check_anndata
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.interop.scvi_files import read_scvi
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.methods.description import (
    print_arguments,
    print_levels,
    setup_arguments,
)
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.priors import PriorLike
from pyro_contrastive.saving.folder import read_folder, read_setup, refuse_prefix, write_folder
from pyro_contrastive.saving.saved_model import SavedModel, components_of, elbo_name
from pyro_contrastive.saving.size_limit import as_large_as
from pyro_contrastive.training.calls import TrainCall
from pyro_contrastive.training.devices import torch_device
from pyro_contrastive.training.history import History
from pyro_contrastive.vae import ContrastiveVAE


class StorageMethods(ModelBase):
    """Save a model to a folder, load it again, and describe its setup."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}: {v}" for k, v in self.settings.items() if k != "elbo_kwargs")
        likelihood = type(self.module.model.likelihood).__name__
        trained = f"trained for {self._history.n_epochs} epochs" if self.is_trained else "untrained"
        return (
            f"ContrastiveVI ({trained})\n{settings}\n"
            f"{len(self.setup.genes)} genes, {self.setup.n_batch} batches, "
            f"likelihood: {likelihood}, guide: {type(self.module.guide).__name__}, "
            f"conditions: {', '.join(self.setup.conditions) or 'not set'}"
        )

    @property
    def summary_string(self) -> str:
        """The same as ``repr(model)``."""
        return repr(self)

    @property
    def summary_stats(self) -> pd.Series:
        """Numbers of batches, labels, covariates, genes and cells, as ``summary_stats.n_vars``.

        ``n_cells`` is that of ``model.adata``: 0 if the model was loaded without data.
        """
        setup = self.setup
        labels = setup.categories.get(setup.labels_key or "", ["all"])
        return pd.Series(
            {
                "n_batch": setup.n_batch,
                "n_cells": 0 if self.adata is None else self.adata.n_obs,
                "n_extra_categorical_covs": len(setup.categorical_covariate_keys),
                "n_extra_continuous_covs": len(setup.continuous_covariate_keys),
                "n_labels": len(labels),
                "n_vars": len(setup.genes),
            }
        )

    def get_setup_arg(self, setup_arg: str) -> Any:
        """Return an argument of :meth:`setup_anndata`, e.g. ``get_setup_arg("batch_key")``.

        Raises
        ------
        KeyError
            If there is no such argument; the error lists the existing ones.
        """
        given = setup_arguments(self.setup)
        if setup_arg not in given:
            msg = f"{setup_arg!r} is not an argument of setup_anndata; those are {list(given)}."
            raise KeyError(msg)
        return given[setup_arg]

    def view_anndata_setup(
        self, adata: AnnData | None = None, hide_state_registries: bool = False
    ) -> None:
        """Print how data are set up: the arguments given, and the levels of each column.

        Parameters
        ----------
        adata
            Registered with :meth:`setup_anndata`. Default: the model's own setup.
        hide_state_registries
            Print only the arguments. Default: levels too.

        Raises
        ------
        ValueError
            If `adata` is not registered.
        """
        check_arguments(locals())
        setup = self.setup if adata is None else Setup.of(adata)
        print_arguments(setup)
        if not hide_state_registries:
            print_levels(setup)

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print the arguments of :meth:`setup_anndata` of a saved model, without loading it.

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            Must be ``None``: every model has its own folder.

        Raises
        ------
        FileNotFoundError, InvalidFileError
            If there is no such folder, or the file in it is damaged.
        """
        refuse_prefix(prefix)
        print_arguments(read_setup(Path(dir_path)))

    def _assemble(
        self,
        setup: Setup,
        settings: dict[str, Any],
        parts: dict[str, Any],
        elbo: type[Trace_ELBO],
    ) -> None:
        """Make the module, from a registered AnnData or from a saved model."""
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

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model as a folder: weights (safetensors), settings and history (JSON).

        Where several processes trained together, only the first one writes.

        Parameters
        ----------
        dir_path
            The folder. It is replaced in one step, once all of it is on the disk, so that it is
            complete whenever the process is killed, and whoever reads it meanwhile. A symbolic link
            to a folder stays one.
        prefix
            Must be ``None``: every model has its own folder.
        overwrite
            Replace an existing folder. Default: an error.
        save_anndata
            Add the AnnData, as ``adata.h5ad``.
        **anndata_write_kwargs
            For ``AnnData.write_h5ad``, with `save_anndata`; by default ``compression="gzip"``.

        Raises
        ------
        FileExistsError
            If the folder exists and `overwrite` is not set, or it holds other files too.
        TypeError
            If ``module.objective`` was replaced by one that cannot be saved, or an argument is not
            one of ``AnnData.write_h5ad``.
        """
        check_arguments(locals())
        check_path("dir_path", dir_path)
        refuse_prefix(prefix)
        if not is_first_process():
            return
        _check_write_kwargs(anndata_write_kwargs, save_anndata=save_anndata)
        stored, first = self._stored_posteriors, self._untrained_module
        saved = SavedModel(
            setup=self.setup,
            settings=self.settings,
            elbo=elbo_name(self.module),
            components=components_of(self.module),
            history=self._history,
            is_trained=self.is_trained,
            weights=self.module.state_dict(),
            conditions=None if self._conditions is None else self._conditions.to_dict("split"),
            trained_cells=self._trained_cells,
            posteriors=None if stored is None else stored.to_saved(),
            runs=tuple(call.to_json() for call in self._runs),
            first_weights=None if first is None else first.state_dict(),
        )
        adata = self._adata(None) if save_anndata else None
        write_folder(Path(dir_path), saved, adata, anndata_write_kwargs, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        *,
        likelihood: Likelihood | None = None,
        background_prior: PriorLike | None = None,
        salient_prior: PriorLike | None = None,
        library_prior: PriorLike | None = None,
        dispersion_prior: PriorLike | None = None,
        guide: ContrastiveGuide | None = None,
        penalties: Sequence[Penalty] | None = None,
    ) -> Self:
        """Load what :meth:`save` wrote, wherever it was trained.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            Data for the model. Default: the saved ones, if they were saved. Without data, give
            ``adata=`` to the methods that need them.
        accelerator, device
            Where to load it: ``"auto"`` (default: CUDA if there is one), ``"cpu"``, ``"gpu"`` or
            ``"cuda"``; and the number of the device.
        prefix
            Must be ``None``: every model has its own folder.
        likelihood, background_prior, salient_prior, library_prior, dispersion_prior, guide, \
penalties
            Your own components, made with the arguments they had. A folder can only name components
            of this library, and loading it runs no code that its files name, so that your own
            components must be given.

        Raises
        ------
        FileNotFoundError
            If the folder or a file of it is missing.
        InvalidFileError
            If a file is damaged, or was changed or exchanged after the model was saved.
        ValueError
            If the data differ from what the model was set up with, or a component must be given.
        """
        given = {
            "likelihood": likelihood,
            "background_prior": background_prior,
            "salient_prior": salient_prior,
            "library_prior": library_prior,
            "dispersion_prior": dispersion_prior,
            "guide": guide,
            "penalties": penalties,
        }
        refuse_prefix(prefix)
        check_path("dir_path", dir_path)
        target = torch_device(accelerator, device)
        saved, saved_adata = read_folder(Path(dir_path))
        model = cls._from_saved(saved, given, saved_adata if adata is None else adata)
        model.module.to(target)
        return model

    @classmethod
    def from_scvi(
        cls, path_or_model: str | os.PathLike[str] | object, adata: AnnData | None = None
    ) -> Self:
        """Read a model of scvi-tools' ContrastiveVI (versions 1.1 to 1.5), with the same latents.

        Nothing that a file names is imported or run: a few functions of this library rebuild its
        tensors and dicts, NumPy and pandas objects become inert, and anything else is refused.
        Further covariates and size factors, which scvi-tools registers but its model does not use,
        are left out. The objective has analytic KL divergences, as in scvi-tools.

        Parameters
        ----------
        path_or_model
            A folder or file saved by scvi-tools, or a model of it in memory.
        adata
            Data for the model, with its genes and batches. Without it, give ``adata=`` to the
            methods that need data.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        InvalidFileError
            If it is not a model of scvi-tools' ContrastiveVI, or holds objects that are not read.
        """
        return cls._from_saved(read_scvi(path_or_model), {}, adata)

    @classmethod
    def _from_saved(
        cls, saved: SavedModel, given: Mapping[str, Any], adata: AnnData | None
    ) -> Self:
        if adata is not None:
            check_anndata(adata)
        saved.check_given(given)
        model = cls.__new__(cls)
        try:
            # Starting values are replaced below: drawing them must not advance the random state.
            with seeded(0), as_large_as(saved.weights):
                parts = saved.make_components(given) | saved.library_moments()
                model._assemble(saved.setup, saved.settings, parts, saved.elbo_class())
        except InvalidFileError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if any(part is not None for part in given.values()):
                raise  # the error may be about what was given
            msg = (
                "No model can be made from the saved settings, which were changed after they were "
                f"saved ({type(error).__name__}: {error})."
            )
            raise InvalidFileError(msg) from error
        if saved.first_weights is not None:
            model._untrained_module = saved.untrained(model.module)
        saved.load_weights(model.module)
        model._runs = tuple(map(TrainCall.from_json, saved.runs))
        model._history = saved.history
        model.is_trained = saved.is_trained
        if saved.conditions is not None:
            table = {name: saved.conditions.get(name) for name in ("data", "index", "columns")}
            model._conditions = pd.DataFrame(**table)
        model.adata = adata
        trained = saved.trained_cells
        if trained is not None and (adata is None or trained.are_of(adata.obs_names)):
            model._trained_cells = trained
        if saved.posteriors is not None:
            model._stored_posteriors = StoredPosteriors.from_saved(saved.posteriors)
        if adata is not None:
            model._extract(adata)  # raises now if the data differ
        return model


def _check_write_kwargs(given: Mapping[str, Any], *, save_anndata: bool) -> None:
    """Refuse arguments that would have no effect, before anything is written."""
    known = inspect.signature(AnnData.write_h5ad).parameters
    unknown = sorted(set(given) - set(known) | set(given) & {"self", "filename"})
    if unknown:
        msg = f"save() got unexpected arguments: {unknown}."
        raise TypeError(msg)
    if given and not save_anndata:
        msg = f"{sorted(given)} have no effect without save_anndata=True."
        raise TypeError(msg)
