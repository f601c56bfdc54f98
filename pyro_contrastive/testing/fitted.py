"""Cells simulated from a fitted model, with what made them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike
from pyro import poutine

from pyro_contrastive._tools.torch_tools import evaluating, seeded
from pyro_contrastive.analysis.counterfactuals import effect_draws
from pyro_contrastive.analysis.decoding import decode_batch
from pyro_contrastive.analysis.nuts import shared_values
from pyro_contrastive.analysis.query import Decoding
from pyro_contrastive.contrastive_vi import ContrastiveVI
from pyro_contrastive.interop.module.populations import trace_of
from pyro_contrastive.methods.effects import usual_pseudocount

__all__ = ["simulate_from"]


def simulate_from(
    model: ContrastiveVI, indices: ArrayLike | None = None, *, seed: int = 0
) -> AnnData:
    """Draw a cell from a fitted model in place of each of its cells, and keep what made it.

    Latents are drawn from their priors and counts from the likelihood; condition, batch, covariates
    and observed library size are those of the real cell. Parameters with a prior are at their
    posterior mean. The model is exactly right about these cells if its library size is latent or
    given by ``size_factor_key``. If it is the total of the counts, the total of the new counts
    takes its place, which is a little different.

    Parameters
    ----------
    model
        The model, with its data, and with normalised expression.
    indices
        Which cells. Default: all.
    seed
        Seed of all draws.

    Returns
    -------
    Counts, dense, with ``obs`` of the real cells, to give to the methods of the model as ``adata=``
    (if the model reads a layer, the counts are there), and the truth: ``layers["scale"]``, as
    ``get_normalized_expression`` estimates it; ``layers["effect"]``, as ``get_treatment_effect``;
    ``obsm["z"]``, ``obsm["s"]`` (0 in background cells).

    Examples
    --------
    How many of the 90 % intervals of the treatment effect cover the truth::

        cells = simulate_from(model)
        truth = cells.layers["effect"]
        effect = model.get_treatment_effect(cells, interval=0.9, refine=True)
        covered = (effect["lower"] <= truth) & (truth <= effect["upper"])
    """
    query = model._query(None, indices)
    of_scale, of_mean = (
        replace(query, decoding=Decoding(site, average=False)) for site in ("scale", "mean_scale")
    )
    pseudocount = usual_pseudocount(model)
    parts: dict[str, list[np.ndarray]] = {}
    with seeded(seed), evaluating(query.vae):
        fixed = shared_values(query.vae)
        program = poutine.condition(query.vae.model, fixed)
        for batch in query.minibatches():
            nodes = poutine.trace(program).get_trace(batch.observing(None)).nodes
            latents = [site for site in ("z", "s", "library") if nodes[site]["type"] == "sample"]
            drawn = {site: nodes[site]["value"].unsqueeze(0) for site in latents}
            made = trace_of(drawn | fixed)
            found = {
                "x": nodes["x"]["value"].cpu().numpy(),
                "z": drawn["z"][0].cpu().numpy(),
                "s": (drawn["s"][0] * batch.is_target.unsqueeze(-1)).cpu().numpy(),
                "scale": decode_batch(of_scale, batch, made)[0],
                "effect": effect_draws(of_mean, batch, made, pseudocount)[0],
            }
            for name, value in found.items():
                parts.setdefault(name, []).append(value)
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    adata = model._adata(None)[query.cells]
    layer = model.setup.layer
    return AnnData(
        whole["x"],
        obs=adata.obs.copy(),
        var=adata[:, model.genes].var[[]].copy(),
        obsm={site: whole[site] for site in ("z", "s")},
        layers={name: whole[name] for name in ("scale", "effect")}
        | ({} if layer is None else {layer: whole["x"]}),
    )
