"""A few hundred damaged and hostile files; ``tests/fuzz/damaged_files.py`` reads ten thousand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="files are read in children")
def test_no_file_is_silently_another_or_fails_in_an_unexpected_way(monkeypatch):
    monkeypatch.syspath_prepend(str(FUZZ))
    damaged_files = sys.modules.get("damaged_files") or __import__("damaged_files")
    found = damaged_files.fuzz(400, seed=7)
    bad = [each for each in found if each[1][1] not in {"refused", "same", "as written"}]
    assert not bad
    assert len(found) > 350
    assert sum(case[1] == "refused" for _, case in found) > len(found) / 2
    assert max(case[3] for _, case in found) < 10
    assert max(case[4] for _, case in found) < 1000
