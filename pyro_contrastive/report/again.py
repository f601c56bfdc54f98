"""Tables of genes made again from a folder of results, with other groups or donors."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from pyro_contrastive.data.levels import suggestion
from pyro_contrastive.report.answer import add_gene_figures, in_words
from pyro_contrastive.report.earlier_run import MANIFEST, NOTE
from pyro_contrastive.report.figures import FigureSet
from pyro_contrastive.report.genes import TABLES, GeneRequest, GeneTables, make_tables, write_tables
from pyro_contrastive.report.inputs import read_counts

__all__ = ["check_target", "data_file", "genes_again", "write_again"]


def data_file(results: Path) -> Path:
    """Find the cells in a folder of results.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no model, or not exactly one ``.h5ad`` file of a run.
    """
    if (results / NOTE).exists():
        raise ValueError(
            f"{results} is unfinished: a run is moving its results there, or was killed while it "
            "did, so that files of two runs may be mixed. Run it again with --overwrite"
        )
    if not (results / "model").is_dir():
        raise FileNotFoundError(
            f"{results} holds no folder model: give the folder that fit or demo wrote (--out)"
        )
    found = sorted(path.name for path in results.glob("*.h5ad"))
    manifest = results / MANIFEST
    if manifest.is_file():
        try:
            listed = set(json.loads(manifest.read_text(encoding="utf-8"))["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest} cannot be read; it is damaged") from error
        found = [name for name in found if name in listed]
    if len(found) != 1:
        what = ", ".join(found) or "none"
        raise ValueError(f"{results} should hold one .h5ad file of a run; it holds: {what}")
    return results / found[0]


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder in which a table would replace a file.

    Raises
    ------
    FileExistsError, NotADirectoryError
        If it is a file, or holds one of the files and `overwrite` is false.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; the tables need a folder")
    names = [*TABLES.values(), "volcano.png", "effects.png"]
    there = [name for name in names if (out / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{out} already holds {', '.join(there)}; choose another folder, or allow overwriting "
            "(--overwrite)"
        )


def genes_again(results: Path, request: GeneRequest) -> GeneTables:
    """Load model and cells of a folder of results, and make the tables of genes.

    Parameters
    ----------
    results
        The folder that ``fit`` or ``demo`` wrote.
    request
        What to compare.

    Raises
    ------
    FileNotFoundError, ValueError, KeyError
        If something is not there or cannot be read; if a column is unknown or has missing values;
        if the genes cannot be tested.
    """
    # Slow to import.
    from pyro_contrastive.contrastive_vi import ContrastiveVI  # noqa: PLC0415

    cells = read_counts(data_file(results))
    model = ContrastiveVI.load(str(results / "model"), adata=cells)
    columns = {"label": request.labels, "sample": request.sample_key or None}
    for role, key in columns.items():
        _check_column(cells.obs, role, key)
    tables = make_tables(model, request)
    if tables.genes is None:
        raise ValueError(tables.reasons["genes"])
    return tables


def _check_column(obs: pd.DataFrame, role: str, key: str | None) -> None:
    if key is None:
        return
    if key not in obs:
        raise ValueError(
            f"{role} column {key!r} is not in obs; available: {', '.join(obs)}."
            f"{suggestion(key, obs)}"
        )
    if obs[key].isna().any():
        raise ValueError(f"{role} column {key!r} has no value in some cells")


def write_again(tables: GeneTables, out: Path) -> tuple[list[str], list[str]]:
    """Write the tables and their figures.

    Parameters
    ----------
    tables
        What :func:`genes_again` made.
    out
        The folder, made if it is not there.

    Returns
    -------
    Names of the files, and sentences: what was found, and why something was not made.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = write_tables(tables, out)
    figures = FigureSet()
    add_gene_figures(figures, tables, (tables.request.labels or "labels").replace("_", " "))
    figures.save(out)
    lines = in_words(tables)
    if "donors" in tables.reasons:
        lines.append(f"Donors are not the replicates: {tables.reasons['donors']}")
    lines += [
        f"{file} was not made: {tables.reasons[name]}"
        for name, file in TABLES.items()
        if name in tables.reasons
    ]
    return [*written, *figures.files], lines
