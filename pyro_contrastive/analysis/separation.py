"""How well the two latents separated: scores that need latents and labels, but no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)

from pyro_contrastive.analysis.mixing import mixing
from pyro_contrastive.analysis.score_inputs import (
    Codes,
    Latent,
    check_neighbors,
    label_codes,
    latent_matrix,
    target_codes,
)
from pyro_contrastive.analysis.score_readings import READINGS
from pyro_contrastive.data.indices import in_order, names_of

__all__ = ["label_mixing", "score_labels", "score_latents"]

_BALANCED_DRAWS = 5
_KMEANS_SEEDS = 3
_KMEANS_RESTARTS = 5
_SILHOUETTE_CELLS = 3_000
_SAFE_SAMPLE = 20


def score_latents(
    background: ArrayLike,
    salient: ArrayLike,
    condition: Sequence[object] | NDArray[Any] | pd.Series,
    *,
    labels: Sequence[object] | NDArray[Any] | pd.Series | None = None,
    background_category: object,
    n_neighbors: int = 50,
    n_permutations: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score how well the background and the salient latent separated.

    In a good fit the condition is invisible in the background latent and visible in the salient
    one, while labels that both conditions share (cell type, patient) are visible in the background
    latent and not in the salient one. Several treatments count as one: a cell is background or
    target. Give cells that did not train: on those that did, a latent separates even conditions
    that a coin decided. :meth:`ContrastiveVI.score_latents` does so by itself.

    Parameters
    ----------
    background
        Background latent of every cell [cells, background latents].
    salient
        Salient latent of every cell, background cells included [cells, salient latents].
    condition
        Condition of every cell [cells]. If it (or `labels`) is a Series and a latent is a data
        frame, both indexed by cell, it is brought into the order of the latent.
    labels
        Label of every cell [cells], shared by the conditions. Without labels only the condition is
        scored, and a latent that ignores the data altogether mixes perfectly.
    background_category
        The value of `condition` that marks background cells, or its text.
    n_neighbors
        Neighbours per cell, the cell itself not counted, for the mixing scores. Default 50, or
        fewer if the smaller population has no more cells than that.
    n_permutations
        Number of shuffles of condition and labels that ``chance`` is the mean of. Default 3.
    seed
        Seed of the clusterings, of the cells drawn and of the shuffles. Default 0.

    Returns
    -------
    pandas.DataFrame
        One row per score, 4 without labels and up to 8 with them: ``latent`` ("background" or
        "salient"), ``of`` ("condition" or "labels"), ``measure``, ``value``, ``chance`` (the value
        with shuffled conditions or labels), ``best`` ("high" or "low": which is better) and
        ``reading``, the value in plain words. The words change at fixed thresholds, which are rules
        of thumb.

    Raises
    ------
    ValueError
        If lengths differ, a latent is not a finite matrix, a condition or label is missing, there
        is only one label, there are fewer than two background or two target cells, or no more
        cells than `n_neighbors`.

    Notes
    -----
    The condition is scored on equal numbers of background and target cells: from the larger
    population as many cells are drawn as the smaller one has, up to 5 times, and scores are
    averaged. Otherwise the larger population would look like a separate group merely because it
    lies more densely.

    *Mixing*: with :math:`p_{ic}` the share of class :math:`c` among the neighbours of cell
    :math:`i` and :math:`q_c` its share among all cells,

    .. math:: \frac{1}{N} \sum_i \sum_c p_{ic} \log p_{ic} \Big/ \sum_c q_c \log q_c ,

    which is 1 where all neighbourhoods look like the whole and 0 where each holds one class. The
    mean is over at most 20,000 cells drawn at random.

    *Silhouette*: the mean over cells of :math:`(b - a) / \max(a, b)`, where :math:`a` is the mean
    distance to cells of the same class and :math:`b` that to the nearest other class, on at most
    3,000 cells drawn at random.

    *NMI* and *ARI*: normalised mutual information and adjusted Rand index between the labels and
    k-means clusters (as many as labels, 5 restarts, mean over 3 seeds). The NMI of labels
    in the salient latent uses target cells only, because the salient latent of a background cell
    is not used by the model; it is left out if the target cells have fewer than two labels.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> condition = np.repeat(["control", "treated"], 100)
    >>> shared = rng.normal(size=(200, 2))
    >>> response = rng.normal(size=(200, 1)) + 20 * (condition == "treated")[:, None]
    >>> scores = score_latents(shared, response, condition, background_category="control")
    >>> scores.query("latent == 'salient' and measure == 'mixing'")["value"].item()
    0.0
    """
    z, s = latent_matrix(background, "background"), latent_matrix(salient, "salient")
    names = names_of(background, salient, condition)
    _check_same_order(background, salient)
    condition = in_order(condition, names, "condition")
    labels = in_order(labels, names, "labels")
    target = target_codes(condition, background_category, len(z))
    if len(s) != len(z):
        raise ValueError(f"background has {len(z)} cells and salient has {len(s)}")
    check_neighbors(n_neighbors, len(z))
    given = None if labels is None else label_codes(labels, "labels", len(z))
    is_target = target == 1

    def rows_of(target: Codes, codes: Codes | None) -> list[tuple[str, str, str, float]]:
        rows = [
            (name, "condition", measure, value)
            for name, latent in (("background", z), ("salient", s))
            for measure, value in _condition_scores(latent, target, n_neighbors, seed).items()
        ]
        if codes is not None:
            rows += _label_rows(z, s, codes, is_target, seed)
        return rows

    rows = rows_of(target, given)
    chance = _by_chance(rows_of, target, given, n_permutations, seed)
    return pd.DataFrame(
        [
            {
                "latent": latent,
                "of": of,
                "measure": measure,
                "value": value,
                "chance": chance.get((latent, of, measure), np.nan),
                "best": READINGS[latent, of, measure].best,
                "reading": READINGS[latent, of, measure](value),
            }
            for latent, of, measure, value in rows
        ]
    )


def _by_chance(
    rows_of: Callable[[Codes, Codes | None], list[tuple[str, str, str, float]]],
    target: Codes,
    labels: Codes | None,
    n_permutations: int,
    seed: int,
) -> dict[tuple[str, str, str], float]:
    """Mean of every score over shuffles of condition and labels."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(n_permutations):
        shuffled = None if labels is None else rng.permutation(labels)
        for *key, value in rows_of(rng.permutation(target), shuffled):
            found.setdefault((key[0], key[1], key[2]), []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def _check_same_order(background: object, salient: object) -> None:
    """Refuse two latents whose data frames name their cells in different orders."""
    frames = [given for given in (background, salient) if isinstance(given, pd.DataFrame)]
    if len(frames) == 2 and not frames[0].index.equals(frames[1].index):  # noqa: PLR2004
        raise ValueError(
            "background and salient are data frames with different indices: bring their cells into "
            "the same order, salient.loc[background.index]"
        )


def score_labels(
    latent: ArrayLike,
    labels: Sequence[object] | NDArray[Any] | pd.Series,
    *,
    n_neighbors: int = 50,
    seed: int = 0,
) -> dict[str, float]:
    """Score how well one latent separates labels, by the measures of :func:`score_latents`.

    Parameters
    ----------
    latent
        Latent of the cells to score [cells, latents].
    labels
        Their labels [cells].
    n_neighbors
        Neighbours per cell, the cell itself not counted, for the mixing score. Default 50.
    seed
        Seed of the clusterings and of the cells drawn for the silhouette. Default 0.

    Returns
    -------
    dict
        ``"NMI"``, ``"ARI"`` and ``"silhouette"`` (high where labels separate), ``"mixing"`` (low
        where they do). All cells are used; mixing can exceed 1 where large classes are more
        spread out than small ones.

    Raises
    ------
    ValueError
        If lengths differ, the latent is not a finite matrix, a label is missing or there is only
        one, or there are no more cells than `n_neighbors`.

    Examples
    --------
    >>> time = np.repeat(["1 h", "3 h"], 100)
    >>> latent = np.random.default_rng(0).normal(size=(200, 2)) + 20 * (time == "3 h")[:, None]
    >>> score_labels(latent, time)["NMI"]
    1.0
    """
    values = latent_matrix(latent, "latent")
    codes = label_codes(in_order(labels, names_of(latent), "labels"), "labels", len(values))
    check_neighbors(n_neighbors, len(values))
    nmi, ari = _clustering(values, codes, seed)
    return {
        "NMI": nmi,
        "ARI": ari,
        "silhouette": _silhouette(values, codes, seed),
        "mixing": mixing(values, codes, n_neighbors),
    }


def label_mixing(
    latent: ArrayLike,
    labels: Sequence[object] | NDArray[Any] | pd.Series,
    *,
    n_neighbors: int = 50,
) -> float:
    """Score how evenly labels mix in a latent: only the ``"mixing"`` of :func:`score_labels`.

    Parameters
    ----------
    latent, labels, n_neighbors
        As in :func:`score_labels`, with the same errors.
    """
    values = latent_matrix(latent, "latent")
    codes = label_codes(in_order(labels, names_of(latent), "labels"), "labels", len(values))
    check_neighbors(n_neighbors, len(values))
    return mixing(values, codes, n_neighbors)


def _condition_scores(
    latent: Latent, target: Codes, n_neighbors: int, seed: int
) -> dict[str, float]:
    """Mixing and silhouette of the condition, on as many background as target cells."""
    populations = [np.flatnonzero(target == code) for code in (0, 1)]
    fewest, most = sorted(map(len, populations))
    # With more neighbours than a population has cells, neighbourhoods would hold cells of both,
    # however far apart the two are.
    n_neighbors = max(1, min(n_neighbors, fewest - 1))
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(min(_BALANCED_DRAWS, -(-most // fewest))):
        drawn = np.concatenate([rng.choice(p, fewest, replace=False) for p in populations])
        some, codes = latent[drawn], target[drawn]
        scores.append((mixing(some, codes, n_neighbors), _silhouette(some, codes, seed)))
    mixed, silhouette = np.mean(scores, axis=0)
    return {"mixing": float(mixed), "silhouette": float(silhouette)}


def _label_rows(
    z: Latent, s: Latent, labels: Codes, is_target: NDArray[np.bool_], seed: int
) -> list[tuple[str, str, str, float]]:
    """Scores of the labels: all cells in the background latent, target cells in the salient."""
    nmi, ari = _clustering(z, labels, seed)
    rows = [
        ("background", "labels", "NMI", nmi),
        ("background", "labels", "ARI", ari),
        ("background", "labels", "silhouette", _silhouette(z, labels, seed)),
    ]
    if len(np.unique(labels[is_target])) > 1:
        leakage, _ = _clustering(s[is_target], labels[is_target], seed)
        rows.append(("salient", "labels", "NMI", leakage))
    return rows


def _silhouette(latent: Latent, codes: Codes, seed: int) -> float:
    """Mean silhouette on a sample of cells, or on all if a sample might hold one class only."""
    n_cells = len(codes)
    n_sample = min(_SILHOUETTE_CELLS, n_cells)
    outside_largest = n_cells - np.bincount(codes).max()
    if outside_largest * n_sample / n_cells < _SAFE_SAMPLE:
        n_sample = n_cells
    return float(silhouette_score(latent, codes, sample_size=n_sample, random_state=seed))


def _clustering(latent: Latent, codes: Codes, seed: int) -> tuple[float, float]:
    """NMI and ARI of k-means clusters with the classes, mean over seeds."""
    n_classes = len(np.unique(codes))
    scores = []
    for offset in range(_KMEANS_SEEDS):
        kmeans = KMeans(n_classes, n_init=_KMEANS_RESTARTS, random_state=seed + offset)
        found = kmeans.fit_predict(latent)
        scores.append(
            (normalized_mutual_info_score(codes, found), adjusted_rand_score(codes, found))
        )
    nmi, ari = np.mean(scores, axis=0)
    return float(nmi), float(ari)
