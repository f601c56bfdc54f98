"""Kill ``save(overwrite=True)`` before each of its file events, and count what is left.

    PYTHONPATH=tests python tests/fuzz/killed_saves.py

Outcomes: *old* or *new*, the model is one of the two, whole; *lost*, no model loads; *mixed*, one
loads that is neither. *Litter*: cases in which the killed process left something beside the
folder, and in which it is still there after the next save.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from damaged_files import of_model
from kill_helpers import every_kill
from small_model import make, small_adata

from pyro_contrastive import ContrastiveVI


def trained(seed: int) -> ContrastiveVI:
    """Fit a small model."""
    model = make(small_adata(), n_hidden=4)
    model.train(max_epochs=1, seed=seed, enable_progress_bar=False, accelerator="cpu")
    return model


def kind_of(folder: Path, whole: dict[str, str]) -> str:
    """Say which model a folder holds, by what the whole ones say."""
    try:
        found = of_model(ContrastiveVI.load(folder))
    except Exception:
        return "lost"
    return next((name for name, said in whole.items() if said == found), "mixed")


def count() -> Counter[str]:
    """Kill at every event, and count."""
    old, new = trained(0), trained(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "models"
        folder = root / "model"

        def reset() -> None:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            old.save(folder, save_anndata=True)

        whole = {}
        for name, model in (("old", old), ("new", new)):
            model.save(Path(place) / name, save_anndata=True)
            whole[name] = of_model(ContrastiveVI.load(Path(place) / name))
        for _ in every_kill(lambda: new.save(folder, overwrite=True, save_anndata=True), reset):
            counts["events"] += 1
            counts[kind_of(folder, whole)] += 1
            counts["litter"] += os.listdir(root) != ["model"]
            new.save(folder, overwrite=True, save_anndata=True)
            counts["litter after the next save"] += os.listdir(root) != ["model"]
            assert kind_of(folder, whole) == "new"
    return counts


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(dict(count()))
