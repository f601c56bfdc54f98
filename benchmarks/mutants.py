"""Put small faults into the library, one at a time, and see whether its tests notice.

``python benchmarks/mutants.py --sample 200 --seed 0`` draws mutants of the files in ``ROOMS``, and
``--listed`` takes those of ``LISTED``, faults that once went unnoticed. Each runs the fast tests of
its own room, in a copy of the repository, until the first one fails. Survivors are printed with the
change. Nothing is installed; about 8 s a mutant on one core.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutation_operators import Mutant, mutants

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "pyro_contrastive"
LIMIT_S = 120
PASSED = "passed"
# Imported before the first mutant, so that each starts within milliseconds, as a fork.
SLOW_IMPORTS = ("anndata", "arviz", "mpmath", "numba", "pydeseq2.ds", "pyro", "scvi")


@dataclass(frozen=True)
class Room:
    """Some files of the library, and the tests that are theirs.

    Compiling the kernels again for each mutant would take longer than to run them as plain Python,
    and numba, which keeps machine code by file, does not see that a function elsewhere was changed.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    compiles: bool = True

    def sources(self) -> list[str]:
        """Return the paths of the files."""
        root = REPOSITORY / PACKAGE
        found = sorted(path for pattern in self.files for path in root.glob(pattern))
        return [str(path.relative_to(REPOSITORY)) for path in found]


ROOMS = {
    "distributions": Room(("density/distributions.py",), ("tests/density/test_distributions.py",)),
    "density": Room(
        (
            *("density/counts.py", "density/nonzero*.py", "density/poisson.py", "density/heads.py"),
            *("density/decoded.py", "density/fused.py"),
        ),
        (
            *("tests/density/test_distributions.py", "tests/density/test_kernel_functions.py"),
            *("tests/density/test_decoded_counts.py", "tests/priors/test_priors.py"),
            *("tests/likelihoods/test_likelihoods.py", "tests/density/test_ways.py"),
        ),
    ),
    "kernels": Room(
        ("density/kernel*.py", "density/rows.py"),
        (*("tests/density/test_kernel_functions.py", "tests/density/test_decoded_counts.py"),),
        compiles=False,
    ),
    "objective": Room(
        ("objective.py",),
        (
            *("tests/program/test_objective.py", "tests/program/test_observed_sites.py"),
            *("tests/penalties/test_penalties.py", "tests/program/test_parity.py"),
        ),
    ),
    "penalties": Room(
        ("penalties/*.py",), ("tests/penalties", "tests/priors/test_learned_priors.py")
    ),
    "differential statistics": Room(
        ("analysis/differential_statistics.py",),
        ("tests/analysis/test_differential.py", "tests/analysis/test_differential_choices.py"),
    ),
    "splits": Room(("training/splits.py",), ("tests/training/test_splits.py",)),
    "means": Room(
        ("analysis/means/*.py",),
        (
            *(f"tests/analysis/test_{name}.py" for name in ("log_ratio", "moderation")),
            *("tests/methods/test_differential_means.py", "tests/methods/test_donors.py"),
            *("tests/methods/test_group_effects.py", "tests/analysis/test_donor_fit.py"),
        ),
    ),
    "diagnosis": Room(
        ("analysis/diagnosis/*.py",),
        (
            *("tests/analysis/test_diagnosis_thresholds.py",),
            *("tests/analysis/test_donor_findings.py", "tests/analysis/test_diagnose.py"),
        ),
    ),
    "plan": Room(
        ("training/plan.py",),
        ("tests/training/test_schedules.py", "tests/training/test_training.py"),
    ),
}
SAMPLED = [name for name in ROOMS if name not in {"diagnosis", "plan"}]


@dataclass(frozen=True)
class Outcome:
    """The test that noticed a mutant, or how its tests ended."""

    mutant: Mutant
    noticed_by: str
    seconds: float

    @property
    def survived(self) -> bool:
        """Whether no test noticed."""
        return self.noticed_by == PASSED


class FirstFailure:
    """Plugin of pytest that remembers which test failed."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: object) -> None:
        """Note the name of a test that fails."""
        if report.failed and not self.name:  # type: ignore[attr-defined]
            self.name = report.nodeid  # type: ignore[attr-defined]


def run_tests(tests: tuple[str, ...], answer: int, compiles: bool) -> None:
    """Run tests in this process, a fork, and write the name of the first that fails."""
    import numba
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    numba.config.CACHE_DIR = str(Path("numba_cache").resolve())
    numba.config.DISABLE_JIT = not compiles
    sys.path.insert(0, os.getcwd())
    seen = FirstFailure()
    # pytest would warn of plugins that were imported before it.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    # In plain Python, where a cast of NaN gives a warning.
    quiet += ["-W", "ignore:invalid value encountered in cast:RuntimeWarning"]
    code = pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", *quiet], plugins=[seen])
    os.write(answer, (seen.name or (PASSED if code == 0 else f"exit code {code}")).encode())


def noticed_by(room: Room) -> str:
    """Run a room's tests in a fork with a time limit; return the name of the first that fails."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.setsid()
            run_tests(room.tests, write, room.compiles)
        finally:
            os._exit(1)
    os.close(write)
    with ThreadPoolExecutor(1) as pool, os.fdopen(read, "rb") as answer:
        reading = pool.submit(answer.read)
        try:
            name = reading.result(LIMIT_S).decode() or "a crash"
        except TimeoutError:
            os.killpg(process, signal.SIGKILL)
            name = f"more than {LIMIT_S} s"
    os.waitpid(process, 0)
    return name


def try_mutant(mutant: Mutant, room: Room) -> Outcome:
    """Change the copy of the repository that is the current folder, test it, and change it back."""
    path = Path(mutant.path)
    original = path.read_text(encoding="utf-8")
    begun = time.monotonic()
    path.write_text(mutant.apply(original), encoding="utf-8")
    try:
        name = noticed_by(room)
    finally:
        path.write_text(original, encoding="utf-8")
    return Outcome(mutant, name, time.monotonic() - begun)


def listed() -> list[tuple[str, Mutant]]:
    """Return the mutants of ``LISTED`` with their rooms."""
    from listed_mutants import LISTED

    found = []
    for room, path, before, text in LISTED:
        source = (REPOSITORY / PACKAGE / path).read_text(encoding="utf-8")
        if source.count(before) != 1:
            raise SystemExit(f"{path} has {before!r} {source.count(before)} times, not once")
        start = len(source[: source.index(before)].encode())
        line = source[: source.index(before)].count("\n") + 1
        stop = start + len(before.encode())
        found.append((room, Mutant(f"{PACKAGE}/{path}", line, start, stop, before, text)))
    return found


def drawn(rooms: list[str], n: int, seed: int) -> list[tuple[str, Mutant]]:
    """Draw mutants of rooms, ``n`` in all, each as likely as any other."""
    every = [
        (room, mutant)
        for room in rooms
        for path in ROOMS[room].sources()
        for mutant in mutants(path, (REPOSITORY / path).read_text(encoding="utf-8"))
    ]
    print(f"{len(every):,} mutants, of which {min(n, len(every))} are tried")
    return random.Random(seed).sample(every, min(n, len(every)))


def report(outcomes: list[tuple[str, Outcome]]) -> None:
    """Print a table by room, then the survivors."""
    tried, killed = Counter[str](), Counter[str]()
    for room, outcome in outcomes:
        tried[room] += 1
        killed[room] += not outcome.survived
    print("\n| room | mutants | noticed |\n|---|---|---|")
    for room in tried:
        print(f"| {room} | {tried[room]} | {killed[room]} |")
    share = killed.total() / max(tried.total(), 1)
    print(f"| all | {tried.total()} | {killed.total()} ({share:.1%}) |\n\nSurvivors:")
    for _, outcome in outcomes:
        if outcome.survived:
            print(f"* `{outcome.mutant.name}`")


def main() -> None:
    """Read the command line, copy the repository, try the mutants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="number of mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--room", choices=ROOMS, action="append", help="default: all but diagnosis and plan"
    )
    parser.add_argument("--listed", action="store_true", help="the mutants of listed_mutants.py")
    parser.add_argument("--match", default="", help="only mutants whose name contains this")
    arguments = parser.parse_args()
    rooms = arguments.room or SAMPLED
    chosen = listed() if arguments.listed else drawn(rooms, arguments.sample, arguments.seed)
    chosen = [(room, mutant) for room, mutant in chosen if arguments.match in mutant.name]
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for part in (PACKAGE, "tests", "benchmarks", "pyproject.toml"):
            copy = shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy
            copy(REPOSITORY / part, Path(folder) / part)
        os.chdir(folder)
        for room in dict.fromkeys(room for room, _ in chosen):
            name = noticed_by(ROOMS[room])
            if name != PASSED:
                raise SystemExit(f"{name} fails without any mutant")
        for room, mutant in chosen:
            outcome = try_mutant(mutant, ROOMS[room])
            outcomes.append((room, outcome))
            said = "SURVIVED" if outcome.survived else outcome.noticed_by
            print(f"{mutant.name}: {said} ({outcome.seconds:.0f} s)", flush=True)
        os.chdir(REPOSITORY)
    report(outcomes)


if __name__ == "__main__":
    main()
