"""Make a fit's results one after another, so that a failure affects no other result."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import anndata as ad
import pandas as pd

from pyro_contrastive.report.failures import ResultsError, message_of
from pyro_contrastive.report.figures import Method
from pyro_contrastive.report.folder import ResultsFolder, reserve_folder
from pyro_contrastive.report.stages import STAGES, Results, Stage
from pyro_contrastive.report.study import FitSettings, FittedModel, Study

__all__ = ["reserved", "write_results"]


def write_results(
    model: FittedModel,
    adata: ad.AnnData,
    out: str | Path | ResultsFolder,
    study: Study,
    *,
    settings: FitSettings,
    seconds: float,
    method: Method = "tsne",
    seed: int = 0,
) -> pd.DataFrame:
    """Write a fitted model, its latents, and then scores, figures and page, into a folder.

    What cannot be made is left out; everything else is written. The files of an earlier run are
    replaced all at once, when those of this one are complete.

    Parameters
    ----------
    model
        The fitted model.
    adata
        The cells it was fitted to; gains ``obsm["X_background"]`` and ``obsm["X_salient"]``.
    out
        The folder, made if it is not there. An earlier run's files in it are replaced.
    study
        The comparison.
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

    Raises
    ------
    pyro_contrastive.report.failures.ResultsError
        If something could not be made; says what, why, and where the rest is.
    KeyboardInterrupt
        If Ctrl-C was pressed; the results made before it are kept.
    OSError
        If `out` is not writable, or a result would replace a file that no run has written.
    """
    with reserved(out, study) as folder:
        given = (model, adata, study, settings, seconds, method, seed)
        results = Results(*given, place=folder)
        with suppress(OSError):  # every stage then reports it, and the model is saved elsewhere
            folder.renew()
        _make_all(results)
        kept = _hand_over(results)
        if results.interrupted:
            raise KeyboardInterrupt(" ".join([*results.failures, kept]))
        if results.failures:
            raise ResultsError(results.failures, kept)
    return results.scores


def reserved(
    out: str | Path | ResultsFolder, study: Study
) -> AbstractContextManager[ResultsFolder]:
    """Reserve a folder for the results, unless that has been done."""
    if isinstance(out, ResultsFolder):
        return nullcontext(out)
    return reserve_folder(out, study.name, overwrite=True)


def _make_all(results: Results) -> None:
    """Make one result after another; note which could not be made, and why."""
    for key, stage in STAGES.items():
        if results.interrupted:
            results.failed.add(key)
            continue
        if results.failed.intersection(stage.needs):
            results.failed.add(key)
            continue
        try:
            stage.make(results)
        except KeyboardInterrupt:
            results.interrupted = True
            _give_up(results, key)
        except Exception as error:  # one failure must not cost the other results
            _give_up(results, key)
            what, without = _named(stage, results.study), _without(key, results.study)
            verb = "made" if stage.file is None else "written"
            results.failures.append(f"{what} could not be {verb}{without}: {message_of(error)}.")
    if results.interrupted:
        names = [_named(STAGES[key], results.study) for key in STAGES if key in results.failed]
        results.failures.append(f"Interrupted; not made: {', '.join(names) or 'nothing'}.")


def _give_up(results: Results, key: str) -> None:
    results.failed.add(key)
    file = STAGES[key].file
    if file is None:
        return
    path = results.folder / file.format(name=results.study.name)
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _named(stage: Stage, study: Study) -> str:
    return stage.what.format(name=study.name)


def _without(key: str, study: Study) -> str:
    """Name the results that depend on one that failed."""
    lost, names = {key}, []
    for other, stage in STAGES.items():
        if lost.intersection(stage.needs):
            lost.add(other)
            names.append(_named(stage, study))
    return f" (nor {', '.join(names)}, which need it)" if names else ""


def _hand_over(results: Results) -> str:
    """Move the results into place; say what is where."""
    folder = results.place
    made = sorted(p.name for p in folder.new.iterdir()) if folder.new.is_dir() else []
    if not made:
        return f"Nothing was written into {folder.given}."
    where = folder.given
    try:
        if "model" in results.failed and folder.earlier:
            raise FileExistsError("they have no model, and an earlier run is there")
        folder.publish()
    except KeyboardInterrupt:
        results.interrupted = True
    except Exception as error:  # a full disk, a user's file created meanwhile, ...
        where = folder.set_aside()
        results.failures.append(
            f"The results could not be moved into {folder.given}, which is unchanged: "
            f"{message_of(error)}."
        )
    return f"In {where} available: {', '.join(made)}."
