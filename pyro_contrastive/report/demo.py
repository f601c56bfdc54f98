"""The demo: fit the bundled interferon data and write a page that explains the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from pyro_contrastive.data.bundled import load_kang
from pyro_contrastive.report.figures import Method
from pyro_contrastive.report.inputs import prepare_folder
from pyro_contrastive.report.pipeline import make_model, register, run_study
from pyro_contrastive.report.study import FitSettings, Study

__all__ = ["DEMO_SETTINGS", "DEMO_STUDY", "run_demo"]

# The one place for the demo's model and training settings.
DEMO_SETTINGS = FitSettings(
    preset="separated",  # without penalties interferon is found in both latents, and cell type too
    model={"n_hidden": 128, "n_layers": 1, "n_background_latent": 10, "n_salient_latent": 10},
    train={"schedule": "fast", "batch_size": 128, "train_size": 0.9},
)

DEMO_STUDY = Study(
    name="kang",
    title="What interferon does to blood cells",
    lead="Blood cells of lupus patients, left alone or treated with interferon-beta for six hours "
    "(Kang et al. 2018): one latent for what the cells are, another for what the treatment did.",
    condition_key="condition",
    background="control",
    label_key="cell_type_coarse",
    label_name="cell type",
    genes=("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "CXCL10"),
)


def run_demo(
    out: str | Path,
    *,
    max_epochs: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    method: Method = "tsne",
    settings: FitSettings = DEMO_SETTINGS,
) -> pd.DataFrame:
    """Fit the bundled data and write model, latents, scores, figures and page.

    Parameters
    ----------
    out
        Folder for ``index.html``, ``kang.h5ad``, ``model/``, ``scores.csv`` and ``figures/``.
    max_epochs
        Epochs at most. Default: as in `settings`.
    seed
        Seed of everything random. Default 0.
    overwrite
        Whether `out` may hold something already; files of the same name are replaced.
    method
        How to map the latents to two dimensions: "tsne" (default), "umap" or "pca".
    settings
        Arguments of model and training. Default: :data:`DEMO_SETTINGS`.

    Returns
    -------
    pandas.DataFrame
        The scores, see :func:`pyro_contrastive.analysis.separation.score_latents`.

    Raises
    ------
    FileExistsError
        If `out` holds something and `overwrite` is false; nothing has been done then.
    NotADirectoryError
        If `out` is a file.
    """
    folder = prepare_folder(out, overwrite=overwrite)
    cells = load_kang()
    if max_epochs is not None:
        settings = replace(settings, train={**settings.train, "max_epochs": max_epochs})
    study = replace(DEMO_STUDY, source=str(cells.uns["source"]))
    register(cells, study)
    model = make_model(cells, settings, seed=seed)
    return run_study(model, cells, folder, study, settings, method=method, seed=seed)
