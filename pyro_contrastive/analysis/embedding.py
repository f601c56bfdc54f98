"""Two-dimensional maps of a latent."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

__all__ = ["embed_2d"]

_MIN_CELLS = 4


def embed_2d(
    latent: ArrayLike, method: Literal["tsne", "umap", "pca"] = "tsne", *, seed: int = 0
) -> NDArray[np.float64]:
    """Map a latent to two dimensions.

    Parameters
    ----------
    latent
        Latent coordinates [cells, latents].
    method
        ``"tsne"`` (default) and ``"umap"`` keep neighbours together but distort distances between
        groups; ``"pca"`` keeps distances along the two directions of largest variance. ``"umap"``
        needs the umap-learn package.
    seed
        Seed of the map. Default 0.

    Returns
    -------
    numpy.ndarray
        Coordinates [cells, 2]; all zero for a latent that is the same in every cell.

    Raises
    ------
    ValueError
        If `latent` is not a finite matrix of at least 4 cells, or the method is unknown.
    ImportError
        If ``"umap"`` is asked for and umap-learn is not installed.
    """
    points = np.asarray(latent, dtype=np.float64)
    if points.ndim != 2 or len(points) < _MIN_CELLS:  # noqa: PLR2004 -- a matrix
        raise ValueError(f"latent must be [at least 4 cells, latents], not {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("latent holds values that are not finite")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, not {method!r}")
    if np.ptp(points, axis=0).max() == 0:
        # A collapsed latent has no variance, by which every method would divide.
        return np.zeros((len(points), 2))
    return np.asarray(_METHODS[method](points, seed), dtype=np.float64)


def _pca(points: NDArray[np.float64], seed: int) -> NDArray[Any]:
    found = PCA(min(2, points.shape[1]), random_state=seed).fit_transform(points)
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _tsne(points: NDArray[np.float64], seed: int) -> NDArray[Any]:
    tsne = TSNE(
        perplexity=min(30.0, (len(points) - 1) / 3),
        init=_pca(points, seed) / points.std() * 1e-4,
        random_state=seed,
    )
    return np.asarray(tsne.fit_transform(points))


def _umap(points: NDArray[np.float64], seed: int) -> NDArray[Any]:
    try:
        from umap import UMAP  # noqa: PLC0415 -- optional, and slow to import
    except ImportError as error:
        raise ImportError(
            'method="umap" needs the umap-learn package: pip install umap-learn'
        ) from error
    # One job is what umap-learn falls back to, with a warning, when it is given a seed.
    umap = UMAP(n_neighbors=min(15, len(points) - 1), random_state=seed, n_jobs=1)
    return np.asarray(umap.fit_transform(points))


_METHODS = {"tsne": _tsne, "umap": _umap, "pca": _pca}
