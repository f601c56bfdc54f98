"""Checks of the user's request, made before any work starts and worded for the shell."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import pandas as pd

from pyro_contrastive.data.file_checks import check_hdf5, check_zarr
from pyro_contrastive.data.files import read_h5ad, read_zarr
from pyro_contrastive.data.levels import suggestion
from pyro_contrastive.data.places import layer_names
from pyro_contrastive.report.advice import listed, where_to_look
from pyro_contrastive.report.failures import message_of
from pyro_contrastive.report.file_kinds import Kind, kind_of
from pyro_contrastive.report.study import LATENTS, Study

__all__ = ["can_hold_out", "check_columns", "read_counts"]

_MIN_CELLS = 20


def read_counts(path: str | Path) -> ad.AnnData:
    """Read an ``.h5ad`` file, a zarr store, or, with scanpy, a 10x ``.h5`` file.

    Parameters
    ----------
    path
        The file, or the folder that is a zarr store.

    Returns
    -------
    anndata.AnnData
        Its content, in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or of another kind; the message says which, and how to convert it to
        ``.h5ad``.
    OSError
        If it is not readable.
    """
    file = Path(path)
    kind = kind_of(file)
    if kind in (Kind.tenx, Kind.cellbender) and find_spec("scanpy") is None:
        raise ValueError(
            f"{file} is a {kind.value}, which scanpy reads: pip install "
            "'pyro-contrastive[scanpy]'. It has no column of conditions: read it in Python, "
            f'adata = scanpy.read_10x_h5("{file}"), add the column, and save: '
            'adata.write_h5ad("counts.h5ad")'
        )
    if kind is Kind.zarr and find_spec("zarr") is None:  # an extra of anndata 0.11
        raise ValueError(f"{file} is a zarr store, which the zarr package reads: pip install zarr")
    _check_self_contained(file, kind)
    try:
        return _READERS[kind](file)
    except MemoryError as error:
        raise ValueError(f"there is not enough memory to read {file}") from error
    except Exception as error:  # a damaged file may raise any error
        raise ValueError(
            f"{file} cannot be read as {_article(kind)}; it is damaged, or of a version that the "
            f"installed packages cannot read ({message_of(error)})"
        ) from error


def _check_self_contained(file: Path, kind: Kind) -> None:
    """Refuse, before reading, data that refer to other files or ask to run code.

    Raises
    ------
    ValueError
        If they do; names the element.
    """
    if kind is Kind.zarr:
        check_zarr(file)
        return
    with suppress(OSError):  # of a damaged file: the reader says so
        check_hdf5(file)


def _read_tenx(file: Path) -> ad.AnnData:
    import scanpy  # noqa: PLC0415 -- an extra

    return scanpy.read_10x_h5(file)


_READERS = {
    Kind.h5ad: read_h5ad,
    Kind.zarr: read_zarr,
    Kind.tenx: _read_tenx,
    Kind.cellbender: _read_tenx,
}


def _article(kind: Kind) -> str:
    return f"{'an' if kind is Kind.h5ad else 'a'} {kind.value}"


def check_columns(adata: ad.AnnData, study: Study) -> None:
    """Check that the columns and layers of the study are in the data; if not, list what is.

    Parameters
    ----------
    adata
        The data.
    study
        Names the columns of ``obs``, the background category and the layer to check.

    Raises
    ------
    ValueError
        With a message of one line, if anything is missing, or if there is nothing to compare: fewer
        than 20 cells, only background cells, a single label, no label that both conditions have.
    """
    columns, layer = study.columns, study.columns.layer
    _check_column(adata.obs, "condition", columns.condition_key)
    roles = [("batch", columns.batch_key), ("label", study.label_key)]
    roles += [("sample", columns.sample_key)]
    roles += [("categorical covariate", key) for key in columns.categorical_covariate_keys]
    roles += [("continuous covariate", key) for key in columns.continuous_covariate_keys]
    for role, key in (*roles, ("size factor", columns.size_factor_key)):
        if key is not None:
            _check_column(adata.obs, role, key)
    if layer is not None and layer not in layer_names(adata):
        raise ValueError(
            f"the data have no layer {layer!r}; available: {listed(layer_names(adata))}."
            f"{suggestion(layer, layer_names(adata))}"
        )
    if layer is None and adata.X is None:
        raise ValueError(f"the file has no X. {where_to_look(adata)}")
    if adata.n_obs < _MIN_CELLS:
        raise ValueError(f"{adata.n_obs} cells are too few; at least {_MIN_CELLS} are needed")
    there = [name for kind in LATENTS if (name := f"X_{kind}") in adata.obsm]
    if there:
        raise ValueError(
            f"the file already has {listed(there)} in obsm, as after another fit, and this one "
            f"would replace it: rename or delete it in Python, del adata.obsm[{there[0]!r}], "
            'and save the data: adata.write_h5ad("counts.h5ad")'
        )
    _check_values(adata.obs[study.columns.condition_key].astype(str), study)
    if study.label_key is not None:
        _check_labels(adata.obs, study.label_key, study)


def can_hold_out(adata: ad.AnnData, study: Study, share: float) -> bool:
    """Tell whether cells of both populations are held out, as early stopping needs.

    Parameters
    ----------
    adata, study
        The cells, and which of them are background.
    share
        Fraction of each population to hold out.
    """
    n_background = int(
        (adata.obs[study.columns.condition_key].astype(str) == study.columns.background).sum()
    )
    return round(share * min(n_background, adata.n_obs - n_background), 6) >= 1


def _check_column(obs: pd.DataFrame, role: str, key: str) -> None:
    if not len(obs.columns):  # as in a 10x file, which has only counts
        raise ValueError(
            f"{role} column {key!r} is not in obs, which has no columns: add it in Python, "
            f'adata.obs[{key!r}] = ..., and save: adata.write_h5ad("counts.h5ad")'
        )
    if key not in obs:
        raise ValueError(
            f"{role} column {key!r} is not in obs; available: {listed(obs)}.{suggestion(key, obs)}"
        )
    if obs[key].isna().any():
        n_missing = int(obs[key].isna().sum())
        raise ValueError(
            f"{role} column {key!r} has no value in {n_missing} cells; remove these cells"
        )


def _check_values(condition: pd.Series, study: Study) -> None:
    found, key, background = (
        sorted(condition.unique()),
        study.columns.condition_key,
        study.columns.background,
    )
    if background not in found:
        raise ValueError(
            f"background {background!r} is not a value of {key!r}; available: {listed(found)}."
            f"{suggestion(background, found)}"
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
    is_background = obs[study.columns.condition_key].astype(str) == study.columns.background
    if obs[key].nunique() == 1:
        raise ValueError(f"label column {key!r} has only one value; leave it out")
    # A label such as the dose describes the treatment, not the cell: its scores would mislead.
    if not set(obs.loc[is_background, key]) & set(obs.loc[~is_background, key]):
        raise ValueError(
            f"no value of label column {key!r} occurs in both background and target cells; labels "
            "must be something the conditions share, such as cell type"
        )
