"""From counts to a folder of results: fit, score, draw, write. Used by ``demo`` and ``fit``."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import pandas as pd

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.report.failures import ResultsError
from pyro_contrastive.report.figures import Method
from pyro_contrastive.report.folder import ResultsFolder
from pyro_contrastive.report.results import reserved, write_results
from pyro_contrastive.report.study import LATENTS, FitSettings, Study
from pyro_contrastive.report.summary import print_summary, print_training
from pyro_contrastive.report.trial import check_results_can_be_written
from pyro_contrastive.saving.checkpoint_files import all_in

if TYPE_CHECKING:
    from pyro_contrastive.contrastive_vi import ContrastiveVI
    from pyro_contrastive.training.history import FitResult

__all__ = [
    "make_model",
    "prepare_model",
    "register",
    "run_study",
]


_USUAL_LATENTS = 10


def register(adata: ad.AnnData, study: Study, likelihood: Likelihood | None = None) -> Study:
    """Register the columns and the counts with the model.

    Parameters
    ----------
    adata
        Raw counts [cells, genes]; the registration is noted in it.
    study
        The comparison.
    likelihood
        Likelihood whose support is checked, with advice for the shell. Default: checked when the
        model is made.

    Returns
    -------
    Study
        With the warnings of the setup, which are also given as such, for the page.

    Raises
    ------
    ValueError
        If the data or columns do not fit the model.
    """
    # Slow imports, not needed to write a page.
    from pyro_contrastive.contrastive_vi import ContrastiveVI  # noqa: PLC0415
    from pyro_contrastive.data import Setup  # noqa: PLC0415
    from pyro_contrastive.data.support import check_support  # noqa: PLC0415
    from pyro_contrastive.report.advice import shell_advice  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if likelihood is not None:  # whose support is checked below
            warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, labels_key=study.label_key, **asdict(study.columns))
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if likelihood is not None:
        data = Setup.of(adata).extract(adata)
        check_support(data.rows(), adata, study.columns.layer, likelihood, shell_advice)
    cautions = tuple(str(w.message) for w in caught if issubclass(w.category, UserWarning))
    return replace(study, cautions=cautions)


def make_model(adata: ad.AnnData, settings: FitSettings, *, seed: int = 0) -> ContrastiveVI:
    """Build a model of registered cells.

    Parameters
    ----------
    adata
        Cells that went through :func:`register`.
    settings
        Preset and arguments of the model.
    seed
        Seed of the starting values. Default 0.

    Raises
    ------
    ValueError
        If the settings contradict each other or the data.
    """
    from pyro_contrastive.contrastive_vi import ContrastiveVI  # noqa: PLC0415 -- as in register

    with seeded(seed):
        if settings.preset is None:
            return ContrastiveVI(adata, **settings.model)
        return ContrastiveVI.from_preset(adata, settings.preset, **settings.model)


def prepare_model(
    adata: ad.AnnData, folder: ResultsFolder, study: Study, settings: FitSettings, *, seed: int = 0
) -> ContrastiveVI:
    """Build a model, and check before training that its results can be written.

    Parameters
    ----------
    adata, settings, seed
        As in :func:`make_model`.
    folder, study
        The folder for the results, and the comparison.

    Raises
    ------
    ValueError
        As :func:`make_model`, or if something in the data cannot be written to a file.
    OSError
        If the disk does not have enough space.
    """
    model = make_model(adata, settings, seed=seed)
    sizes = [settings.model.get(f"n_{kind}_latent", _USUAL_LATENTS) for kind in LATENTS]
    check_results_can_be_written(
        model, adata, folder, study, n_latents=sum(sizes), refine=settings.refine
    )
    return model


def run_study(
    model: ContrastiveVI,
    adata: ad.AnnData,
    out: str | Path | ResultsFolder,
    study: Study,
    settings: FitSettings,
    *,
    method: Method = "tsne",
    seed: int = 0,
) -> pd.DataFrame:
    """Train a model, write everything into a folder and print the scores.

    Parameters
    ----------
    model
        Made by :func:`make_model`, with the same settings.
    adata
        Its cells; gain both latents in ``obsm``.
    out
        The folder, made if it is not there. An earlier run's files in it are replaced when the new
        ones are complete.
    study
        The comparison.
    settings
        Arguments of model and training.
    method
        How to map the latents to two dimensions. Default t-SNE.
    seed
        Seed of everything random. Default 0.

    Returns
    -------
    pandas.DataFrame
        The scores, see :func:`pyro_contrastive.analysis.separation.score_latents`.

    Raises
    ------
    pyro_contrastive.report.failures.ResultsError, KeyboardInterrupt, OSError
        As :func:`pyro_contrastive.report.results.write_results`.
    """
    with reserved(out, study) as folder:
        result = _trained(model, folder, settings, seed)
        with suppress(
            OSError, ValueError
        ):  # standard output is closed, or cannot show these characters
            print_training(result, model.history)
        seconds = result.seconds
        scores = write_results(
            model,
            adata,
            folder,
            study,
            settings=settings,
            seconds=seconds,
            method=method,
            seed=seed,
        )
        with suppress(OSError, ValueError):
            print_summary(scores, folder.given, seconds)
    return scores


def _trained(
    model: ContrastiveVI, folder: ResultsFolder, settings: FitSettings, seed: int
) -> FitResult:
    """Train the model, from the last checkpoint of the killed run that the folder continues."""
    place = folder.checkpoints
    resume = place if all_in(place) else None
    try:
        return model.train(seed=seed, checkpoint=place, resume=resume, **settings.train)
    except ValueError as error:
        if resume is None:
            raise
        kept = f"Nothing was changed; the checkpoints are in {place}."
        raise ResultsError([f"The fit cannot be continued. {error}"], kept) from error
