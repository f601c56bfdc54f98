"""Try hundreds of odd inputs on the public API, and count what becomes of them.

Each should be refused by an error of the library's own that names the argument (or what is wrong
with the data), or give the right result. Faults are errors from elsewhere or without the name
("unclear"), results where there should be an error or a warning ("silent"), and wrong results.

    PYTHONPATH=tests python tests/fuzz/odd_inputs.py [--area train] [--share 0.2 --seed 0] [--all]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import cells
import data_cases
import file_cases
import numbers_and_names
import part_cases
from outcomes import CLEAR, OUTCOMES, RIGHT, Case, judge

from pyro_contrastive import settings

SLOW = 10.0
"""Seconds after which an input counts as one that hangs."""


def every_case() -> Iterator[Case]:
    """Yield all cases."""
    yield from data_cases.odd_data()
    yield from data_cases.odd_keys()
    yield from data_cases.odd_records()
    yield from data_cases.odd_queries()
    yield from data_cases.missing_warnings()
    yield from part_cases.constructor()
    yield from part_cases.parts()
    yield from part_cases.training()
    yield from part_cases.empty_selections()
    yield from file_cases.saving()
    yield from file_cases.shell()
    yield from numbers_and_names.odd_arguments(cells.model)


def main() -> int:
    """Try the cases, print faults and a table; return the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--area", nargs="*", help="only cases of these areas")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="print every case, not faults alone")
    given = parser.parse_args()
    settings.progress_bars = False
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    chosen = [each for each in every_case() if not given.area or each.area in given.area]
    random.Random(given.seed).shuffle(chosen)
    chosen = chosen[: round(given.share * len(chosen))]
    cells.model()  # compiled code is loaded before the first case is timed
    counted: dict[str, Counter[str]] = {}
    for case in sorted(chosen, key=lambda case: case.area):
        begun = time.perf_counter()
        outcome, said = judge(case)
        seconds = time.perf_counter() - begun
        counted.setdefault(case.area, Counter())[outcome] += 1
        if given.all or outcome not in {CLEAR, RIGHT}:
            print(f"{outcome.upper():11} {case.area}: {case.label}\n            {said}", flush=True)
        if seconds > SLOW:
            print(f"SLOW        {case.area}: {case.label}: {seconds:.0f} s", flush=True)
    _print_table(counted)
    totals = sum(counted.values(), Counter())
    return sum(n for outcome, n in totals.items() if outcome not in {CLEAR, RIGHT})


def _print_table(counted: dict[str, Counter[str]]) -> None:
    print(f"{'area':36}" + "".join(f"{name:>13}" for name in OUTCOMES))
    total = sum(counted.values(), Counter())
    for area, row in itertools.chain(sorted(counted.items()), [("all", total)]):
        print(f"{area:36}" + "".join(f"{row[name]:13}" for name in OUTCOMES))


if __name__ == "__main__":
    sys.exit(bool(main()))
