"""From counts to a folder of results: fit, score, draw, write. Demo and shell both use it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import torch

from pyro_contrastive.analysis.separation import score_latents
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.report.figures import Method, draw_figures
from pyro_contrastive.report.html import ReportTable, write_report
from pyro_contrastive.report.study import FitSettings, FittedModel, Study, flat_settings
from pyro_contrastive.report.summary import print_summary, print_training
from pyro_contrastive.report.tables import cell_counts, response_table

if TYPE_CHECKING:
    from pyro_contrastive.contrastive_vi import ContrastiveVI

__all__ = [
    "make_model",
    "register",
    "run_study",
    "training_facts",
    "write_results",
]

_MOST_NEIGHBORS = 50
_RESPONSE_GENES = 8


def register(adata: ad.AnnData, study: Study, likelihood: Likelihood | None = None) -> None:
    """Tell the model where condition, batches and counts are.

    Parameters
    ----------
    adata
        Raw counts [cells, genes]; the registration is noted in it.
    study
        What is compared with what.
    likelihood
        What the data are to be a draw of, checked with advice for the shell; default: checked when
        the model is made.

    Raises
    ------
    ValueError
        If the data or columns do not suit the model.
    """
    # The slow imports: whoever only writes a page need not wait for them.
    from pyro_contrastive.contrastive_vi import ContrastiveVI  # noqa: PLC0415
    from pyro_contrastive.data import Setup  # noqa: PLC0415
    from pyro_contrastive.data.support import check_support  # noqa: PLC0415
    from pyro_contrastive.report.advice import shell_advice  # noqa: PLC0415

    with warnings.catch_warnings():
        if likelihood is not None:  # which says what it takes, below
            warnings.filterwarnings("ignore", ".* does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(
            adata,
            layer=study.layer,
            batch_key=study.batch_key,
            size_factor_key=study.size_factor_key,
            categorical_covariate_keys=study.categorical_covariates,
            continuous_covariate_keys=study.continuous_covariates,
            condition_key=study.condition_key,
            background=study.background,
        )
    if likelihood is not None:
        data = Setup.of(adata).extract(adata)
        check_support(data.counts, adata, study.layer, likelihood, shell_advice)


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
        If the settings do not go together, or not with the data.
    """
    from pyro_contrastive.contrastive_vi import ContrastiveVI  # noqa: PLC0415 -- as in register

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if settings.preset is None:
            return ContrastiveVI(adata, **settings.model)
        return ContrastiveVI.from_preset(adata, settings.preset, **settings.model)


def run_study(
    model: ContrastiveVI,
    adata: ad.AnnData,
    out: Path,
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
        An existing folder. Files of the same name are replaced.
    study
        What is compared with what.
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
    """
    result = model.train(seed=seed, **settings.train)
    print_training(result, model.history)
    seconds = result.seconds
    scores = write_results(
        model, adata, out, study, settings=settings, seconds=seconds, method=method, seed=seed
    )
    print_summary(scores, out, seconds)
    return scores


def write_results(
    model: FittedModel,
    adata: ad.AnnData,
    out: Path,
    study: Study,
    *,
    settings: FitSettings,
    seconds: float,
    method: Method = "tsne",
    seed: int = 0,
) -> pd.DataFrame:
    """Score a fitted model and write model, latents, scores, figures and page into a folder.

    Parameters
    ----------
    model
        The fitted model.
    adata
        The cells it was fitted to; gains ``obsm["X_background"]`` and ``obsm["X_salient"]``.
    out
        An existing folder. Files of the same name are replaced.
    study
        What is compared with what.
    settings
        Arguments the model was made and trained with, for the page.
    seconds
        Wall time of the training, for the page.
    method
        How to map the latents to two dimensions. Default t-SNE.
    seed
        Seed of scores and maps. Default 0.

    Returns
    -------
    pandas.DataFrame
        The scores, see :func:`pyro_contrastive.analysis.separation.score_latents`.
    """
    latents = {
        "background": np.asarray(model.get_latent_representation(representation_kind="background")),
        "salient": np.asarray(model.get_latent_representation(representation_kind="salient")),
    }
    condition = adata.obs[study.condition_key].rename("condition")
    labels = None
    if study.label_key is not None:
        labels = adata.obs[study.label_key].rename(study.label_name)
    n_neighbors = min(_MOST_NEIGHBORS, adata.n_obs // 4)
    scores = score_latents(
        latents["background"],
        latents["salient"],
        condition,
        labels=labels,
        background_category=study.background,
        n_neighbors=n_neighbors,
        seed=seed,
    )
    colorings = {"condition": condition} | ({} if labels is None else {"labels": labels})
    figures = draw_figures(
        latents,
        colorings,
        model.history,
        scores,
        background=study.background,
        method=method,
        seed=seed,
    )
    figures.save(out / "figures")
    adata.obsm.update({f"X_{kind}": latent for kind, latent in latents.items()})
    adata.write_h5ad(out / f"{study.name}.h5ad", compression="gzip")
    model.save(str(out / "model"), overwrite=True)
    scores.to_csv(out / "scores.csv", index=False)
    write_report(
        out / "index.html",
        title=study.title,
        lead=study.lead,
        background_category=study.background,
        cell_counts=cell_counts(condition, labels, study.background),
        n_genes=adata.n_vars,
        scores=scores,
        latent_figures=figures.latents,
        training=training_facts(model.history, seconds),
        settings=flat_settings(settings, seed=seed, n_neighbors=n_neighbors),
        training_figures=figures.training,
        score_figures=figures.scores,
        tables=[_response(adata, condition, study)],
        label_name=study.label_name,
        source=study.source,
        file_list=_file_list(study.name),
        loading_code=_loading_code(study.name),
    )
    return scores


def training_facts(history: Mapping[str, pd.DataFrame], seconds: float) -> dict[str, str]:
    """Sum up a training in words.

    Parameters
    ----------
    history
        Training history; ``"elbo_train"`` and ``"elbo_validation"`` are used where present.
    seconds
        Wall time.

    Returns
    -------
    dict of str to str
        Epochs, wall time, and the best held-out and last training negative ELBO.
    """
    minutes, rest = divmod(round(seconds), 60)
    wall_time = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    facts = {"epochs": "not recorded", "wall time": wall_time}
    curves = {name: history[name].iloc[:, 0].dropna() for name in history if len(history[name])}
    if "elbo_validation" in curves:
        held_out = curves["elbo_validation"]
        facts["best held-out negative ELBO"] = f"{held_out.min():,.1f} nats per pair"
        facts["reached at epoch (counted from 0)"] = str(held_out.idxmin())
    if "elbo_train" in curves:
        facts["epochs"] = str(len(curves["elbo_train"]))
        facts["last training negative ELBO"] = f"{curves['elbo_train'].iloc[-1]:,.1f} nats per pair"
    return facts


def _response(adata: ad.AnnData, condition: pd.Series, study: Study) -> ReportTable:
    is_target = condition.astype(str).to_numpy() != study.background
    chosen = "Genes known to respond" if study.genes else "The genes that differ most"
    return ReportTable(
        title="Is there a response at all?",
        table=response_table(
            adata, is_target, genes=study.genes, n_top=_RESPONSE_GENES, layer=study.layer
        ),
        reading=f"{chosen}, in the data as they are and without any model. If these rows show "
        "little difference between the two groups of cells, a salient latent that shows much "
        "should not be believed.",
    )


def _file_list(name: str) -> dict[str, str]:
    return {
        "index.html": "this page",
        f"{name}.h5ad": "the counts, with both latents in obsm",
        "model/": "the fitted model",
        "scores.csv": "the table of scores",
        "figures/": "the figures of this page as PNG, and latents.png with all maps in one",
    }


def _loading_code(name: str) -> str:
    return f"""\
import anndata as ad
from pyro_contrastive import ContrastiveVI

cells = ad.read_h5ad("{name}.h5ad")
cells.obsm["X_background"]  # background latent [cells, latents]
cells.obsm["X_salient"]     # salient latent [cells, latents]
model = ContrastiveVI.load("model", adata=cells)"""
