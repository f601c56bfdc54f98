"""The contract of a likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_contrastive._tools.torch_tools import own_params, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.density.heads import SCALE
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.testing import contracts
from pyro_contrastive.testing.contracts import N_CELLS, fail
from pyro_contrastive.testing.distribution_contract import check_density, check_draws, check_shapes
from pyro_contrastive.vae import ContrastiveVAE

N_PARTICLES = 3


def check_likelihood(
    make: Callable[[], Likelihood],
    *,
    n_genes: int = 6,
    n_batch: int = 2,
    saving: bool = True,
    seed: int = 0,
    **vae_kwargs: Any,
) -> None:
    """Check everything that the library relies on in a likelihood; takes about a second.

    Shapes and event dimension, also with a leading axis of particles; draws in the support, with
    the stated mean and variance; probabilities that sum to 1; cells that do not depend on each
    other; gradients in every parameter; double precision and other devices; the loss of a model
    under both ELBOs, with one particle and several at once; saving and loading.

    Parameters
    ----------
    make
        Makes a new likelihood at every call, since each belongs to one model: the class, if it
        needs no arguments, or a function.
    n_genes, n_batch
        Sizes of the model.
    saving
        Require that it can be made again from its saved arguments.
    seed
        Seed of all random numbers.
    **vae_kwargs
        Further arguments of :class:`~pyro_contrastive.ContrastiveVAE` that the likelihood needs.

    Raises
    ------
    ContractError
        At the first failure: what is wrong, what it leads to, and how to put it right.

    Examples
    --------
    >>> from pyro_contrastive import NegativeBinomial
    >>> check_likelihood(NegativeBinomial)
    """
    if isinstance(make, Likelihood):
        fail(
            make,
            "this is one likelihood, but the contract needs several, as each belongs to one model.",
            "Give the class, check_likelihood(MyLikelihood), or a function, "
            "check_likelihood(lambda: MyLikelihood(...)).",
        )
    with seeded(seed), own_params():
        first = make()
        if not isinstance(first, Likelihood):
            fail(first, "it is not a Likelihood.", "Subclass pyro_contrastive.Likelihood.")
        _check_heads(first)

        def make_vae(given: Likelihood | None = None, **kwargs: Any) -> ContrastiveVAE:
            sizes: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
            kwargs = sizes | {"n_batch": n_batch} | vae_kwargs | kwargs
            return ContrastiveVAE(n_genes, likelihood=given or make(), **kwargs)

        vae = make_vae(first).eval()
        _check_build(make, first)
        batch = contracts.make_cells(n_genes, 2, n_batch)
        x = _data(first, _check_distribution(vae, batch, first, n_genes))
        batch = CellBatch(batch.condition, x, batch.batch, library=batch.library)
        _check_particles(vae, batch)
        _check_sites(vae, batch)
        _check_cells_are_apart(vae, batch)
        latents = _latents(vae, batch)

        def log_prob(moved: ContrastiveVAE, cells: CellBatch) -> Tensor:
            assert cells.x is not None
            value: Tensor = _distribution(
                moved, cells, [latent.to(cells.x) for latent in latents]
            ).log_prob(cells.x)
            return value

        contracts.check_moves(first, log_prob, lambda to: contracts.move(vae, batch, to))
        contracts.check_losses(first, make_vae, batch, "model.likelihood")
        if saving:
            again = make_vae(contracts.check_written_down(make())).eval()
            again.load_state_dict(vae.state_dict())
            contracts.check_same_after_loading(first, log_prob(vae, batch), log_prob(again, batch))


@torch.no_grad()
def _check_distribution(
    vae: ContrastiveVAE, batch: CellBatch, first: Likelihood, n_genes: int
) -> Tensor:
    """Check what `forward` returns; return a draw of the data, ``[cells, genes]``."""
    remedy = (
        f"It is given the heads it names, {first.heads}, and the library size. The head "
        f"{SCALE!r} is positive and sums to 1 over genes; others may be any real number: take "
        "their .exp() or softplus where a parameter must be positive."
    )
    with contracts.explained(first, "forward(heads, library)", remedy):
        d = _distribution(vae, batch, _latents(vae, batch))
    check_shapes(first, d, n_genes, [(N_CELLS,)])
    draws = check_draws(first, d)
    check_density(first, d, draws)
    return draws[0]


def _check_heads(likelihood: Likelihood) -> None:
    heads = getattr(likelihood, "heads", None)
    if not isinstance(heads, tuple) or not all(isinstance(h, str) for h in heads):
        fail(
            likelihood,
            f"`heads` is {heads!r}; it must be a tuple that names the linear maps from the "
            "decoder's last hidden layer to the genes, one per parameter that differs between "
            "cells.",
            'Write heads = ("scale",), with the comma, in the class.',
        )


def _check_build(make: Callable[[], Likelihood], built: Likelihood) -> None:
    if make() is built:
        fail(
            built,
            "the function returns the same object again, but two models must not share one.",
            "Make a new likelihood at every call: check_likelihood(lambda: MyLikelihood(...)).",
        )
    if not hasattr(built, "layers"):
        fail(
            built,
            "`build` made no layers for its heads.",
            "Call super().build(n_hidden, n_genes, n_batch) first when you override it.",
        )


def _data(likelihood: Likelihood, draws: Tensor) -> Tensor:
    """Return draws as data; negative draws of a normal become 0 where data are never negative."""
    if likelihood.support.check(draws).all():
        return draws
    x = draws.clamp(min=0.0)
    if not likelihood.support.check(x).all():
        fail(
            likelihood,
            f"it draws data outside the `support` it declares, {likelihood.support}: real data "
            "like its draws would be refused.",
            "Set `support` in the class to a constraint of torch that all data satisfy.",
        )
    return x


def _latents(vae: ContrastiveVAE, batch: CellBatch) -> list[Tensor]:
    """Draw z, and s of every cell, from their priors: ``[cells, latents]``."""
    model = vae.model
    return [
        d.expand([len(batch)]).sample() if not d.batch_shape else d.sample()
        for d in (model.z_dist(batch), model.s_dist(batch))
    ]


def _distribution(vae: ContrastiveVAE, batch: CellBatch, latents: list[Tensor]) -> Any:
    heads = vae.model.decode(latents[0], latents[1], batch)
    return vae.model.x_dist(heads, batch.observed_library(), batch)


def _check_particles(vae: ContrastiveVAE, batch: CellBatch) -> None:
    likelihood, latents = vae.model.likelihood, _latents(vae, batch)
    several = [torch.stack([latent] * N_PARTICLES) for latent in latents]
    with torch.no_grad():
        one = _distribution(vae, batch, latents).log_prob(batch.x)
        d = _distribution(vae, batch, several)
        check_shapes(likelihood, d, vae.n_input, [(N_PARTICLES, N_CELLS)])
        if not torch.allclose(d.log_prob(batch.x), one.expand(N_PARTICLES, -1), rtol=1e-4):
            fail(
                likelihood,
                "with a leading axis of particles each gets another density than by itself.",
                "Index axes from the right (dim=-1); those on the left are particles.",
            )


def _check_sites(vae: ContrastiveVAE, batch: CellBatch) -> None:
    likelihood, latents = vae.model.likelihood, _latents(vae, batch)
    with torch.no_grad():
        heads = vae.model.decode(latents[0], latents[1], batch)
        sites = dict(vae.model.expression(heads, batch.observed_library()))
        assert batch.x is not None
        encoded = likelihood.encoder_input(batch.x)
    expected = (N_CELLS, vae.n_input)
    for name, value in sites.items():
        if tuple(value.shape) != expected or not value.isfinite().all():
            fail(
                likelihood,
                f"the site {name!r} has shape {contracts.shape_of(value.shape)} (or is not "
                f"finite); expected {contracts.shape_of(expected)}.",
                f"Return [..., cells, genes] from "
                f"`{'expression' if name == SCALE else 'rate'}`, or None if there is none.",
            )
    if tuple(encoded.shape) != expected or not encoded.isfinite().all():
        fail(
            likelihood,
            "`encoder_input` of data it drew itself is not finite, or has another shape.",
            "Return finite numbers, [cells, genes], for all data in the support; log1p suits "
            "counts.",
        )


def _check_cells_are_apart(vae: ContrastiveVAE, batch: CellBatch) -> None:
    latents = _latents(vae, batch)
    others = [torch.cat([latent[:1], latent[1:].flip(0)]) for latent in latents]
    assert batch.library is not None
    library = torch.cat([batch.library[:1], 3 * batch.library[1:]])
    changed = CellBatch(batch.condition, batch.x, batch.batch, library=library)
    with torch.no_grad():
        before = _distribution(vae, batch, latents).log_prob(batch.x)[0]
        after = _distribution(vae, changed, others).log_prob(batch.x)[0]
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-6):
        fail(
            vae.model.likelihood,
            "in evaluation mode the distribution of a cell depends on the other cells of the "
            "mini-batch: results would change with the batch size.",
            "Normalise over genes (dim=-1), never over cells.",
        )
