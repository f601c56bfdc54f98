"""Small cells and a stand-in for a fitted model, for tests of how results are written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from pyro_contrastive.report.study import Columns, FitSettings, Study
from pyro_contrastive.training.history import FitResult

STUDY = Study(
    name="cells_latents",
    title="Title",
    lead="Lead",
    columns=Columns(condition_key="arm", background="ctrl"),
    label_key="kind",
)


def small_cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"arm": np.tile(["ctrl", "drug"], 20), "kind": np.repeat(["B", "T"], 20)},
        index=[f"cell {i}" for i in range(40)],
    )
    var = pd.DataFrame(index=list("abcde"))
    return ad.AnnData(rng.poisson(2, size=(40, 5)).astype(np.float32), obs=obs, var=var)


class StandInModel:
    """A fitted model; `mark` is in all it writes, to tell one run from another."""

    def __init__(self, n_cells: int = 40, mark: str = "1") -> None:
        self.n_cells, self.mark = n_cells, mark
        self.history = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}

    def train(self, **kwargs: Any) -> FitResult:
        return FitResult(n_epochs=2, seconds=1.0, max_epochs=7)

    held_out_indices = None
    setup = SimpleNamespace(sample_key=None)

    def differential_expression(self, **settings: Any) -> pd.DataFrame:
        raise ValueError("a stand-in tests no genes")

    def null_check(self, n_shuffles: int, **settings: Any) -> None:
        raise ValueError("a stand-in is not fitted again")

    def get_latent_representation(self, *, representation_kind: str) -> np.ndarray:
        seed = {"background": 0, "salient": 1}[representation_kind]
        rng = np.random.default_rng([seed, int(self.mark)])
        return rng.normal(size=(self.n_cells, 3)).astype(np.float32)

    def save(self, dir_path: str, *, overwrite: bool = False) -> None:
        folder = Path(dir_path)
        folder.mkdir(parents=True, exist_ok=overwrite)
        (folder / "config.json").write_text('{"versions": {"pyro-contrastive": "0"}}')
        (folder / "model.safetensors").write_text(self.mark)


SETTINGS = FitSettings()


def tree(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
