"""Cross-fitting: every cell is answered for by a model that it did not train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.analysis.progress import CellBar
from pyro_contrastive.data.indices import as_indices
from pyro_contrastive.methods.base import Level
from pyro_contrastive.methods.labels import known_conditions
from pyro_contrastive.methods.refit import refitted
from pyro_contrastive.methods.training import TrainingMethods

__all__ = ["CrossFit", "CrossFitMethods"]

VALIDATION_SHARE = 0.1
"""Share of the other folds that is held out in each training, for early stopping."""
WORST_FIRST = ("bad", "look", "good")
SPLIT = ("train_size", "validation_size", "datasplitter_kwargs")
"""Arguments of ``train`` that the folds replace."""


@dataclass(frozen=True)
class CrossFit:
    """Models of the same configuration, each trained without one fold of the cells.

    Each answers for the cells of its fold, so that all cells have answers of a model that has not
    seen them. Latents are not among the questions, because those of different models are not
    aligned: a dimension of one means nothing in another.

    Parameters
    ----------
    models
        One for each fold, over the same ``adata``.
    folds
        Number of the fold of each cell, ``[cells]``.
    """

    models: Sequence[Any]
    folds: NDArray[np.int64]

    def get_treatment_effect(
        self, indices: ArrayLike | None = None, **kwargs: Any
    ) -> dict[str, pd.DataFrame]:
        """Return the effect of the treatment, as the model's method of this name.

        Parameters
        ----------
        indices
            Positions, or a mask, of cells. Default: all.
        **kwargs
            Arguments of :meth:`ContrastiveVI.get_treatment_effect`, but for `adata`.
        """
        found: dict[str, pd.DataFrame] = self._ask("get_treatment_effect", indices, kwargs)
        return found

    def get_counterfactual_expression(
        self, condition: Level, indices: ArrayLike | None = None, **kwargs: Any
    ) -> Any:
        """Return what cells would express under another condition, as the model's method.

        Parameters
        ----------
        condition, **kwargs
            Arguments of :meth:`ContrastiveVI.get_counterfactual_expression`, but for `adata`.
        indices
            Positions, or a mask, of cells. Default: all.
        """
        return self._ask(
            "get_counterfactual_expression", indices, kwargs | {"condition": condition}
        )

    def get_normalized_expression(self, indices: ArrayLike | None = None, **kwargs: Any) -> Any:
        """Return normalised expression, as the model's method of this name.

        Parameters
        ----------
        indices
            Positions, or a mask, of cells. Default: all.
        **kwargs
            Arguments of :meth:`ContrastiveVI.get_normalized_expression`, but for `adata` and
            `n_samples_overall`.
        """
        if kwargs.get("n_samples_overall") is not None:
            msg = (
                "n_samples_overall draws cells at random, which has no meaning for several models."
            )
            raise ValueError(msg)
        return self._ask("get_normalized_expression", indices, kwargs)

    def get_elbo(self, indices: ArrayLike | None = None, **kwargs: Any) -> NDArray[np.float64]:
        """Return the evidence lower bound of each cell in nats, as the model's method.

        Parameters
        ----------
        indices
            Positions, or a mask, of cells. Default: all.
        **kwargs
            Arguments of :meth:`ContrastiveVI.get_elbo`, but for `adata` and `return_mean`.
        """
        found: NDArray[np.float64] = self._ask("get_elbo", indices, kwargs | {"return_mean": False})
        return found

    def diagnose(self, **kwargs: Any) -> pd.DataFrame:
        """Diagnose each model on the cells of its fold.

        Parameters
        ----------
        **kwargs
            Arguments of :meth:`ContrastiveVI.diagnose`, but for `adata` and `indices`.

        Returns
        -------
        A row per diagnostic: ``value``, the mean over folds; ``verdict``, the worst of any fold;
        and the value and the reading in each fold, ``value 1``, ``reading 1`` and so on.
        """
        _refuse(kwargs, ("adata", "indices"))
        tables = [
            model.diagnose(indices=np.flatnonzero(self.folds == fold), **kwargs)
            for fold, model in enumerate(self.models)
        ]
        values = pd.DataFrame({f"value {i + 1}": t["value"] for i, t in enumerate(tables)})
        verdicts = pd.concat([table["verdict"] for table in tables], axis=1)
        worst = [next(v for v in WORST_FIRST if v in set(row)) for row in verdicts.to_numpy()]
        readings = pd.DataFrame({f"reading {i + 1}": t["reading"] for i, t in enumerate(tables)})
        summary = pd.DataFrame({"value": values.mean(axis=1), "verdict": worst}, values.index)
        return summary.join(values).join(readings).loc[tables[0].index]

    def _ask(self, method: str, indices: ArrayLike | None, kwargs: dict[str, Any]) -> Any:
        """Ask each model about its cells, and return the answers in the order of the cells."""
        _refuse(kwargs, ("adata",))
        cells = as_indices(indices, self.models[0].adata.obs_names)
        if not len(cells):
            msg = "indices selects no cells: there is nothing to compute."
            raise ValueError(msg)
        answers, positions = [], []
        for fold, model in enumerate(self.models):
            own = np.flatnonzero(self.folds[cells] == fold)
            if len(own):
                answers.append(getattr(model, method)(indices=cells[own], **kwargs))
                positions.append(own)
        return _joined(answers, np.argsort(np.concatenate(positions)))


class CrossFitMethods(TrainingMethods):
    """Cross-fitting, which answers for all cells as for cells that did not train."""

    def cross_fit(self, n_folds: int = 5, *, seed: int = 0, silent: bool = False) -> CrossFit:
        """Train the same model once for each fold of the cells, without that fold.

        The model stays as it is. The others have its configuration and initial weights, and are
        trained by the same calls of :meth:`train`, except that a tenth of the cells they may see is
        held out for early stopping. It takes `n_folds` times the training.

        Parameters
        ----------
        n_folds
            Number of folds, at least 2. Default 5. Each has its share of every condition.
        seed
            Seed of folds and training. Default 0.
        silent
            Do not show a progress bar.

        Returns
        -------
        CrossFit
            Asks each cell's question of the model that has not seen it.

        Raises
        ------
        ValueError
            If the model was not trained, or was saved by a version that did not note how; or if
            a condition has fewer cells than there are folds.

        Examples
        --------
        Intervals of all treated cells, each by a model that it did not train::

            fits = model.cross_fit(seed=0)
            effect = fits.get_treatment_effect(gene_list=["ISG15"], seed=0)
        """
        check_arguments(locals())
        adata = self._adata(None)
        codes = known_conditions(self._data(None, slice(0)))
        sizes = np.bincount(codes)
        fewest = int(sizes[sizes > 0].min())
        if not 2 <= n_folds <= fewest:  # noqa: PLR2004  # one fold would leave no cell to train on
            msg = (
                f"n_folds must be from 2 to the size of the smallest condition, {fewest} cells, "
                f"not {n_folds}."
            )
            raise ValueError(msg)
        rng = np.random.default_rng(seed)
        folds = _stratified(codes, n_folds, rng)
        bar = CellBar("Cross-fitting", n_folds, silent=silent)
        models = []
        try:
            for fold in range(n_folds):
                test, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
                # As many parts as make one of them the share that is held out.
                part = _stratified(codes[rest], round(1 / VALIDATION_SHARE), rng)
                split = [rest[part != 0], rest[part == 0], test]
                changes: dict[str, Any] = dict.fromkeys(SPLIT)
                changes["datasplitter_kwargs"] = {"external_indexing": split}
                models.append(refitted(self, adata, seed + fold, changes))
                bar.advance(1)
        finally:
            bar.close()
        return CrossFit(tuple(models), folds)


def _stratified(codes: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Assign cells to `n` parts at random, the cells of each condition evenly."""
    parts = np.empty(len(codes), dtype=np.int64)
    for code in np.unique(codes):
        cells = rng.permutation(np.flatnonzero(codes == code))
        parts[cells] = np.arange(len(cells)) % n
    return parts


def _joined(answers: Sequence[Any], order: NDArray[np.int64]) -> Any:
    """Concatenate answers over cells, and bring them into the order asked for."""
    first = answers[0]
    if isinstance(first, dict):
        return {name: _joined([answer[name] for answer in answers], order) for name in first}
    if isinstance(first, pd.DataFrame):
        return pd.concat(answers).iloc[order]
    axis = max(np.ndim(first) - 2, 0)  # posterior draws come first
    return np.take(np.concatenate(answers, axis=axis), order, axis=axis)


def _refuse(kwargs: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse arguments that the folds decide."""
    for name in names:
        if name in kwargs:
            msg = f"{name}= has no meaning here: each model answers for the cells of its own fold."
            raise TypeError(msg)
