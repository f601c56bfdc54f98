"""Refined posteriors that are kept with a model, for the cells and the weights they belong to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_contrastive.analysis.refined_cells import RefinedCells
from pyro_contrastive.analysis.refined_posterior import RefinedPosterior, Sites
from pyro_contrastive.analysis.refinement import Refinement
from pyro_contrastive.analysis.runs import device_of, dtype_of
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.saving.saved_posteriors import SavedPosteriors
from pyro_contrastive.training.trained_cells import digest_of, same_totals
from pyro_contrastive.vae import ContrastiveVAE

__all__ = ["StoredPosteriors"]


@dataclass(frozen=True)
class StoredPosteriors:
    """Refined posteriors of some cells of the model's data.

    They save time and change no answer: where they do not fit any more, because the weights, the
    cells or their counts have changed, posteriors are refined anew.

    Parameters
    ----------
    cells
        Positions of the cells in the data set, sorted.
    totals
        The total of each of these cells, ``[cells]``.
    digest
        Hash of the names of all cells of the data set.
    weights
        Hash of the weights of the model.
    settings
        How they were refined.
    posterior
        The posteriors.
    """

    cells: NDArray[np.int64]
    totals: NDArray[np.float64]
    digest: str
    weights: str
    settings: Refinement
    posterior: RefinedPosterior

    @classmethod
    def of(cls, refined: RefinedCells, data: CellData, names: pd.Index) -> StoredPosteriors:
        """Keep the posteriors that were made of the cells of a data set, at least one."""
        cells, posterior = refined.made()
        if posterior is None:
            msg = "No posterior has been refined."
            raise ValueError(msg)
        digests = digest_of(names), weights_digest(refined.vae)
        totals = data.totals(cells)
        return cls(cells, totals, *digests, refined.settings, posterior.to("cpu"))

    def within(
        self, vae: ContrastiveVAE, names: pd.Index, data: CellData, asked: NDArray[np.int64]
    ) -> RefinedCells:
        """Return the posteriors that still hold for some cells; others are made when asked for.

        Parameters
        ----------
        vae, names, data
            The model, and the names and counts of its cells, as they are now.
        asked
            Positions of the cells that will be asked about.
        """
        empty = RefinedCells(vae, len(data), self.settings)
        if digest_of(names) != self.digest or weights_digest(vae) != self.weights:
            return empty
        at = np.flatnonzero(np.isin(self.cells, asked))
        at = at[same_totals(self.totals[at], data.totals(self.cells[at]))]
        if not len(at):
            return empty
        posterior = self.posterior.take(torch.from_numpy(at)).to(device_of(vae), dtype_of(vae))
        return RefinedCells.of(vae, len(data), self.cells[at], posterior, self.settings)

    def to_saved(self) -> SavedPosteriors:
        """Return what is written to a file."""
        posterior = self.posterior
        rows, columns = np.tril_indices(posterior.sites.n_latents)
        return SavedPosteriors(
            entries={
                "digest": self.digest,
                "weights": self.weights,
                "n_steps": self.settings.n_steps,
                "n_pairs": self.settings.n_pairs,
                "widths": dict(posterior.sites.widths),
                "positive": sorted(posterior.sites.positive),
            },
            tensors={
                "cells": torch.from_numpy(self.cells),
                "totals": torch.from_numpy(self.totals),
                "mean": posterior.mean,
                "factor": posterior.factor[:, rows, columns],
                "is_refined": posterior.is_refined,
                "failed": posterior.failed,
            },
        )

    @classmethod
    def from_saved(cls, saved: SavedPosteriors) -> StoredPosteriors:
        """Return what :meth:`to_saved` wrote."""
        entries, tensors = saved.entries, saved.tensors
        sites = Sites(entries["widths"], frozenset(entries["positive"]))
        n = sites.n_latents
        rows, columns = np.tril_indices(n)
        factor = tensors["mean"].new_zeros((len(tensors["cells"]), n, n))
        factor[:, rows, columns] = tensors["factor"]
        posterior = RefinedPosterior(
            sites, tensors["mean"], factor, tensors["is_refined"], tensors["failed"]
        )
        return cls(
            tensors["cells"].numpy(),
            tensors["totals"].numpy(),
            entries["digest"],
            entries["weights"],
            Refinement(entries["n_steps"], entries["n_pairs"]),
            posterior,
        )


def weights_digest(vae: ContrastiveVAE) -> str:
    """Return a short text that differs between models with different weights."""
    digest = hashlib.sha256()
    for name, value in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
