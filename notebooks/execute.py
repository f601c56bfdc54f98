"""Run the notebooks and save them with their outputs.

    python notebooks/execute.py                          # all of them, in place
    python notebooks/execute.py 02_modify_priors.ipynb          # one of them
    python notebooks/execute.py 02_modify_priors.ipynb --to /tmp    # leave the committed file alone

A notebook that raises is reported and not saved; one that warns, or prints a path of this machine,
is reported too, and the exit status is 1. Needs the ``notebook`` extra.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal
HANGS_AFTER = 900  # seconds per cell
# Folders of a user or of a machine, on Linux, macOS and Windows.
MACHINE_PATH = re.compile(r"/(?:home|Users|root|tmp|private|var|opt|mnt|work)/\w|[A-Z]:\\\w")


def execute(notebook: NotebookNode) -> None:
    """Run all cells, in a folder with the data alone, with the package of this repository.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        # The matrices are small: one thread is faster on a busy machine, and reproducible.
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        # Pyro imports tqdm, which warns of missing ipywidgets although bars are off here.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "data", Path(folder) / "data")
        client = NotebookClient(
            notebook,
            timeout=HANGS_AFTER,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=env)
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({})


def texts(cell: NotebookNode) -> Iterator[str]:
    """Yield the text outputs of a cell, without pictures."""
    for output in cell.get("outputs", []):
        if "text" in output:
            yield output.text
        yield from output.get("traceback", [])
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield content if isinstance(content, str) else str(content)


def faults(notebook: NotebookNode) -> list[str]:
    """Return what in the outputs does not belong in a committed notebook; empty if nothing."""
    found = []
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    if not any(cell.outputs for cell in code):
        found.append("it has no outputs: run `make notebooks`")
    users_names = {getpass.getuser(), Path.home().name} - {"root", ""}
    for cell in code:
        where = f"cell {cell.id}"
        if cell.execution_count is None:
            found.append(f"{where} was not run: run `make notebooks`")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{where} raised {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"{where} writes to stderr (a warning?): {output.text[:300]}")
        for text in texts(cell):
            found += [f"{where} shows the path {m[0]!r}..." for m in MACHINE_PATH.finditer(text)]
            found += [f"{where} shows {n!r}" for n in users_names if re.search(rf"\b{n}\b", text)]
    return found


def run(path: Path, to: Path) -> list[str]:
    """Execute a notebook, save it in folder `to` unless it raises, and return its faults."""
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    try:
        execute(notebook)
    except CellExecutionError as error:
        return [COLOUR.sub("", str(error))]
    nbformat.write(notebook, to / path.name)
    print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return faults(notebook)


def main() -> int:
    """Run the named notebooks, or all; return 1 if one of them has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="file names; default: all next to this script")
    parser.add_argument("--to", type=Path, help="folder to save to; default: in place")
    options = parser.parse_args()
    paths = [HERE / name for name in options.notebooks] or sorted(HERE.glob("*.ipynb"))
    failed = False
    for path in paths:
        for fault in run(path, options.to or path.parent):
            failed = True
            print(f"{path.name}: {fault}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
