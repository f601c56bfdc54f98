"""What a model is and how it was set up, in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from pyro_contrastive.data.setup import Setup
from pyro_contrastive.methods.base import ModelBase
from pyro_contrastive.saving.folder import read_setup, refuse_prefix

NOT_ARGUMENTS = ("categories", "genes", "size_factor_unit")
"""Of a setup: what was found in the data, rather than given to ``setup_anndata``."""


class DescriptionMethods(ModelBase):
    """Summaries, under the names scvi-tools has for them."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}: {v}" for k, v in self.settings.items() if k != "elbo_kwargs")
        likelihood = type(self.module.model.likelihood).__name__
        trained = f"trained for {self._history.n_epochs} epochs" if self.is_trained else "untrained"
        return (
            f"ContrastiveVI ({trained})\n{settings}\n"
            f"{len(self.setup.genes)} genes, {self.setup.n_batch} batches, "
            f"likelihood: {likelihood}, conditions: {', '.join(self.setup.conditions) or 'not set'}"
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
        """Return what :meth:`setup_anndata` was told, e.g. ``get_setup_arg("batch_key")``.

        Raises
        ------
        KeyError
            If it takes no such argument; the error lists those it takes.
        """
        given = _arguments(self.setup)
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
            Registered with :meth:`setup_anndata`; default: the model's own setup.
        hide_state_registries
            Print the arguments alone.

        Raises
        ------
        ValueError
            If `adata` is not registered.
        """
        setup = self.setup if adata is None else Setup.of(adata)
        _print_arguments(setup)
        if not hide_state_registries:
            _print_levels(setup)

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print the arguments of :meth:`setup_anndata` of a saved model, without loading it.

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            Must be ``None``: a model has a folder of its own.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such folder, or the file in it is damaged.
        """
        refuse_prefix(prefix)
        _print_arguments(read_setup(Path(dir_path)))


def _arguments(setup: Setup) -> dict[str, Any]:
    return {name: value for name, value in asdict(setup).items() if name not in NOT_ARGUMENTS}


def _print_arguments(setup: Setup) -> None:
    _print_table("setup_anndata", ("argument", "value"), _arguments(setup))


def _print_levels(setup: Setup) -> None:
    codes = {
        f"{key}: {level}": str(code)
        for key, levels in setup.categories.items()
        for code, level in enumerate(levels)
    }
    _print_table(f"{len(setup.genes)} genes", ("level", "code"), codes)


def _print_table(title: str, header: tuple[str, str], rows: Mapping[str, Any]) -> None:
    # Importing the package must not take the time that rich does.
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*header, title=title)
    for name, value in rows.items():
        table.add_row(escape(name), escape(str(value)))
    Console().print(table)
