"""What an output folder holds already: a former run's files, litter, the user's own."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from pyro_contrastive import __version__
from pyro_contrastive._tools.litter import is_litter

__all__ = ["MANIFEST", "files_below", "former_entries", "manifest_of"]

MANIFEST = "manifest.json"
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
    """Write down as JSON which files a run has made."""
    listed = sorted({*files, MANIFEST})
    return json.dumps(
        {"written_by": _WRITTEN_BY, "version": __version__, "files": listed}, indent=1
    )


def former_entries(folder: Path) -> list[str]:
    """Find what a former run has left, by its manifest or, where there is none, by what it holds.

    Parameters
    ----------
    folder
        Where results are to go.

    Returns
    -------
    list of str
        Names of the files and folders in it that are of the run.

    Raises
    ------
    FileExistsError
        If there is something in the place of a file of the former run, or beside the files in its
        folders, that no run has written; it would be lost with them. Litter is no such thing.
    """
    manifest = folder / MANIFEST
    files = _listed(manifest) if manifest.is_file() else _recognised(folder)
    strangers = sorted(_strangers(folder, files))
    if strangers:
        more = ", ..." if len(strangers) > 3 else ""  # noqa: PLR2004
        raise FileExistsError(
            f"folder {folder} holds what no run has written, where overwriting would delete it: "
            f"{', '.join(strangers[:3])}{more}; move it elsewhere"
        )
    return [name for name in _tops(files) if _exists(folder / name)]


def _tops(files: Iterable[str]) -> list[str]:
    return sorted({PurePosixPath(file).parts[0] for file in files})


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _listed(manifest: Path) -> set[str]:
    """Read a manifest; it may be a file of the user's own that has the same name."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        is_ours = content["written_by"] == _WRITTEN_BY
        files = [PurePosixPath(name) for name in content["files"]]
    except (ValueError, TypeError, KeyError, OSError):
        is_ours, files = False, []
    # An entry that leads out of the folder is none that a run has written.
    if not is_ours or any(not p.parts or p.is_absolute() or ".." in p.parts for p in files):
        raise FileExistsError(
            f"{manifest} is not the list of files that a run has left there, or is damaged; move "
            "it elsewhere"
        )
    return {str(file) for file in files}


def _recognised(folder: Path) -> set[str]:
    """Files of a run that left no manifest, as versions before 28 November 2026 did not."""
    found: set[str] = set()
    page = _text(folder / "index.html")
    if "Written by pyro_contrastive." in page:
        found |= {"index.html", *re.findall(r'read_h5ad\("([^"/]+)"\)', html.unescape(page))}
    if _text(folder / "scores.csv").startswith("latent,of,measure,value"):
        found.add("scores.csv")
    if '"pyro-contrastive"' in _text(folder / "model" / "config.json"):
        found |= {f"model/{name}" for name in _MODEL_FILES}
    # Figures have nothing in them to be known by; only those of a folder that has a run's page.
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


def _strangers(folder: Path, files: Collection[str]) -> Iterator[str]:
    """Paths, in the entries that `files` belong to, of what is neither among them nor litter."""
    parents = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    waiting = [name for name in _tops(files) if _exists(folder / name)]
    while waiting:
        name = waiting.pop()
        path = folder / name
        if path.is_symlink():  # only the link itself would be deleted
            is_known = name in files or name in parents
        elif path.is_dir():
            is_known = name in parents
            inside = [child.name for child in path.iterdir() if not is_litter(child.name)]
            waiting += [f"{name}/{child}" for child in inside] if is_known else []
        else:
            is_known = name in files
        if not is_known:
            yield name
