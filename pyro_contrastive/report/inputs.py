"""Checks of what the user asked for, made before any work and worded for the shell."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pandas as pd

from pyro_contrastive.data.places import layer_names
from pyro_contrastive.report.advice import listed, where_to_look
from pyro_contrastive.report.study import Study

__all__ = ["can_hold_out", "check_columns", "prepare_folder", "read_counts"]

_FEWEST_CELLS = 20


def prepare_folder(out: str | Path, *, overwrite: bool) -> Path:
    """Make the folder for the results, or refuse to.

    Parameters
    ----------
    out
        The folder.
    overwrite
        Whether a folder that holds something may be written into. Files of the same name are
        replaced; nothing is deleted.

    Returns
    -------
    pathlib.Path
        The folder, which exists.

    Raises
    ------
    FileExistsError
        If it holds something and `overwrite` is false.
    NotADirectoryError
        If it is a file.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the results need a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"folder {folder} is not empty; name another one, or allow overwriting (--overwrite)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_counts(path: str | Path) -> ad.AnnData:
    """Read an ``.h5ad`` file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    anndata.AnnData
        Its content, in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an ``.h5ad`` file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        return ad.read_h5ad(file)
    except (OSError, KeyError) as error:
        raise ValueError(f"{file} cannot be read as an .h5ad file") from error


def check_columns(adata: ad.AnnData, study: Study) -> None:
    """Check that what the study names is in the data, listing what is if not.

    Parameters
    ----------
    adata
        The data.
    study
        Its columns of ``obs``, its background category and its layer are looked up.

    Raises
    ------
    ValueError
        With a message of one line, if anything is missing, or if there is nothing to compare: fewer
        than 20 cells, only background cells, a single label, no label that both conditions have.
    """
    _check_column(adata.obs, "condition", study.condition_key)
    columns = [("batch", study.batch_key), ("label", study.label_key)]
    columns += [("categorical covariate", key) for key in study.categorical_covariates]
    columns += [("continuous covariate", key) for key in study.continuous_covariates]
    for role, key in (*columns, ("size factor", study.size_factor_key)):
        if key is not None:
            _check_column(adata.obs, role, key)
    if study.layer is not None and study.layer not in layer_names(adata):
        raise ValueError(
            f"layer {study.layer!r} is not there; there are: {listed(layer_names(adata))}"
        )
    if study.layer is None and adata.X is None:
        raise ValueError(f"the file has no X. {where_to_look(adata)}")
    if adata.n_obs < _FEWEST_CELLS:
        raise ValueError(f"{adata.n_obs} cells are too few; {_FEWEST_CELLS} are the least")
    _check_values(adata.obs[study.condition_key].astype(str), study)
    if study.label_key is not None:
        _check_labels(adata.obs, study.label_key, study)


def can_hold_out(adata: ad.AnnData, study: Study, share: float) -> bool:
    """Tell whether cells of both populations are held out, for early stopping to look at.

    Parameters
    ----------
    adata, study
        The cells, and which of them are background.
    share
        Fraction of each population that is to be held out.
    """
    n_background = int((adata.obs[study.condition_key].astype(str) == study.background).sum())
    return round(share * min(n_background, adata.n_obs - n_background), 6) >= 1


def _check_column(obs: pd.DataFrame, role: str, key: str) -> None:
    if key not in obs:
        raise ValueError(f"{role} column {key!r} is not in obs; there are: {listed(obs)}")
    if obs[key].isna().any():
        n_missing = int(obs[key].isna().sum())
        raise ValueError(f"{role} column {key!r} has no value in {n_missing} cells; drop them")


def _check_values(condition: pd.Series, study: Study) -> None:
    found, key, background = sorted(condition.unique()), study.condition_key, study.background
    if background not in found:
        raise ValueError(
            f"background {background!r} is not a value of {key!r}; there are: {listed(found)}"
        )
    if len(found) == 1:
        raise ValueError(f"every cell of {key!r} is {background!r}; there is nothing to compare")
    n_background = int((condition == background).sum())
    if min(n_background, len(condition) - n_background) < 2:  # noqa: PLR2004 -- to be scored
        raise ValueError(
            f"{n_background} of {len(condition)} cells have {background!r} in {key!r}; at least "
            "two background and two target cells are needed"
        )


def _check_labels(obs: pd.DataFrame, key: str, study: Study) -> None:
    is_background = obs[study.condition_key].astype(str) == study.background
    if obs[key].nunique() == 1:
        raise ValueError(f"label column {key!r} has one value only; leave it out")
    # A label such as the dose says where the cell was, not what it is: its scores would mislead.
    if not set(obs.loc[is_background, key]) & set(obs.loc[~is_background, key]):
        raise ValueError(
            f"no value of label column {key!r} is in both background and target cells; labels must "
            "be something the conditions share, such as cell type"
        )
