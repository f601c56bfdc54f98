"""Draw cells from the learned model."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.cells import BACKGROUND, CellBatch
from pyro_contrastive.components.seen_cells import SeenCells
from pyro_contrastive.model import ContrastiveModel

RETURNED = ("z", "s", "library", "scale", "rate", "mean_scale", "mean")
"""Sites whose values are returned with the counts, if they are there."""


class Sampling(nn.Module):
    """Mixin for :class:`~pyro_contrastive.ContrastiveVAE`: scvi-tools' method ``sample``."""

    model: ContrastiveModel
    seen_cells: SeenCells
    use_observed_lib_size: bool
    n_batch: int

    def sample(
        self,
        n_cells: int = 100,
        condition: int | Tensor | None = None,
        batch: int | Tensor | None = None,
        library: float | Tensor | None = None,
        *,
        categorical: Tensor | None = None,
        continuous: Tensor | None = None,
        return_latents: bool = False,
        seed: int | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Draw cells from the learned model: latents from their priors, counts from the likelihood.

        Whatever is not given is taken from the training cells, of which the model remembers up to
        1000: each new cell copies it from one of them, with the same condition and batch if these
        are given. So without arguments, conditions, batches, covariates and library sizes occur in
        the same proportions as in training.

        Parameters
        ----------
        n_cells
            Number of cells.
        condition
            0 for background cells, 1..K for treated ones; one for all cells, or one per cell.
            Default: as in training, or 1 for a model that was not trained by ``ContrastiveVI``.
        batch
            Batch code; one for all cells, or one per cell. Default: as in training, or 0.
        library
            Library size (total counts), natural scale; one for all cells, or one per cell. Default:
            as in training, or drawn from its prior if it is latent.
        categorical, continuous
            Further covariates, ``[n_cells, covariates]``, if the model has them. Default: as in
            training.
        return_latents
            Return the latents as well.
        seed
            Seed; default: torch's global state (``pyro.set_rng_seed``).

        Returns
        -------
        Counts ``[n_cells, genes]``; with `return_latents` a dict with ``x`` (the counts), ``z``,
        ``s``, ``library`` (natural scale), ``scale``, ``rate``, ``mean_scale`` and ``mean`` if the
        likelihood has them, and the codes ``condition`` and ``batch``, ``[n_cells]``.

        Raises
        ------
        ValueError
            If the library size is observed, but neither given nor remembered from training.
        """
        device = next(self.parameters()).device
        seen = self.seen_cells.condition
        _check_whole(n_cells, "n_cells", lowest=1)
        _check_whole(condition, "condition", below=None if seen is None else int(seen.max()) + 1)
        _check_whole(batch, "batch", below=max(self.n_batch, 1))

        def per_cell(value: float | Tensor | None, dtype: torch.dtype | None = None) -> Any:
            if value is None:
                return None
            return torch.as_tensor(value, dtype=dtype, device=device).expand(n_cells)

        library_given = per_cell(library, torch.float32)
        asked = {
            "condition": per_cell(condition),
            "batch": per_cell(batch),
            "library": None if library is None else library_given.unsqueeze(-1),
            "categorical": categorical,
            "continuous": continuous,
        }
        with evaluating(self), seeded(seed):
            cells = self._cells_to_draw(asked, n_cells, device)
            model = self.model
            if library is not None and not self.use_observed_lib_size:
                model = poutine.condition(model, {"library": cells.library})
            sites = poutine.trace(model).get_trace(cells).nodes
        counts: Tensor = sites["_RETURN"]["value"]
        if not return_latents:
            return counts
        names = [n for n in RETURNED if n in sites]
        drawn = {"x": counts} | {name: sites[name]["value"] for name in names}
        drawn["s"] = self.model.used_salient(drawn["s"], cells)
        return drawn | {"condition": cells.condition, "batch": cells.batch_codes}

    def _cells_to_draw(
        self, asked: dict[str, Tensor | None], n_cells: int, device: torch.device
    ) -> CellBatch:
        """Fill in conditions, covariates and library sizes of the cells to draw."""
        needs_library = self.use_observed_lib_size and self.model.likelihood.uses_library
        library = asked["library"]
        if not needs_library:
            asked = {name: value for name, value in asked.items() if name != "library"}
        found = {
            name: None if value is None else value.to(device)
            for name, value in self.seen_cells.fill_in(asked, n_cells).items()
        }
        for name, code in (("condition", BACKGROUND + 1), ("batch", 0)):
            if found[name] is None:
                found[name] = torch.full((n_cells,), code, device=device)
        library = found.pop("library", library)
        if needs_library and library is None:
            msg = (
                "The library size is observed in this model, and those of the training cells are "
                "not known: this model was not trained by ContrastiveVI, or it was saved by an "
                "earlier version or by scvi-tools. Give library=, the total counts: one number for "
                "all cells, or one for each."
            )
            raise ValueError(msg)
        return CellBatch(library=library, **found)  # type: ignore[arg-type]  # condition is there


def _check_whole(value: object, name: str, *, lowest: int = 0, below: int | None = None) -> None:
    """Refuse numbers that are not whole or out of range; ``None`` is allowed."""
    if value is None:
        return
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # text, for example
        given = torch.tensor(0.5)
    is_whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if is_whole and (given >= lowest).all() and (below is None or (given < below).all()):
        return
    upper = "" if below is None else f" and at most {below - 1}"
    msg = f"{name} must be a whole number of at least {lowest}{upper}, not {value!r}."
    raise ValueError(msg)
