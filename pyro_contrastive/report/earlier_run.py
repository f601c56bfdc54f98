"""What an output folder already contains: files of an earlier run, of the system, of the user."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from pyro_contrastive import __version__
from pyro_contrastive._tools.litter import is_litter

__all__ = ["MANIFEST", "NOTE", "earlier_entries", "files_below", "manifest_of"]

MANIFEST = "manifest.json"
NOTE = "UNFINISHED.txt"
"""Lies in a folder while the results of two runs may be mixed there."""
_WRITTEN_BY = "pyro-contrastive"

_MODEL_FILES = ("config.json", "model.safetensors", "adata.h5ad")
_FIGURE_FILES = (
    "latents.png",
    *(f"{of}_by_{by}.png" for of in ("background", "salient") for by in ("condition", "labels")),
    "training.png",
    "scores.png",
)


def files_below(folder: Path) -> list[str]:
    """Paths of all files in a folder, relative to it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def manifest_of(files: Iterable[str]) -> str:
    """List as JSON the files that a run has made."""
    listed = sorted({*files, MANIFEST})
    return json.dumps(
        {"written_by": _WRITTEN_BY, "version": __version__, "files": listed}, indent=1
    )


def earlier_entries(folder: Path) -> list[str]:
    """Find the files of an earlier run by its manifest or, without one, by their content.

    Parameters
    ----------
    folder
        The folder for the results.

    Returns
    -------
    list of str
        Names of the files and folders in it that belong to the run.

    Raises
    ------
    FileExistsError
        If a file that no run has written has the name of one of the earlier run, or lies in one of
        its folders: it would be lost. Files that the operating system leaves do not count.
    """
    manifest = folder / MANIFEST
    files = _listed(manifest) if manifest.is_file() else _recognised(folder)
    unknown = sorted(_unknown(folder, files))
    if unknown:
        more = ", ..." if len(unknown) > 3 else ""  # noqa: PLR2004
        raise FileExistsError(
            f"folder {folder} contains files that no run has written and that overwriting would "
            f"delete: {', '.join(unknown[:3])}{more}; move them elsewhere"
        )
    return [name for name in _tops(files) if _exists(folder / name)]


def _tops(files: Iterable[str]) -> list[str]:
    return sorted({PurePosixPath(file).parts[0] for file in files})


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _listed(manifest: Path) -> set[str]:
    """Read a manifest, which may be a user's file with the same name."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        is_ours = content["written_by"] == _WRITTEN_BY
        files = [PurePosixPath(name) for name in content["files"]]
    except (ValueError, TypeError, KeyError, OSError):
        is_ours, files = False, []
    # A run never writes outside its folder.
    if not is_ours or any(not p.parts or p.is_absolute() or ".." in p.parts for p in files):
        raise FileExistsError(
            f"{manifest} is not a list of files written by a run, or is damaged; move it elsewhere"
        )
    return {str(file) for file in files}


def _recognised(folder: Path) -> set[str]:
    """Files of a run without a manifest, as versions before 28 November 2026 wrote none."""
    found: set[str] = set()
    page = _text(folder / "index.html")
    if "Written by pyro_contrastive." in page:
        found |= {"index.html", *re.findall(r'read_h5ad\("([^"/]+)"\)', html.unescape(page))}
    if _text(folder / "scores.csv").startswith("latent,of,measure,value"):
        found.add("scores.csv")
    if '"pyro-contrastive"' in _text(folder / "model" / "config.json"):
        found |= {f"model/{name}" for name in _MODEL_FILES}
    # Figures cannot be recognised by their content; count them only next to a run's page.
    if "index.html" in found:
        found |= {f"figures/{name}" for name in _FIGURE_FILES}
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _unknown(folder: Path, files: Collection[str]) -> Iterator[str]:
    """Paths in the top-level entries of `files` that are neither listed nor system files."""
    parents = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    waiting = [name for name in _tops(files) if _exists(folder / name)]
    while waiting:
        name = waiting.pop()
        path = folder / name
        if path.is_symlink():  # deleting removes only the link itself
            is_known = name in files or name in parents
        elif path.is_dir():
            is_known = name in parents
            inside = [child.name for child in path.iterdir() if not is_litter(child.name)]
            waiting += [f"{name}/{child}" for child in inside] if is_known else []
        else:
            is_known = name in files
        if not is_known:
            yield name
