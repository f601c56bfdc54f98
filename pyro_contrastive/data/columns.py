"""Columns of ``obs``: checking their names, reading their values and levels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.data.levels import position_of, several, suggestion

_ONE_VALUE = ("size_factor_key", "layer")
"""Arguments whose columns cannot be joined into one."""
_AS_STRINGS = (
    "Give the columns names that are strings: adata.obs.columns = adata.obs.columns.astype(str)."
)


def check_key(argument: str, given: object, obs: pd.DataFrame) -> None:
    """Refuse anything but the name of a column (or, for the argument ``layer``, of a layer).

    Parameters
    ----------
    argument
        Name of the argument, such as ``"batch_key"``.
    given
        The name, or something else.
    obs
        The existing columns.

    Raises
    ------
    TypeError
        If it is not a string; the error says what was given and what to do.
    """
    if isinstance(given, str):
        return
    what = "a layer" if argument == "layer" else "a column of adata.obs"
    msg = (
        f"{argument} must be the name of {what}, a string; it is {_described(given)}. "
        f"{_advice(argument, given, obs)}"
    )
    raise TypeError(msg)


def check_keys(argument: str, given: object, obs: pd.DataFrame) -> list[str]:
    """Return names of columns as a list, refusing anything else, as :func:`check_key` does.

    Raises
    ------
    TypeError
        Also for a string: a single name must be in a list.
    """
    if isinstance(given, str):
        msg = f"{argument} must be a list of columns, not the string {given!r}: [{given!r}]."
        raise TypeError(msg)
    if isinstance(given, pd.Series | pd.DataFrame | Mapping) or not several(given):
        names = list(given.columns) if isinstance(given, pd.DataFrame) else []
        names = [given.name] if isinstance(given, pd.Series) else names
        known = [name for name in names if isinstance(name, str)]
        msg = (
            f"{argument} must be a list of names of columns of adata.obs; it is "
            f"{_described(given)}. Give the names: {argument}={known or ['...']}."
        )
        raise TypeError(msg)
    assert isinstance(given, Iterable)
    keys = list(given)
    for key in keys:
        if not isinstance(key, str):
            advice = "" if several(key) else _AS_STRINGS
            msg = (
                f"{argument} must be a list of names of columns of adata.obs, which are strings; "
                f"it holds {_described(key)}. {advice}"
            )
            raise TypeError(msg.rstrip())
    return [str(key) for key in keys]


def _described(given: object) -> str:
    """Describe an object on one line."""
    kind = type(given).__name__
    if isinstance(given, pd.Series):
        return f"a Series, the column itself{'' if given.name is None else f' ({given.name!r})'}"
    if isinstance(given, pd.DataFrame):
        return f"a DataFrame, the columns themselves ({list(given.columns)})"
    shape = getattr(given, "shape", None)
    if shape is not None and several(given):
        return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind} of shape {tuple(shape)}"
    text = repr(given)
    return f"the {kind} {text if len(text) <= 60 else text[:60] + '...'}"  # noqa: PLR2004


def _advice(argument: str, given: object, obs: pd.DataFrame) -> str:
    """Return advice on what to write instead."""
    new = argument.removesuffix("_key") if argument.endswith("_key") else "groups"
    names = _names(given, obs)
    if len(names) == 1:
        return f"Give its name: {argument}={names[0]!r}."
    if names and argument in _ONE_VALUE:
        return f"Name one of them: {argument}={names[0]!r}."
    if argument == "layer":
        return (
            'Put the counts into a layer, adata.layers["counts"] = counts, and name it: '
            'layer="counts"; without layer= the counts are those of adata.X.'
        )
    if names:
        joined = "_".join(names)
        texts = ' + "_" + '.join(f"adata.obs[{name!r}].astype(str)" for name in names)
        return (
            f"Join the columns into one, adata.obs[{joined!r}] = {texts}, and name that: "
            f"{argument}={joined!r}."
        )
    if several(given):
        return (
            f"Make a column of the values, adata.obs[{new!r}] = values, and name it: "
            f"{argument}={new!r}."
        )
    return _AS_STRINGS


def _names(given: object, obs: pd.DataFrame) -> list[str]:
    """Return the names of columns that an object holds; none if it holds values."""
    if isinstance(given, pd.Series):
        return [given.name] if isinstance(given.name, str) else []
    if isinstance(given, pd.DataFrame):
        return [str(name) for name in given.columns]
    if not several(given) or np.ndim(given) > 1:  # type: ignore[arg-type]  # anything at all
        return []
    assert isinstance(given, Iterable)
    values = list(given)
    texts = [value for value in values if isinstance(value, str)]
    by_name = isinstance(given, list | tuple | set) or set(texts) <= set(obs.columns)
    return texts if len(texts) == len(values) and by_name else []


def column(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column.

    Raises
    ------
    KeyError
        If there is no column of this name; the error lists the existing ones.
    ValueError
        If there are several.
    """
    if key not in obs:
        msg = (
            f"{key!r} is not a column of adata.obs; the columns are {list(obs.columns)}."
            f"{suggestion(key, obs.columns)}"
        )
        raise KeyError(msg)
    found = obs[key]
    if isinstance(found, pd.DataFrame):
        msg = f"{found.shape[1]} columns of adata.obs are called {key!r}; rename all but one."
        raise ValueError(msg)
    return found


def complete_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column, refusing missing values."""
    found = column(obs, key)
    if found.dtype == object:
        odd = [value for value in found if not isinstance(value, Hashable)]
        if odd:
            msg = (
                f"adata.obs[{key!r}] holds values of type {type(odd[0]).__name__}; values of a "
                "column must be texts, numbers, truth values or dates."
            )
            raise ValueError(msg)
    if found.isna().any():
        msg = (
            f"adata.obs[{key!r}] is missing (NaN) in {int(found.isna().sum())} cells. Fill it in, "
            f"or drop these cells: adata[adata.obs[{key!r}].notna()].copy()."
        )
        raise ValueError(msg)
    return found


def texts(obs: pd.DataFrame, key: str) -> NDArray[np.str_]:
    """Return a column as strings, refusing missing values."""
    return complete_column(obs, key).astype(str).to_numpy(dtype=str)


def numbers(obs: pd.DataFrame, key: str) -> NDArray[np.float32]:
    """Return a column as finite numbers, refusing other values."""
    texts(obs, key)
    if obs[key].dtype.kind in "cmM":
        msg = f"adata.obs[{key!r}] must hold real numbers, not {obs[key].dtype}."
        raise ValueError(msg)
    try:
        values = obs[key].to_numpy(dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"adata.obs[{key!r}] must hold numbers, not {obs[key].dtype}."
        raise ValueError(msg) from error
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        msg = f"adata.obs[{key!r}] is infinite in {n_bad} cells; drop or replace these values."
        raise ValueError(msg)
    return values


def levels(obs: pd.DataFrame, key: str) -> list[str]:
    """Distinct values of a column as strings, in the order of its categories, else sorted."""
    values = texts(obs, key)
    order = obs[key].astype("category").cat.codes.to_numpy()
    first = np.unique(order, return_index=True)[1]  # unused categories do not occur
    return list(dict.fromkeys(values[first].tolist()))


def background_level(
    obs: pd.DataFrame, condition_key: str | None, background: object
) -> str | None:
    """Return the value of the condition that is background, as a string.

    Raises
    ------
    ValueError
        If it is not one of the values, or only one of the two is given.
    """
    if condition_key is None:
        if background is not None:
            msg = "background= says which condition is the control; give condition_key= too."
            raise ValueError(msg)
        return None
    known = levels(obs, condition_key)
    if background is None or several(background):
        by_name = isinstance(background, list | tuple | set)
        shown = repr(background) if by_name else _described(background)
        given = "" if background is None else f", not {shown}"
        msg = f"condition_key={condition_key!r} needs background=, one of {known}{given}."
        raise ValueError(msg)
    found = position_of(background, known)
    if found is None:
        msg = (
            f"background={background!r} must be one of the values of "
            f"adata.obs[{condition_key!r}]: {known}.{suggestion(background, known)}"
        )
        raise ValueError(msg)
    return known[found]


def one_or_several(argument: str, given: object, obs: pd.DataFrame) -> list[str]:
    """Return one name or several as a list, refusing anything else, as :func:`check_keys` does."""
    return [given] if isinstance(given, str) else check_keys(argument, given, obs)
