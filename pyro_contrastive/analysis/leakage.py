"""Probes: how well labels can be predicted from a latent, compared with chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pyro_contrastive.analysis.separation import label_mixing
from pyro_contrastive.data.indices import in_order, names_of

__all__ = ["ProbeKind", "leakage_row", "probe"]

ProbeKind = Literal["linear", "neighbors"]
Array = NDArray[np.float64]
Codes = NDArray[np.intp]

FOLDS = 5
NEIGHBORS = 15
MIN_PER_CLASS = 10
"""Fewest cells that a class needs in order to be probed: two in every fold."""


def probe(
    latent: ArrayLike,
    labels: Sequence[object] | NDArray[Any] | pd.Series,
    *,
    kind: ProbeKind = "linear",
    n_permutations: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    r"""Predict labels from a latent, on cells that the probe was not fitted to.

    Parameters
    ----------
    latent
        ``[cells, latents]``. Give posterior draws rather than means: the mean of a collapsed
        dimension still differs between cells by some ten thousandths, which a probe picks up but a
        decoder does not.
    labels
        ``[cells]``. Labels of fewer than 10 cells are left out. If they are a Series and the
        latent is a data frame, both indexed by cell, they are brought into the latent's order.
    kind
        ``"linear"``: logistic regression on standardised latents. ``"neighbors"``: the labels of
        the 15 nearest cells, for classes that no plane separates. Both give every class the same
        weight, however many cells it has.
    n_permutations
        Number of shuffles of the labels, which estimate chance.
    seed
        Seed of folds and shuffles.

    Returns
    -------
    dict
        ``balanced_accuracy`` (mean over classes of the share of cells predicted correctly) and
        ``auc`` (area under the ROC curve, one class against the others, mean over classes), by
        5-fold cross-validation; ``chance``, 1 / number of classes; ``chance_auc``, 1/2;
        ``upper_chance``, the largest balanced accuracy among the shuffled labels; ``p_value``, the
        share of shuffles that did as well (counting the true order as one); ``n_classes``,
        ``n_cells``.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than two labels have 10 cells.
    """
    values, codes = _classes(latent, labels)
    found, _ = _against_chance(values, codes, (kind,), n_permutations, seed)
    return found


def _classes(
    latent: ArrayLike, labels: Sequence[object] | NDArray[Any] | pd.Series
) -> tuple[Array, Codes]:
    """Return the cells of classes that are large enough, and the codes of their classes."""
    values = np.asarray(latent, dtype=float)
    labels = in_order(labels, names_of(latent), "labels")
    series = pd.Series(np.asarray(labels, dtype=object))
    if series.isna().any():
        msg = f"labels are missing for {int(series.isna().sum())} cells: leave these cells out."
        raise ValueError(msg)
    given = np.asarray(series.astype(str))
    if values.ndim != 2 or len(values) != len(given):  # noqa: PLR2004  # a matrix
        msg = f"latent has shape {list(values.shape)}, and there are {len(given)} labels."
        raise ValueError(msg)
    names, codes, sizes = np.unique(given, return_inverse=True, return_counts=True)
    kept = np.isin(codes, np.flatnonzero(sizes >= MIN_PER_CLASS))
    if (sizes >= MIN_PER_CLASS).sum() < 2:  # noqa: PLR2004  # something to tell apart
        found = {str(name): int(size) for name, size in zip(names, sizes, strict=True)}
        msg = (
            f"A probe needs two labels with {MIN_PER_CLASS} cells each; there are "
            f"{dict(list(found.items())[:5])}."
        )
        raise ValueError(msg)
    return values[kept], np.unique(codes[kept], return_inverse=True)[1]


def _against_chance(
    values: Array, codes: Codes, kinds: Sequence[ProbeKind], n_permutations: int, seed: int
) -> tuple[dict[str, float], ProbeKind]:
    """Return the best of some kinds of probe, held against the best of each shuffle of labels."""
    n_classes = int(codes.max()) + 1
    accuracy, auc, kind = _best(values, codes, kinds, seed)
    rng = np.random.default_rng(seed)
    shuffled = [
        _best(values, rng.permutation(codes), kinds, seed)[0] for _ in range(n_permutations)
    ]
    as_good = sum(score >= accuracy for score in shuffled)
    found = {
        "balanced_accuracy": accuracy,
        "auc": auc,
        "chance": 1 / n_classes,
        "chance_auc": 0.5,
        "upper_chance": max(shuffled, default=float("nan")),
        "p_value": (1 + as_good) / (1 + n_permutations),
        "n_classes": n_classes,
        "n_cells": len(codes),
    }
    return found, kind


def _best(
    values: Array, codes: Codes, kinds: Sequence[ProbeKind], seed: int
) -> tuple[float, float, ProbeKind]:
    """Balanced accuracy, ROC AUC and kind of the best probe."""
    scores = [(*_score(values, codes, kind, seed), kind) for kind in kinds]
    return max(scores, key=lambda score: score[0])


def leakage_row(
    latent: ArrayLike,
    labels: Sequence[object] | NDArray[Any] | pd.Series,
    *,
    n_permutations: int,
    seed: int,
    n_neighbors: int = 50,
) -> dict[str, float | str]:
    """Probe a latent both ways, and keep the better one; add how evenly the labels mix.

    With shuffled labels, too, the better one counts, so that having two does not pass for a find.

    Returns
    -------
    What :func:`probe` returns, with ``probe`` (its kind), ``mixing`` (as in
    :func:`~pyro_contrastive.analysis.separation.score_labels`: 1 where neighbourhoods look like the
    whole, 0 where they hold one class each), and ``excess``: the balanced accuracy on a scale where
    chance is 0 and always right is 1.
    """
    values, codes = _classes(latent, labels)
    chosen, best = _against_chance(values, codes, ("linear", "neighbors"), n_permutations, seed)
    excess = (chosen["balanced_accuracy"] - chosen["chance"]) / (1 - chosen["chance"])
    n_neighbors = min(n_neighbors, len(np.asarray(latent)) - 1)
    mixing = label_mixing(latent, labels, n_neighbors=n_neighbors)
    return {"probe": best, **chosen, "excess": excess, "mixing": mixing}


def _score(values: Array, codes: Codes, kind: ProbeKind, seed: int) -> tuple[float, float]:
    """Cross-validated balanced accuracy and ROC AUC."""
    probabilities = np.empty((len(codes), int(codes.max()) + 1))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(values, codes):
        scaler = StandardScaler().fit(values[train])
        fitted, new = scaler.transform(values[train]), scaler.transform(values[test])
        if kind == "linear":
            linear = LogisticRegression(class_weight="balanced", max_iter=500)
            probabilities[test] = linear.fit(fitted, codes[train]).predict_proba(new)
        else:
            nearest = KNeighborsClassifier(min(NEIGHBORS, len(train))).fit(fitted, codes[train])
            votes = nearest.predict_proba(new) / np.bincount(codes[train])  # equal weight per class
            # A small share for every class, so that ties and rows without votes are fair.
            votes = votes + 1e-9
            probabilities[test] = votes / votes.sum(axis=1, keepdims=True)
    accuracy = balanced_accuracy_score(codes, probabilities.argmax(axis=1))
    if probabilities.shape[1] == 2:  # noqa: PLR2004  # scikit-learn wants one column
        auc = roc_auc_score(codes, probabilities[:, 1])
    else:
        auc = roc_auc_score(codes, probabilities, multi_class="ovr")
    return float(accuracy), float(auc)
