"""The contract of a prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_contrastive._tools.torch_tools import own_params, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.priors import Prior
from pyro_contrastive.testing import contracts
from pyro_contrastive.testing.contracts import N_CELLS, Site, fail
from pyro_contrastive.testing.distribution_contract import check_density, check_draws, check_shapes
from pyro_contrastive.vae import ContrastiveVAE

KEYWORD = {"z": "background_prior", "s": "salient_prior", "library": "library_prior"}


def check_prior(
    prior: Prior,
    n_latent: int,
    *,
    site: Site = "s",
    n_conditions: int = 2,
    n_genes: int = 12,
    saving: bool = True,
    seed: int = 0,
    **vae_kwargs: Any,
) -> None:
    """Check everything that the library relies on in a prior; takes about a second.

    Shapes and event dimension; draws in the support, with the stated mean and variance; a density
    that is normalised and belongs to the draws; cells that do not depend on each other; gradients
    in every parameter; double precision and other devices; the loss of a model under both ELBOs,
    with one particle and several at once; saving and loading. The prior itself is not changed.

    Parameters
    ----------
    prior
        The prior.
    n_latent
        Dimension of its latent.
    site
        Variable to use it for: ``"s"`` (default), ``"z"``, or ``"library"`` (dimension 1,
        positive).
    n_conditions
        Number of conditions that the prior is made for, the background included.
    n_genes
        Number of genes that the prior is made for, if it depends on them.
    saving
        Require that it can be made again from its saved arguments.
    seed
        Seed of all random numbers.
    **vae_kwargs
        Further arguments of :class:`~pyro_contrastive.ContrastiveVAE`.

    Raises
    ------
    ContractError
        At the first failure: what is wrong, what it leads to, and how to put it right.

    Examples
    --------
    >>> from pyro_contrastive import StandardNormal
    >>> check_prior(StandardNormal(3), n_latent=3)
    """
    if not isinstance(prior, Prior):
        fail(prior, "it is not a Prior.", "Subclass pyro_contrastive.Prior.")

    def make_vae(given: Prior | None = None, **kwargs: Any) -> ContrastiveVAE:
        sizes: dict[str, Any] = {"n_background_latent": 3, "n_salient_latent": 2}
        if site != "library":
            sizes["n_background_latent" if site == "z" else "n_salient_latent"] = n_latent
        given = contracts.copy_of(prior) if given is None else given
        kwargs = {"n_hidden": 8, **sizes, KEYWORD[site]: given} | vae_kwargs | kwargs
        return ContrastiveVAE(n_genes, use_observed_lib_size=site != "library", **kwargs)

    with seeded(seed), own_params():
        batch = contracts.make_cells(n_genes, n_conditions, int(vae_kwargs.get("n_batch", 1)))
        vae = make_vae().eval()
        _check_distribution(vae, batch, site, n_latent)
        _check_cells_are_apart(vae, batch, site)
        contracts.check_moves(
            _prior_of(vae, site),
            lambda v, b: _log_prob(v, b, site),
            lambda to: contracts.move(vae, batch, to),
        )
        contracts.check_losses(prior, make_vae, batch, f"model.{KEYWORD[site]}")
        if saving:
            again = make_vae(contracts.check_written_down(prior)).eval()
            again.load_state_dict(vae.state_dict())
            before, after = (_log_prob(v, batch, site) for v in (vae, again))
            contracts.check_same_after_loading(prior, before, after)


def _prior_of(vae: ContrastiveVAE, site: Site) -> Prior:
    found: Prior = getattr(vae.model, KEYWORD[site])
    return found


def _log_prob(vae: ContrastiveVAE, batch: CellBatch, site: Site) -> Tensor:
    """Log-density of every cell at a point in every possible support, ``[cells]``."""
    d = _prior_of(vae, site)(batch)
    log_prob: Tensor = d.log_prob(torch.full_like(d.sample(), 0.7))
    return log_prob


def _check_distribution(vae: ContrastiveVAE, batch: CellBatch, site: Site, n_latent: int) -> None:
    prior = _prior_of(vae, site)
    remedy = (
        "It is given one CellBatch: condition, batch, x (counts, or None), library, each one entry "
        "or row per cell. Return a distribution of pyro.distributions with .to_event(1)."
    )
    with torch.no_grad():
        with contracts.explained(prior, "forward(batch)", remedy):
            d: Any = prior(batch)
        check_shapes(prior, d, n_latent, [(), (N_CELLS,)])
        draws = check_draws(prior, d)
        check_density(prior, d, draws)
    point = draws[0].clone().requires_grad_()
    prior.zero_grad()
    prior(batch).log_prob(point).sum().backward()
    if point.grad is None or not point.grad.isfinite().all():
        fail(
            prior,
            "log_prob has no (finite) gradient by the latent: the encoder would learn nothing from "
            "the prior.",
            "Compute log_prob from the value by torch functions, without .detach() or .item().",
        )
    contracts.check_gradients(prior, "in the log-density of its own draws")


def _check_cells_are_apart(vae: ContrastiveVAE, batch: CellBatch, site: Site) -> None:
    prior = _prior_of(vae, site)
    first = CellBatch(
        condition=batch.condition[:1],
        batch=batch.batch_codes[:1],
        x=None if batch.x is None else batch.x[:1],
        library=None if batch.library is None else batch.library[:1],
    )
    together, single = (_log_prob(vae, b, site).expand(len(b))[0] for b in (batch, first))
    if not torch.allclose(together, single, rtol=1e-4, atol=1e-6):
        fail(
            prior,
            "in evaluation mode the prior of a cell depends on the other cells of the mini-batch: "
            "results would change with the batch size.",
            "Let a cell's prior depend on that cell only (batch.condition[n], ...).",
        )
