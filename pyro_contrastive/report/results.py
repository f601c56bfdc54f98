"""A fit's results made one after another, so that one that fails costs nothing but itself."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import anndata as ad
import pandas as pd

from pyro_contrastive.report.failures import ResultsError, in_words
from pyro_contrastive.report.figures import Method
from pyro_contrastive.report.folder import ResultsFolder, claim_folder
from pyro_contrastive.report.stages import STAGES, Results, Stage
from pyro_contrastive.report.study import FitSettings, FittedModel, Study

__all__ = ["claimed", "write_results"]


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

    Whatever cannot be made is left out, and everything else is there. The files of a former run are
    replaced all together, when those of this one are complete.

    Parameters
    ----------
    model
        The fitted model.
    adata
        The cells it was fitted to; gains ``obsm["X_background"]`` and ``obsm["X_salient"]``.
    out
        The folder, made if it is not there. A former run's files in it are replaced.
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

    Raises
    ------
    pyro_contrastive.report.failures.ResultsError
        If something could not be made; says what and why, and where the rest is.
    KeyboardInterrupt
        If Ctrl-C was pressed; what had been made is there.
    OSError
        If `out` cannot be written into, or holds something of the user's own where results would
        go.
    """
    with claimed(out, study) as folder:
        given = (model, adata, study, settings, seconds, method, seed)
        results = Results(*given, place=folder)
        with suppress(OSError):  # then every stage says so, and the model goes elsewhere
            folder.renew()
        _make_all(results)
        kept = _hand_over(results)
        if results.interrupted:
            raise KeyboardInterrupt(" ".join([*results.failures, kept]))
        if results.failures:
            raise ResultsError(results.failures, kept)
    return results.scores


def claimed(out: str | Path | ResultsFolder, study: Study) -> AbstractContextManager[ResultsFolder]:
    """Claim a folder for the results, unless that has been done."""
    if isinstance(out, ResultsFolder):
        return nullcontext(out)
    return claim_folder(out, study.name, overwrite=True)


def _make_all(results: Results) -> None:
    """Make one result after another; note those that could not be made, and why."""
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
        except Exception as error:  # a result that fails must not cost the others
            _give_up(results, key)
            what, without = _named(stage, results.study), _without(key, results.study)
            verb = "made" if stage.file is None else "written"
            results.failures.append(f"{what} could not be {verb}{without}: {in_words(error)}.")
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
    """Name what cannot be made either, because it needs that."""
    lost, names = {key}, []
    for other, stage in STAGES.items():
        if lost.intersection(stage.needs):
            lost.add(other)
            names.append(_named(stage, study))
    return f" (nor {', '.join(names)}, which need it)" if names else ""


def _hand_over(results: Results) -> str:
    """Move what was made to where it belongs; say what is where."""
    folder = results.place
    made = sorted(p.name for p in folder.new.iterdir()) if folder.new.is_dir() else []
    if not made:
        return f"Nothing was written into {folder.given}."
    where = folder.given
    try:
        if "model" in results.failed and folder.former:
            raise FileExistsError("they have no model, and a former run is there")
        folder.publish()
    except KeyboardInterrupt:
        results.interrupted = True
    except Exception as error:  # a full disk, a file of the user's own that has turned up, ...
        where = folder.set_aside()
        results.failures.append(
            f"The results could not be moved into {folder.given}, which is as it was: "
            f"{in_words(error)}."
        )
    return f"In {where} there are: {', '.join(made)}."
