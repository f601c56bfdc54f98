"""Find the element of an AnnData that cannot be written, and a line of Python that fixes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from pyro_contrastive.data.places import layer_names
from pyro_contrastive.report.failures import message_of

__all__ = ["explain_unwritable", "made_quietly", "zeros"]

Write = Callable[[ad.AnnData], object]
Place = Callable[[Any], ad.AnnData]
_NEW_NAME = "NEW_NAME"


@dataclass(frozen=True)
class _Element:
    """One element of the data.

    Parameters
    ----------
    label
        Its name in Python, after ``adata.``.
    make
        Makes an AnnData with only this element.
    fixes
        Lines of Python that may fix it, each with a function that makes the AnnData with this fix.
        The last resort, advised without a trial, is `drop`.
    drop
        The line that deletes it.
    """

    label: str
    make: Callable[[], ad.AnnData]
    fixes: tuple[tuple[str, Callable[[], ad.AnnData]], ...]
    drop: str


def explain_unwritable(
    adata: ad.AnnData, rows: np.ndarray, write: Write, error: BaseException
) -> str:
    """Find the element that cannot be written, by writing each separately.

    Parameters
    ----------
    adata
        The data.
    rows
        Cells whose counts are written.
    write
        Writes data, or raises an error.
    error
        The error raised when all were written.
    """
    for element in _elements(adata, rows):
        why = _why_not(element.make, write)
        if why is None:
            continue
        fixes = [line for line, make in element.fixes if _why_not(make, write) is None]
        fix = fixes[0] if fixes else element.drop
        return (
            f"adata.{element.label} cannot be written to an .h5ad file and read back ({why}). "
            f'Fix it in Python, {fix}, and save the data: adata.write_h5ad("fixed.h5ad")'
        )
    return f"the data cannot be written to an .h5ad file and read back ({message_of(error)})"


def _why_not(make: Callable[[], ad.AnnData], write: Write) -> str | None:
    try:
        write(make())
    except Exception as error:  # whatever anndata, h5py and pandas may raise
        return message_of(error)
    return None


def made_quietly(*args: Any, **parts: Any) -> ad.AnnData:
    """Make an AnnData without the warnings that reading the file has already shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ad.AnnData(*args, **parts)


def zeros(n_cells: int, n_genes: int) -> sparse.csr_matrix:
    """Make a matrix of zeros, which takes no space."""
    return sparse.csr_matrix((n_cells, n_genes), dtype=np.float32)


def _elements(adata: ad.AnnData, rows: np.ndarray) -> Iterator[_Element]:
    cells, genes = pd.DataFrame(index=adata.obs_names), pd.DataFrame(index=adata.var_names)

    def in_raw(frame: pd.DataFrame) -> ad.AnnData:
        data = made_quietly(obs=cells)
        data.raw = made_quietly(zeros(adata.n_obs, len(frame)), obs=cells, var=frame)
        return data

    yield from _of_frame("obs", adata.obs, lambda frame: made_quietly(obs=frame))
    yield from _of_frame("var", adata.var, lambda frame: made_quietly(var=frame))
    if adata.raw is not None:
        yield from _of_frame("raw.var", adata.raw.var, in_raw)
        for key in adata.raw.varm:
            yield _of_raw_varm(adata, key)
    for name in ("obsm", "varm", "obsp", "varp"):
        for key, value in getattr(adata, name).items():
            yield _of_mapping(name, key, value, {"obs": cells, "var": genes})
    some = pd.DataFrame(index=adata.obs_names[rows])
    for key in layer_names(adata):
        yield _of_mapping("layers", key, adata.layers[key][rows], {"obs": some, "var": genes})
    yield from _of_uns(adata.uns, ())
    if adata.X is not None:
        yield _of_counts("X", lambda: made_quietly(adata.X[rows], obs=some, var=genes))


def _of_frame(name: str, frame: pd.DataFrame, place: Place) -> Iterator[_Element]:
    index = f"{name}.index"
    yield _Element(
        index,
        lambda: place(frame.iloc[:, :0].copy()),
        ((f"adata.{index}.name = None", lambda: place(_unnamed(frame.iloc[:, :0]))),),
        f"adata.{index} = adata.{index}.astype(str)",
    )
    for at, key in enumerate(frame.columns):
        column = frame.iloc[:, [at]]
        here = f"adata.{name}[{key!r}]"

        def make(column: pd.DataFrame = column) -> ad.AnnData:
            return place(column.copy())

        def renamed(column: pd.DataFrame = column) -> ad.AnnData:
            return place(column.set_axis([_NEW_NAME], axis=1))

        def as_text(column: pd.DataFrame = column) -> ad.AnnData:
            return place(column.astype(str))

        rename = f"adata.{name}[{_NEW_NAME!r}] = adata.{name}.pop({key!r})"
        fixes = ((rename, renamed), (f"{here} = {here}.astype(str)", as_text))
        yield _Element(f"{name}[{key!r}]", make, fixes, f"del {here}")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        yield _Element(
            f"{name}[{twice!r}], the name of several columns,",
            lambda: place(frame.loc[:, frame.columns == twice].copy()),
            (),
            f"adata.{name} = adata.{name}.loc[:, ~adata.{name}.columns.duplicated()]",
        )


def _unnamed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename_axis(index=None)


def _of_mapping(name: str, key: Any, value: Any, frames: Mapping[str, Any]) -> _Element:
    def make(key: Any = key) -> ad.AnnData:
        return made_quietly(**frames, **{name: {key: value}})

    here = f"adata.{name}"
    rename = f"{here}[{_NEW_NAME!r}] = {here}.pop({key!r})"
    fixes = ((rename, lambda: make(_NEW_NAME)),)
    return _Element(f"{name}[{key!r}]", make, fixes, f"del {here}[{key!r}]")


def _of_raw_varm(adata: ad.AnnData, key: Any) -> _Element:
    raw = adata.raw

    def make(key: Any = key, value: Any = raw.varm[key]) -> ad.AnnData:
        data = made_quietly(obs=pd.DataFrame(index=adata.obs_names))
        genes = pd.DataFrame(index=raw.var_names)
        counts = zeros(adata.n_obs, raw.n_vars)
        data.raw = made_quietly(counts, obs=data.obs, var=genes, varm={key: value})
        return data

    here = "adata.raw.varm"
    rename = f"{here}[{_NEW_NAME!r}] = {here}.pop({key!r})"
    return _Element(
        f"raw.varm[{key!r}]", make, ((rename, lambda: make(_NEW_NAME)),), f"del {here}[{key!r}]"
    )


def _of_uns(value: Mapping[Any, Any], path: tuple[Any, ...]) -> Iterator[_Element]:
    """Elements of ``uns``: entries of nested mappings before the mappings themselves."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _of_uns(inner, (*path, key))

        def make(inner: Any = inner, key: Any = key) -> ad.AnnData:
            held = {key: {} if isinstance(inner, Mapping) else inner}
            for outer in reversed(path):
                held = {outer: held}
            return made_quietly(uns=held)

        def renamed(make: Callable[..., ad.AnnData] = make) -> ad.AnnData:
            return make(key=_NEW_NAME)

        where = "".join(f"[{outer!r}]" for outer in path)
        here = f"adata.uns{where}"
        rename = f"{here}[{_NEW_NAME!r}] = {here}.pop({key!r})"
        label = f"uns{where}[{key!r}]"
        yield _Element(label, make, ((rename, renamed),), f"del adata.{label}")


def _of_counts(name: str, make: Callable[[], ad.AnnData]) -> _Element:
    line = f'adata.{name} = scipy.sparse.csr_matrix(adata.{name}, dtype="float32")'
    return _Element(name, make, (), line)
