"""Odd counts, columns, keys and records of a set-up, and the warnings that are due."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from cells import N_CELLS, N_GENES, SETUP, SMALL, cells, column, counts, model, set_up
from outcomes import Case

from pyro_contrastive import ContrastiveVI

KEY = "_pyro_contrastive"
NUMBER = np.arange(N_CELLS)
TREATED = NUMBER >= N_CELLS // 2


def used(change: Callable[[ad.AnnData], Any], **given: Any) -> Callable[[], Any]:
    """Return a call that sets up changed cells, trains for an epoch and asks for latents."""

    def call() -> Any:
        made = set_up(change, **given)
        fitted = ContrastiveVI(made, **SMALL)
        fitted.train(max_epochs=1, enable_progress_bar=False)
        return fitted.get_latent_representation()

    return call


def is_finite(shape: tuple[int, int] = (N_CELLS, 2)) -> Callable[[Any], bool]:
    """Return a check of latents: finite, of this shape."""
    return lambda found: found.shape == shape and bool(np.isfinite(found).all())


def lazy(made: ad.AnnData) -> ad.AnnData:
    """Write cells to a file, and open it without reading the counts."""
    path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    made.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


class Lazy:
    """Counts that are read or computed when they are asked for, as arrays of dask are."""

    def __init__(self, x: np.ndarray) -> None:
        self._x, self.shape, self.dtype, self.ndim = x, x.shape, x.dtype, x.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._x if dtype is None else self._x.astype(dtype)

    def copy(self) -> Any:
        return self

    def __getitem__(self, key: Any) -> Any:
        return Lazy(self._x[key])


Lazy.__module__ = "dask.array.core"


def dask(x: np.ndarray) -> Any:
    """Return counts as an array of dask, or as what looks like one if it is not installed."""
    if find_spec("dask") is None:
        return Lazy(x)
    import dask.array as da

    return da.from_array(x, chunks=(10, N_GENES))


def computed_later(made: ad.AnnData) -> None:
    """Replace the counts by an array of dask, in place of which AnnData would keep a plain one."""
    made._X = dask(made.X.toarray())


def put(value: float, cell: int = 3, gene: int = 2) -> Callable[[np.ndarray], Any]:
    """Return a change of dense counts that sets one of them."""

    def change(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        x[cell, gene] = value
        return x

    return change


def layer(value: Callable[[ad.AnnData], Any]) -> Callable[[ad.AnnData], None]:
    """Return a change that adds a layer of counts."""
    return lambda made: made.layers.__setitem__("counts", value(made))


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


X_WORDS = ("X", "layer", "AnnData", "adata")
REFUSED: dict[str, Callable[[np.ndarray], Any]] = {
    "complex": lambda x: x.astype(complex),
    "texts": lambda x: x.astype(str),
    "objects": lambda x: x.astype(object),
    "dates": lambda x: x.astype("datetime64[s]"),
    "NaN": put(np.nan),
    "inf": put(np.inf),
    "negative": put(-1.0),
    "fractions": put(0.5),
    "masked": lambda x: np.ma.masked_array(x, mask=x > 5),
}
RIGHT: dict[str, Callable[[np.ndarray], Any]] = {
    "bool": lambda x: x > 0,
    "int8": lambda x: np.minimum(x, 100).astype(np.int8),
    "uint16": lambda x: x.astype(np.uint16),
    "float16": lambda x: x.astype(np.float16),
    "float128": lambda x: x.astype(np.longdouble),
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "Fortran order": np.asfortranarray,
    "not contiguous": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "read-only": _read_only,
    "one cell without counts": lambda x: x * (NUMBER != 3)[:, None],
    "big endian": lambda x: x.astype(">f4"),
}


def odd_data() -> Iterator[Case]:
    """Yield cases of counts."""
    for name, make in REFUSED.items():
        yield Case("data", f"X {name}", used(counts(make)), X_WORDS)
    doubtful: dict[str, Callable[[np.ndarray], Any]] = {
        "all zero": np.zeros_like,
        "2^25": put(2.0**25),
        "int64 largest": lambda x: put(0)(x).astype(np.int64) + np.int64(2**62),
    }
    for name, make in doubtful.items():
        yield Case("data", f"X {name}", used(counts(make)), ("no counts", "2^24"), "warning")
    for name, make in RIGHT.items():
        yield Case("data", f"X {name}", used(counts(make)), X_WORDS, is_finite())
    for name, change in {
        "3-D layer": layer(lambda made: np.zeros((N_CELLS, N_GENES, 2))),
        "masked layer": layer(
            lambda made: np.ma.masked_array(made.X.toarray(), mask=made.X.toarray() > 2)
        ),
        "frame layer": layer(lambda made: pd.DataFrame(made.X.toarray(), made.obs_names)),
    }.items():
        words = ("layer", "counts", "dimension", "3")
        expect: Any = "either" if "frame" in name else "error"
        yield Case("data", name, used(change, layer="counts"), words, expect)
    yield Case("data", "X dask", used(computed_later), ("dask",))
    for name, make_cells in {
        "no X": lambda made: ad.AnnData(obs=made.obs, var=made.var),
        "no cells": lambda made: made[:0].copy(),
        "no genes": lambda made: made[:, :0].copy(),
        "one cell": lambda made: made[:1].copy(),
        "only background": lambda made: made[:20].copy(),
    }.items():
        yield Case("data", name, used(make_cells), (*X_WORDS, "cells", "genes", "condition"))
    for name, make_cells in {
        "one of each": lambda made: made[[0, 39]].copy(),
        "view": lambda made: made[::-1],
        "one gene": lambda made: made[:, :1].copy(),
        "on disk": lazy,
    }.items():
        yield Case("data", name, used(make_cells), (*X_WORDS, "cells"), "either")
    for given in (None, np.ones((3, 4)), pd.DataFrame({"a": [1]}), "cells.h5ad", 3, {"X": 1}):
        yield Case(
            "setup_anndata",
            f"adata={type(given).__name__}",
            lambda given=given: ContrastiveVI.setup_anndata(given, **SETUP),
            ("AnnData",),
        )


KEYS = ("layer", "batch_key", "labels_key", "size_factor_key", "condition_key", "sample_key")
LISTS = ("categorical_covariate_keys", "continuous_covariate_keys")
ODD_KEYS: tuple[Any, ...] = (
    *("nope", 3, 1.5, ["lane"], ("lane",), {"lane": 1}, True, b"lane", "", {"lane"}),
    datetime.date(2024, 1, 31),
    pd.Series(["a"] * N_CELLS, name="lane"),
    pd.DataFrame({"lane": ["a"] * N_CELLS}),
    np.array(["a"] * N_CELLS),
)


def odd_keys() -> Iterator[Case]:
    """Yield cases of names of columns, and of columns."""
    for key in (*KEYS, *LISTS):
        for value in ODD_KEYS:
            if key in LISTS and isinstance(value, list | tuple | set):
                continue
            yield Case(
                "setup_anndata",
                f"{key}={_text(value)}",
                lambda key=key, value=value: set_up(**({key: value})),
                (key, "adata.obs", "layers"),
            )
    for value in ("contrl", "Control", 3, None, ["control"], ("control",), np.nan, "", {"a": 1}):
        yield Case(
            "setup_anndata",
            f"background={value!r}",
            lambda value=value: set_up(background=value),
            ("background",),
        )
    for name, values in {
        "constant": "control",
        "NaN": np.where(NUMBER == 3, None, np.where(TREATED, "treated", "control")),
        "lists": [["control"]] * 20 + [["treated"]] * 20,
        "dicts": pd.Series([{"a": 1}] * N_CELLS, dtype=object).to_numpy(),
    }.items():
        yield Case(
            "setup_anndata",
            f"condition {name}",
            used(column("condition", values)),
            ("condition",),
        )
    for name, values in {
        "texts": ["old"] * N_CELLS,
        "NaN": np.where(NUMBER == 3, np.nan, 1.0 * NUMBER),
        "inf": np.where(NUMBER == 3, np.inf, 1.0 * NUMBER),
        "complex": NUMBER + 1j,
        "dates": pd.date_range("2024-01-01", periods=N_CELLS),
        "timedelta": pd.timedelta_range("1D", periods=N_CELLS),
        "beyond float32": np.where(NUMBER == 3, 1e39, 1.0 * NUMBER),
    }.items():
        for key in ("size_factor_key", "continuous_covariate_keys"):
            given = {key: "odd" if key == "size_factor_key" else ["odd"]}
            yield Case(
                "setup_anndata", f"{key} {name}", used(column("odd", values), **given), ("odd",)
            )
    for name, values in {"negative": -1.0 * NUMBER, "zero": 0.0 * NUMBER}.items():
        yield Case(
            "setup_anndata",
            f"size_factor_key {name}",
            used(column("odd", values), size_factor_key="odd"),
            ("odd",),
        )


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    """Return a call that makes a model from cells whose record of the set-up was changed."""

    def call() -> Any:
        made = set_up(batch_key="lane")
        record = json.loads(made.uns[KEY])
        change(record)
        made.uns[KEY] = json.dumps(record)
        return ContrastiveVI(made, **SMALL)

    return call


def replaced(record: Any) -> Callable[[], Any]:
    """Return a call that makes a model from cells with another record."""

    def call() -> Any:
        made = set_up(batch_key="lane")
        made.uns[KEY] = record
        return ContrastiveVI(made, **SMALL)

    return call


ALLOWED = [("sample_key", "nope"), ("size_factor_unit", 3)]
"""Values that a record might have: the column may have been removed since."""


def odd_records() -> Iterator[Case]:
    """Yield cases of the record of the set-up."""
    words = ("setup_anndata", "version", "is not a column", "does not exist")
    for field, right in json.loads(set_up(batch_key="lane").uns[KEY]).items():
        yield Case("uns", f"without {field}", broken(lambda r, f=field: r.pop(f)), words, "either")
        for value in (3, "nope", ["nope"], {"a": 1}, float("nan"), None):
            if value == right:
                continue
            yield Case(
                "uns",
                f"{field}={value!r}",
                broken(lambda r, f=field, v=value: r.__setitem__(f, v)),
                words,
                "either" if value is None or (field, value) in ALLOWED else "error",
            )
    for name, value in {
        "a text": "nope",
        "JSON of a list": "[1]",
        "JSON cut short": '{"layer": nu',
        "a list": [1],
        "a dict": {},
        "a number": 3,
        "an array": np.arange(3),
        "bytes": b"{}",
    }.items():
        yield Case("uns", f"record is {name}", replaced(value), words)
    newer = broken(lambda r: r.__setitem__("a_key_of_a_newer_version", "a"))
    yield Case("uns", "of a newer version", newer, words)
    yield Case("uns", "no record", lambda: ContrastiveVI(cells(), **SMALL), words)


WARNINGS: dict[str, tuple[Callable[[ad.AnnData], Any], dict[str, Any], tuple[str, ...]]] = {
    "a batch in one condition only": (
        column("lane", np.where(NUMBER < 5, "solo", np.array(["a", "b"])[NUMBER % 2])),
        {"batch_key": "lane"},
        ("solo",),
    ),
    "a covariate level in one condition only": (
        column("site", np.where(NUMBER > 34, "solo", np.array(["a", "b"])[NUMBER % 2])),
        {"categorical_covariate_keys": ["site"]},
        ("solo",),
    ),
    "a continuous covariate that follows the condition": (
        column("age", TREATED + 0.01 * np.sin(NUMBER)),
        {"continuous_covariate_keys": ["age"]},
        ("age",),
    ),
    "a constant categorical covariate": (
        column("site", "x"),
        {"categorical_covariate_keys": ["site"]},
        ("site",),
    ),
    "a constant continuous covariate": (
        column("age", 1.0),
        {"continuous_covariate_keys": ["age"]},
        ("age",),
    ),
    "a constant batch": (column("lane", "x"), {"batch_key": "lane"}, ("lane",)),
    "genes without counts": (counts(lambda x: x * (np.arange(N_GENES) > 2)), {}, ("gene0",)),
    "repeated cell names": (
        lambda made: setattr(made, "obs_names", ["cell"] * N_CELLS),
        {},
        ("names",),
    ),
    "counts beyond 2^24": (counts(put(2.0**24 + 2)), {}, ("16,777,216", "16777216", "2^24")),
    "a treatment of two cells": (
        column("condition", np.where(NUMBER > 37, "rare", np.where(TREATED, "treated", "control"))),
        {},
        ("rare",),
    ),
    "'nan' as a condition": (
        column("condition", np.where(NUMBER > 30, "nan", np.where(TREATED, "treated", "control"))),
        {},
        ("nan",),
    ),
    "'' as a condition": (
        column("condition", np.where(NUMBER > 30, "", np.where(TREATED, "treated", "control"))),
        {},
        ("''",),
    ),
}


def missing_warnings() -> Iterator[Case]:
    """Yield data that a user should be warned of."""
    for name, (change, given, words) in WARNINGS.items():
        yield Case("warnings", name, lambda c=change, g=given: made(c, g), words, "warning")
    yield Case(
        "warnings",
        "latents larger than genes",
        lambda: ContrastiveVI(set_up(), n_hidden=8, n_salient_latent=20),
        ("n_salient_latent", "genes"),
        "warning",
    )
    for level in ("lane1", "lane 2"):  # no warning is due: these are not spellings of one another
        two = np.where(NUMBER % 2, level, "lane 1" if level == "lane 2" else "lane2")
        yield Case(
            "warnings",
            f"no alarm of spelling for {level}",
            lambda two=two: quiet(lambda: set_up(column("lane", two), batch_key="lane")),
            ("spell",),
            lambda found: not found,
        )


def made(change: Callable[[ad.AnnData], Any], given: dict[str, Any]) -> ContrastiveVI:
    """Set up changed cells, and make a model."""
    return ContrastiveVI(set_up(change, **given), **SMALL)


def quiet(call: Callable[[], Any]) -> list[str]:
    """Return what a call warns of."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught]


def odd_queries() -> Iterator[Case]:
    """Yield cases of cells that a model is asked about."""
    words = ("genes", "adata", "AnnData", "obs", "lane", "site", "age", "condition", "X")
    changes: dict[str, Callable[[ad.AnnData], Any]] = {
        "without a gene": lambda made: made[:, :14].copy(),
        "without lane": lambda made: made.obs.drop(columns="lane", inplace=True),
        "without age": lambda made: made.obs.drop(columns="age", inplace=True),
        "unknown lane": column("lane", "z"),
        "age texts": column("age", "old"),
        "age NaN": column("age", np.nan),
        "complex": counts(lambda x: x + 1j),
        "NaN counts": counts(put(np.nan)),
        "negative counts": counts(put(-1.0)),
        "no X": lambda made: ad.AnnData(obs=made.obs, var=made.var),
        "dask": computed_later,
        "on disk": lazy,
        "a data frame": lambda made: made.to_df(),
    }
    for name, change in changes.items():

        def ask(change: Any = change) -> Any:
            query = cells()
            changed = change(query)
            query = query if changed is None else changed
            return model().get_latent_representation(query)

        expect: Any = "either" if name == "on disk" else "error"
        yield Case("query", name, ask, words, expect)
    for name, change in changes.items():

        def prepare(change: Any = change) -> Any:
            query = cells()
            changed = change(query)
            query = query if changed is None else changed
            return model().prepare_query_anndata(query)

        expect = "error" if name in {"a data frame", "without a gene"} else "either"
        yield Case("prepare_query_anndata", name, prepare, words, expect)


def _text(value: Any) -> str:
    if isinstance(value, pd.DataFrame | pd.Series | np.ndarray):
        return f"<{type(value).__name__} {value.shape}>"
    return repr(value)[:30]
