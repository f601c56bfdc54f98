"""The contract of a guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_contrastive._tools.torch_tools import own_params, seeded
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.testing import contracts
from pyro_contrastive.testing.contracts import N_CELLS, fail
from pyro_contrastive.testing.distribution_contract import check_density, check_draws, check_shapes
from pyro_contrastive.training.part_checks import check_sites
from pyro_contrastive.vae import ContrastiveVAE

N_DRAWS = 4000
N_STANDARD_ERRORS = 8.0  # of the draws; estimated marginals have an error of their own
NORMAL: Mapping[str, Any] = {}
POSITIVE: Mapping[str, Any] = {
    "background_prior": dist.Gamma(2.0, 1.0),
    "salient_prior": dist.Gamma(2.0, 1.0),
    "use_observed_lib_size": False,
    "library_prior": dist.LogNormal(3.0, 0.5),
}


def check_guide(
    make: Callable[[], ContrastiveGuide],
    *,
    n_background_latent: int = 3,
    n_salient_latent: int = 2,
    n_conditions: int = 2,
    n_genes: int = 12,
    n_batch: int = 2,
    saving: bool = True,
    seed: int = 0,
    **vae_kwargs: Any,
) -> None:
    """Check everything that the library relies on in a guide; takes a few seconds.

    The sites of the model and no others; shapes, also with many draws at once; densities that are
    finite, belong to the draws and are normalised; z and library size of a background cell that do
    not depend on its s; cells that do not depend on each other; marginal moments that are those of
    the draws; gradients in every parameter; double precision and other devices; the loss of a model
    under both ELBOs, with one particle and several at once; saving and loading. All this with
    normal latents, and with positive ones and a latent library size. Whether the posterior is good
    is another question: see ``ContrastiveVI.pareto_k`` and ``posterior_accuracy``.

    Parameters
    ----------
    make
        Makes a new guide at every call, since each belongs to one model: the class, if it needs no
        arguments, or a function.
    n_background_latent, n_salient_latent, n_conditions, n_genes, n_batch
        Sizes of the model.
    saving
        Require that it can be made again from its saved arguments.
    seed
        Seed of all random numbers.
    **vae_kwargs
        Further arguments of :class:`~pyro_contrastive.ContrastiveVAE`. With any of them, only the
        model that they describe is checked.

    Raises
    ------
    ContractError
        At the first failure: what is wrong, what it leads to, and how to put it right.

    Examples
    --------
    >>> from pyro_contrastive import FullCovarianceGuide
    >>> check_guide(FullCovarianceGuide)
    """
    _check_make(make)
    sizes: dict[str, Any] = {
        "n_batch": n_batch,
        "n_hidden": 8,
        "n_background_latent": n_background_latent,
        "n_salient_latent": n_salient_latent,
    }
    for arguments in [vae_kwargs] if vae_kwargs else [NORMAL, POSITIVE]:

        def make_vae(given: ContrastiveGuide | None = None, **kwargs: Any) -> ContrastiveVAE:
            parts = {
                name: contracts.copy_of(value) if isinstance(value, nn.Module) else value
                for name, value in arguments.items()  # noqa: B023  # called in this round only
            }
            return ContrastiveVAE(n_genes, guide=given or make(), **(sizes | parts | kwargs))

        with seeded(seed), own_params():
            batch = contracts.make_cells(n_genes, n_conditions, n_batch)
            _check_guide_of(make_vae, batch, make if saving else None)


def _check_guide_of(
    make_vae: Callable[..., ContrastiveVAE],
    batch: CellBatch,
    make: Callable[[], ContrastiveGuide] | None,
) -> None:
    """Check the guide of a kind of model; with `make`, also that it can be saved."""
    vae = make_vae().eval()
    guide = vae.guide
    remedy = "Its forward is given one CellBatch; its parts were made by `build`."
    with contracts.explained(guide, "running it before training", remedy):
        check_sites(vae, batch)
    _check_draws(vae, batch)
    _check_background(vae, batch)
    _check_cells_are_apart(vae, batch)
    _check_marginals(vae, batch)
    contracts.check_moves(guide, _log_prob, lambda to: contracts.move(vae, batch, to))
    contracts.check_losses(guide, make_vae, batch, "guide")
    if make is not None:
        again = make_vae(contracts.check_written_down(make())).eval()
        again.load_state_dict(vae.state_dict())
        before, after = (_seeded_log_prob(v, batch) for v in (vae, again))
        contracts.check_same_after_loading(guide, before, after)


def _check_make(make: Callable[[], ContrastiveGuide]) -> None:
    if isinstance(make, ContrastiveGuide):
        fail(
            make,
            "this is one guide, but the contract needs several, as each belongs to one model.",
            "Give the class, check_guide(MyGuide), or a function, "
            "check_guide(lambda: MyGuide(...)).",
        )
    first = make()
    if not isinstance(first, ContrastiveGuide):
        fail(first, "it is not a ContrastiveGuide.", "Subclass pyro_contrastive.ContrastiveGuide.")
    if make() is first:
        fail(
            first,
            "the function returns the same object again, but two models must not share one.",
            "Make a new guide at every call: check_guide(lambda: MyGuide(...)).",
        )


def _trace(program: Any, batch: CellBatch) -> Trace:
    with torch.no_grad():
        trace = poutine.trace(program).get_trace(batch)
        trace.compute_log_prob()
    return trace


def _latents(vae: ContrastiveVAE, trace: Trace) -> Iterator[tuple[str, Any, int]]:
    """Yield the latents of a trace: name, site and number of dimensions."""
    sizes = {"z": vae.n_background_latent, "s": vae.n_salient_latent, "library": 1}
    for name, size in sizes.items():
        if name in trace.nodes:
            yield name, trace.nodes[name], size


def _log_prob(vae: ContrastiveVAE, batch: CellBatch) -> Tensor:
    """Log-density of a draw, summed over latents: ``[cells]``."""
    trace = poutine.trace(vae.guide).get_trace(batch)
    trace.compute_log_prob()
    terms: list[Tensor] = [site["unscaled_log_prob"] for _, site, _ in _latents(vae, trace)]
    return torch.stack(terms).sum(0)


def _seeded_log_prob(vae: ContrastiveVAE, batch: CellBatch) -> Tensor:
    pyro.set_rng_seed(2)
    with torch.no_grad():
        return _log_prob(vae, batch)


def _check_draws(vae: ContrastiveVAE, batch: CellBatch) -> None:
    guide = vae.guide
    for _, site, size in _latents(vae, _trace(guide, batch)):
        check_shapes(guide, site["fn"], size, [(N_CELLS,)])
        with torch.no_grad():
            check_density(guide, site["fn"], check_draws(guide, site["fn"]))
    remedy = (
        "There may be further axes to the left of the cells, in values and in what depends on "
        "them: index axes from the right (dim=-1), and expand what is the same for all draws."
    )
    with contracts.explained(guide, "many draws at once (a plate to the left of cells)", remedy):
        trace = _many(vae, batch)
    for name, site, size in _latents(vae, trace):
        shape, expected = list(site["value"].shape), [N_DRAWS, N_CELLS, size]
        if shape != expected or list(site["unscaled_log_prob"].shape) != expected[:2]:
            fail(
                guide,
                f"with {N_DRAWS} draws at once {name!r} has shape {shape}, and its log-density "
                f"{list(site['unscaled_log_prob'].shape)}; expected {expected} and "
                f"{expected[:2]}.",
                remedy,
            )


def _many(vae: ContrastiveVAE, batch: CellBatch) -> Trace:
    return _trace(pyro.plate("samples", N_DRAWS, dim=-2)(vae.guide), batch)


def _check_background(vae: ContrastiveVAE, batch: CellBatch) -> None:
    """Require that nothing in the posterior of a background cell depends on its s."""
    before = _trace(vae.guide, batch)
    changed = before.copy()
    background = ~batch.is_target
    s = before.nodes["s"]
    moved = torch.where(background.unsqueeze(-1), 2 * s["value"] + 0.5, s["value"])
    changed.nodes["s"] = dict(s, value=moved)
    after = _trace(poutine.replay(vae.guide, trace=changed), batch)
    for name in {"z", "library"} & set(before.nodes):
        one, other = (t.nodes[name]["unscaled_log_prob"][background] for t in (before, after))
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
            fail(
                vae.guide,
                f"in a background cell the density of {name!r} depends on its s. The ELBO leaves s "
                "of background cells out, so that what remains would be no density, and the ELBO "
                "no bound.",
                f"Draw {name!r} before s, or let it depend on s in target cells only: "
                "torch.where(batch.is_target.unsqueeze(-1), ..., ...).",
            )


def _check_cells_are_apart(vae: ContrastiveVAE, batch: CellBatch) -> None:
    together = _trace(vae.guide, batch)
    first = batch.take(torch.arange(1))
    own = together.copy()
    for name, site, _ in _latents(vae, together):
        own.nodes[name] = dict(site, value=site["value"][:1])
    alone = _trace(poutine.replay(vae.guide, trace=own), first)
    for name, site, _ in _latents(vae, together):
        both = site["unscaled_log_prob"][:1], alone.nodes[name]["unscaled_log_prob"]
        if not torch.allclose(*both, rtol=1e-3, atol=1e-4):
            fail(
                vae.guide,
                f"in evaluation mode {name!r} of a cell depends on the other cells of the "
                "mini-batch: results would change with the batch size.",
                "Let a cell's posterior depend on its own counts, condition and covariates only.",
            )


def _check_marginals(vae: ContrastiveVAE, batch: CellBatch) -> None:
    guide, trace = vae.guide, _many(vae, batch)
    with torch.no_grad(), contracts.explained(guide, "marginals(batch)", "Return every latent."):
        stated = guide.marginals(batch)
    for name, site, _ in _latents(vae, trace):
        value = site["value"].double()
        value = value.log() if guide.is_positive(name) else value
        deviation = (value - value.mean(0)).square()
        for what, each, said in zip(
            ("mean", "variance"), (value, deviation), stated[name], strict=True
        ):
            # Estimated ones have as large an error as 200 draws.
            error = each.std(0) * (1 / N_DRAWS + 1 / 200) ** 0.5
            if ((each.mean(0) - said).abs() > N_STANDARD_ERRORS * error + 1e-4).any():
                fail(
                    guide,
                    f"the {what} of {name!r} in `marginals` is not that of its draws: latents and "
                    "tables would not describe the posterior that was trained.",
                    "Let `encode` return the marginal mean and variance (of the log of a positive "
                    "latent), or let has_closed_marginal(site) return False, so that they are "
                    "found from draws.",
                )
