"""The demo: fit the bundled interferon data and write a page that explains the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from anndata import AnnData

from pyro_contrastive.data.bundled import load_kang
from pyro_contrastive.report.figures import Method
from pyro_contrastive.report.folder import reserve_folder
from pyro_contrastive.report.pipeline import prepare_model, register, run_study
from pyro_contrastive.report.study import Columns, FitSettings, Study

__all__ = ["DEMO_SETTINGS", "DEMO_STUDY", "demo_cells", "demo_settings", "run_demo"]

# The one place for the demo's model and training settings.
DEMO_SETTINGS = FitSettings(
    preset="separated",  # without penalties both latents contain interferon and cell type
    model={"n_hidden": 128, "n_layers": 1, "n_background_latent": 10, "n_salient_latent": 10},
    train={"schedule": "fast", "batch_size": 128, "train_size": 0.9},
)

DEMO_STUDY = Study(
    name="kang",
    title="What interferon does to blood cells",
    lead="Blood cells of lupus patients, untreated or treated with interferon-beta for six hours "
    "(Kang et al. 2018): one latent for what the cells are, another for what the treatment did.",
    columns=Columns(condition_key="condition", background="control"),
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
        Folder for ``index.html``, ``kang.h5ad``, ``latents.csv``, ``model/``, ``scores.csv`` and
        ``figures/``.
    max_epochs
        Epochs at most. Default: as in `settings`.
    seed
        Seed of everything random. Default 0.
    overwrite
        Whether `out` may contain something already; the files of an earlier run are replaced when
        the new ones are complete.
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
        If `out` is not empty and `overwrite` is false, or a result would replace a file that no run
        has written; nothing has been done then.
    NotADirectoryError
        If `out` is a file.
    pyro_contrastive.report.failures.ResultsError
        If something could not be made after the training; everything else is written.
    """
    with reserve_folder(out, DEMO_STUDY.name, overwrite=overwrite) as folder:
        cells, study = demo_cells()
        settings = demo_settings(max_epochs, settings)
        model = prepare_model(cells, folder, study, settings, seed=seed)
        return run_study(model, cells, folder, study, settings, method=method, seed=seed)


def demo_cells() -> tuple[AnnData, Study]:
    """Read the bundled cells and register them; return them with their study."""
    cells = load_kang()
    return cells, register(cells, replace(DEMO_STUDY, source=str(cells.uns["source"])))


def demo_settings(max_epochs: int | None, settings: FitSettings = DEMO_SETTINGS) -> FitSettings:
    """Return the settings of the demo, with `max_epochs` if given."""
    if max_epochs is None:
        return settings
    return replace(settings, train={**settings.train, "max_epochs": max_epochs})
