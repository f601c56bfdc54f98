"""Read thousands of damaged and hostile files, and count what happens.

    python tests/fuzz/damaged_files.py --n 10000 --seed 0

Every case damages or changes one file of a small saved model, of its data, or of a model of
scvi-tools (where that is installed), and reads it in a child process. Outcomes:

* *refused*: an error of the library, which says what is wrong with which file;
* *same*: it loads, with the same weights, setup, settings, history and data;
* *as written*: it loads as another model, because whoever changed the files wrote new checksums,
  or the format has none (the first format, and .h5ad and zarr files of the user's own);
* *silently other*: it loads as another model though checksums should have told;
* *foreign*: any other error; *hang*: more than 10 seconds; *crash*: the process died.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from file_mutations import (
    change_header,
    change_json,
    change_json_file,
    change_record,
    damage_bytes,
)
from saved_files import as_format_1, edit_config
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI, InvalidFileError
from pyro_contrastive.data import open_on_disk
from pyro_contrastive.data.files import read_h5ad, read_zarr
from pyro_contrastive.saving.checkpoint_files import STATE, TENSORS
from pyro_contrastive.saving.checkpoints import find_checkpoint
from pyro_contrastive.saving.packed import pack
from pyro_contrastive.saving.saved_config import ADATA, CONFIG, WEIGHTS

SECONDS = 10.0
OUTCOMES = ("refused", "same", "as written", "silently other", "foreign", "hang", "crash")
PACKAGE = str(Path(sys.modules["pyro_contrastive"].__file__ or "").parent)


@dataclass(frozen=True)
class Kind:
    """A kind of case: what is read, how it is changed, and how the result is compared."""

    source: str
    change: Callable[[Path, np.random.Generator], None]
    read: Callable[[Path], Any]
    is_tied: bool
    share: int


def to_bytes(name: str) -> Callable[[Path, np.random.Generator], None]:
    def change(folder: Path, rng: np.random.Generator) -> None:
        path = folder / name
        path.write_bytes(damage_bytes(path.read_bytes(), rng))

    return change


def change_config(folder: Path, rng: np.random.Generator) -> None:
    change_json_file(folder / CONFIG, rng)


def change_and_sign(folder: Path, rng: np.random.Generator) -> None:
    edit_config(folder, lambda config: change_json(config, rng))


def damage_and_sign(name: str) -> Callable[[Path, np.random.Generator], None]:
    def change(folder: Path, rng: np.random.Generator) -> None:
        path, damage = folder / name, damage_bytes
        if name == WEIGHTS and rng.random() < 0.7:
            damage = change_header
        path.write_bytes(damage(path.read_bytes(), rng))
        edit_config(folder, lambda config: None)

    return change


def change_store(folder: Path, rng: np.random.Generator) -> None:
    """Change attributes or other metadata of a zarr store, or damage a file of it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = [path for path in files if path.suffix == ".json" or path.name.startswith(".z")]
    if rng.random() < 0.8:
        change_json_file(described[int(rng.integers(0, len(described)))], rng)
        return
    path = files[int(rng.integers(0, len(files)))]
    path.write_bytes(damage_bytes(path.read_bytes(), rng))


def load(folder: Path) -> Any:
    """What a model says: all of it that could differ."""
    model = ContrastiveVI.load(folder)
    return of_model(model), None if model.adata is None else of_data(model.adata)


def read_cells(folder: Path) -> Any:
    return of_data(read_h5ad(folder / "cells.h5ad"))


def read_store(folder: Path) -> Any:
    return of_data(read_zarr(folder))


def stream_cells(folder: Path) -> Any:
    return of_stored(folder / "cells.h5ad")


def stream_store(folder: Path) -> Any:
    return of_stored(folder)


def of_stored(path: Path) -> Any:
    adata = open_on_disk(path)
    x = adata.X.to_memory().toarray()
    return digest([x.shape, x.tobytes(), adata.obs.to_csv(), adata.var.to_csv()])


def continue_run(folder: Path) -> Any:
    _, found = find_checkpoint(folder)
    config, tensors = pack(found.content)
    weights = {k: (str(v.dtype), v.numpy().tobytes()) for k, v in tensors.items()}
    return digest([found.identity, found.is_last, found.versions, config, weights])


def change_checkpoint(folder: Path, rng: np.random.Generator) -> None:
    file = folder / "epoch_2" / (STATE if rng.random() < 0.7 else TENSORS)
    if file.name == STATE and rng.random() < 0.5:
        change_json_file(file, rng)
    else:
        file.write_bytes(damage_bytes(file.read_bytes(), rng))


def convert(folder: Path) -> Any:
    return of_model(ContrastiveVI.from_scvi(folder))


def change_scvi(folder: Path, rng: np.random.Generator) -> None:
    change_record(folder / "model.pt", rng)


def of_model(model: ContrastiveVI) -> Any:
    weights = {k: (str(v.dtype), v.numpy().tobytes()) for k, v in model.module.state_dict().items()}
    parts = [model.module.model, model.module.guide, *model.module.penalties]
    calls = [str(sorted(call.items())) for call in model.training_calls]
    return digest(
        [weights, model.setup, model.settings, model._history.to_json(), repr(parts), calls]
    )


def of_data(adata: Any) -> Any:
    x = adata.X if isinstance(adata.X, np.ndarray) else adata.X.toarray()
    frames = [adata.obs.to_csv(), adata.var.to_csv(), sorted(map(str, adata.uns.items()))]
    return digest([x.shape, x.tobytes(), *frames, sorted(adata.obsm), sorted(adata.layers)])


def digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


KINDS = {
    "config, bytes": Kind("model", to_bytes(CONFIG), load, True, 20),
    "config, values": Kind("model", change_config, load, True, 15),
    "config, new checksums": Kind("model", change_and_sign, load, False, 20),
    "weights, bytes": Kind("model", to_bytes(WEIGHTS), load, True, 8),
    "weights, new checksums": Kind("model", damage_and_sign(WEIGHTS), load, False, 8),
    "format 1, config": Kind("format 1", change_config, load, False, 6),
    "format 1, weights": Kind("format 1", to_bytes(WEIGHTS), load, False, 3),
    "adata.h5ad of a model": Kind("model", to_bytes(ADATA), load, True, 4),
    "adata.h5ad, new checksums": Kind("model", damage_and_sign(ADATA), load, False, 3),
    ".h5ad": Kind("h5ad", to_bytes("cells.h5ad"), read_cells, False, 4),
    "zarr": Kind("zarr", change_store, read_store, False, 4),
    ".h5ad, on disk": Kind("h5ad", to_bytes("cells.h5ad"), stream_cells, False, 4),
    "zarr, on disk": Kind("zarr", change_store, stream_store, False, 4),
    "checkpoint": Kind("checkpoint", change_checkpoint, continue_run, True, 4),
    "scvi-tools, bytes": Kind("scvi", to_bytes("model.pt"), convert, True, 3),
    "scvi-tools, new sums": Kind("scvi", change_scvi, convert, False, 2),
}
"""Kinds of cases by name, with their shares."""


def write_sources(folder: Path) -> dict[str, Path]:
    """Write the undamaged files."""
    adata = small_adata()
    model = make(adata, n_hidden=4, n_layers=2)
    model.train(max_epochs=2, seed=0, enable_progress_bar=False, accelerator="cpu")
    model.save(folder / "model", save_anndata=True)
    model.save(folder / "format 1")
    as_format_1(folder / "format 1")
    again = {"seed": 0, "enable_progress_bar": False, "accelerator": "cpu"}
    make(adata, n_hidden=4).train(max_epochs=2, checkpoint=folder / "checkpoint", **again)
    shutil.rmtree(folder / "checkpoint" / "epoch_0")  # or it would be continued instead
    (folder / "h5ad").mkdir()
    adata.write_h5ad(folder / "h5ad" / "cells.h5ad")
    try:
        adata.write_zarr(folder / "zarr")
    except ImportError:
        print("without zarr")
    try:
        from scvi.external import ContrastiveVI as Reference
    except ImportError:
        print("without scvi-tools")
    else:
        data = small_adata()
        Reference.setup_anndata(data, batch_key="lane")
        Reference(data, n_hidden=4).save(str(folder / "scvi"))
    return {path.name: path for path in folder.iterdir()}


def outcome(kind: Kind, folder: Path, expected: Any) -> tuple[str, str]:
    """Read a changed folder; return what happened, with the error if it is foreign."""
    try:
        found = kind.read(folder)
    except InvalidFileError:
        return "refused", ""
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        kinds = {ValueError, FileNotFoundError, KeyError}  # a KeyError of ours is a sentence
        is_sentence = type(error) in kinds and len(str(error).split()) > 3
        is_ours = is_sentence and last.startswith(PACKAGE)
        text = "".join(traceback.format_exception(error)[-4:])
        return ("refused", "") if is_ours else ("foreign", text)
    if found == expected:
        return "same", ""
    return ("silently other", "") if kind.is_tied else ("as written", "")


Case = tuple[int, str, str, float, float]
"""Number, outcome, error, seconds, and megabytes that the peak of memory rose by."""
END = b"\0END\0"


@dataclass(frozen=True)
class Fuzz:
    """All cases: the kind of each, the undamaged files, and what these say."""

    names: list[str]
    sources: dict[str, Path]
    expected: dict[str, Any]
    seed: int

    def run(self, *, show: bool) -> list[Case]:
        """Run all cases, in a new child after one that hung or died."""
        left, done = list(range(len(self.names))), []
        while left:
            cases = self._in_a_child(left[:500])
            done += cases
            left = left[len(cases) :]
            if show:
                print(f"{len(done)} of {len(self.names)}", file=sys.stderr, flush=True)
        return done

    def _in_a_child(self, numbers: list[int]) -> list[Case]:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                self._run_cases(numbers, writer)
            finally:
                os._exit(0)
        os.close(writer)
        cases, current, hung = listen(reader)
        os.close(reader)
        if hung:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if current is not None:
            cases.append((current, "hang" if hung else "crash", "", SECONDS, 0.0))
        return cases

    def _run_cases(self, numbers: list[int], pipe: int) -> None:
        """Run cases one after another, and write what happened into a pipe."""
        warnings.simplefilter("ignore")
        for number in numbers:
            os.write(pipe, pickle.dumps((number, None, "", 0.0, 0.0)) + END)
            os.write(pipe, pickle.dumps(self._run_case(number)) + END)

    def _run_case(self, number: int) -> Case:
        name = self.names[number]
        kind = KINDS[name]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "case"
            shutil.copytree(self.sources[kind.source], folder)
            kind.change(folder, np.random.default_rng([self.seed, number]))
            before, start = peak(), time.perf_counter()
            found, error = outcome(kind, folder, self.expected[name])
            seconds = time.perf_counter() - start
            found = "hang" if seconds > SECONDS else found
            return number, found, error[-1500:], seconds, peak() - before


def peak() -> float:
    """The most memory that this process had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def listen(reader: int) -> tuple[list[Case], int | None, bool]:
    """Read cases from a child until it ends or hangs; return them, and one that was not done."""
    cases: list[Case] = []
    current, rest = None, b""
    while True:
        if not select.select([reader], [], [], SECONDS + 5 if current is not None else 60)[0]:
            return cases, current, True
        found = os.read(reader, 1 << 16)
        if not found:
            return cases, current, False
        *whole, rest = (rest + found).split(END)
        for each in whole:
            case = pickle.loads(each)  # from our own child
            if case[1] is None:
                current = case[0]
            else:
                current = None
                cases.append(case)


def fuzz(
    n: int, seed: int, kinds: list[str] | None = None, *, show: bool = False
) -> list[tuple[str, Case]]:
    """Run `n` cases, and return them with the names of their kinds."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = write_sources(Path(place))
        chosen = {k: v for k, v in KINDS.items() if v.source in sources and k in (kinds or KINDS)}
        expected = {name: kind.read(sources[kind.source]) for name, kind in chosen.items()}
        total = sum(kind.share for kind in chosen.values())
        names = [k for k, kind in chosen.items() for _ in range(round(n * kind.share / total))]
        cases = Fuzz(names, sources, expected, seed).run(show=show)
    return [(names[case[0]], case) for case in cases]


def table(found: list[tuple[str, Case]]) -> str:
    """Count outcomes by kind."""
    lines = ["| files | cases | " + " | ".join(OUTCOMES) + " | longest, s | memory, MB |"]
    lines.append("|---" * (len(OUTCOMES) + 4) + "|")
    for name in [*dict.fromkeys(kind for kind, _ in found), "all"]:
        cases = [case for kind, case in found if name in {kind, "all"}]
        counts = Counter(case[1] for case in cases)
        numbers = " | ".join(str(counts[each]) for each in OUTCOMES)
        longest, most = max(case[3] for case in cases), max(case[4] for case in cases)
        lines.append(f"| {name} | {len(cases)} | {numbers} | {longest:.1f} | {most:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases, and print the table and the foreign errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    given = parser.parse_args()
    found = fuzz(given.n, given.seed, given.kind, show=True)
    print(table(found))
    bad = [each for each in found if each[1][1] not in {"refused", "same", "as written"}]
    for kind, case in bad[:30]:
        print(f"\n{kind}, case {case[0]}: {case[1]}\n{case[2]}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
