"""The methods of scvi-tools' module beyond parity: groups of unequal size, draws, covariates."""

from __future__ import annotations

import pyro
import pytest
import torch
from every_guide import OURS, OwnProgram
from helpers import N_GENES, make_batch, make_vae
from pyro.infer import TraceMeanField_ELBO

from pyro_contrastive import ContrastiveVAE, NegativeBinomial
from pyro_contrastive.interop.module.populations import pair


def as_groups(batch, n_background):
    groups = {}
    for name, cells in (
        ("background", slice(0, n_background)),
        ("target", slice(n_background, None)),
    ):
        groups[name] = {"x": batch.x[cells], "batch_index": batch.batch[cells].unsqueeze(-1)}
    return groups


def chain(vae, batch, n_background, n_samples=1, kl_weight=1.0):
    groups = as_groups(batch, n_background)
    inferred = vae.inference(**groups, n_samples=n_samples)
    decoded = vae.generative(
        **{g: inferred[g] | {"batch_index": groups[g]["batch_index"]} for g in groups}
    )
    tensors = {g: {"X": t["x"], "batch": t["batch_index"]} for g, t in groups.items()}
    return inferred, decoded, vae.loss(tensors, inferred, decoded, kl_weight)


def test_signature_is_the_references() -> None:
    import inspect

    parameters = inspect.signature(ContrastiveVAE).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert positional == {
        "n_input": inspect.Parameter.empty,
        "n_batch": 0,
        "n_hidden": 128,
        "n_background_latent": 10,
        "n_salient_latent": 10,
        "n_layers": 1,
        "dropout_rate": 0.1,
        "use_observed_lib_size": True,
        "library_log_means": None,
        "library_log_vars": None,
        "wasserstein_penalty": 0,
    }
    assert all(p.kind is p.KEYWORD_ONLY for n, p in parameters.items() if n not in positional)


@pytest.mark.parametrize("latent_library", [True, False])
@pytest.mark.parametrize("n_samples", [1, 4])
def test_shapes(latent_library, n_samples) -> None:
    vae, batch = make_vae(latent_library=latent_library), make_batch(5, 7)
    inferred, decoded, output = chain(vae, batch, 5, n_samples)
    lead = (n_samples,) if n_samples > 1 else ()
    for group, n_cells in (("background", 5), ("target", 7)):
        for key, width in (("z", 3), ("qz_m", 3), ("qz_v", 3), ("s", 2), ("qs_m", 2), ("qs_v", 2)):
            assert inferred[group][key].shape == (*lead, n_cells, width)
        assert inferred[group]["library"].shape == (*lead, n_cells, 1)
        for key in ("ql_m", "ql_v"):
            value = inferred[group][key]
            assert value.shape == (*lead, n_cells, 1) if latent_library else value is None
        for key in ("px_scale", "px_rate", "px_dropout"):
            assert decoded[group][key].shape == (*lead, n_cells, N_GENES)
        assert decoded[group]["px_r"].shape == (N_GENES,)
    assert not inferred["background"]["s"].any()
    assert inferred["target"]["s"].any()
    assert output.loss.shape == ()
    assert output.reconstruction_loss["reconstruction_loss"].shape == (*lead, 7)
    assert {k: v.shape for k, v in output.kl_local.items()} == {
        f"kl_divergence_{k}": (*lead, 7) for k in "lzs"
    }


@pytest.mark.parametrize("latent_library", [True, False])
def test_draws_are_independent_and_follow_the_posterior(latent_library) -> None:
    vae, batch = make_vae(latent_library=latent_library).eval(), make_batch()
    sites = {"z": "qz", "s": "qs"} | ({"library": "ql"} if latent_library else {})
    inferred = vae.inference(**as_groups(batch, 5), n_samples=4000)["target"]
    for site, moments in sites.items():
        draws, mean, variance = (
            inferred[k].detach() for k in (site, f"{moments}_m", f"{moments}_v")
        )
        standardised = (draws - mean) / variance.sqrt()  # library: both on the log scale
        assert standardised.mean(0).abs().max() < 5 / 4000**0.5
        assert (standardised.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("sizes", [(5, 5), (3, 8), (8, 3), (1, 6)])
@pytest.mark.parametrize("n_samples", [1, 3])
def test_the_loss_is_the_objectives_whatever_the_sizes(sizes, n_samples) -> None:
    kwargs = {"wasserstein_penalty": 4.0, "latent_library": True}
    vae, batch = make_vae(**kwargs).eval(), make_batch(*sizes)
    pyro.set_rng_seed(2)
    _, _, output = chain(vae, batch, sizes[0], n_samples, kl_weight=0.3)
    particles = {"num_particles": n_samples, "vectorize_particles": n_samples > 1}
    objective = make_vae(**kwargs, elbo=TraceMeanField_ELBO, elbo_kwargs=particles).objective
    objective.kl_weight = 0.3
    pyro.set_rng_seed(2)
    expected = objective.loss(vae.model, vae.guide, batch)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    recon = output.reconstruction_loss["reconstruction_loss"].mean()
    kl = {k: v.mean() for k, v in output.kl_local.items()}
    annealed = kl["kl_divergence_z"] + kl["kl_divergence_s"]
    annealed = annealed + 4.0 * output.extra_metrics["wasserstein"]
    total = recon + kl["kl_divergence_l"] + 0.3 * annealed
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 4.0])
def test_calling_the_module_runs_the_three_methods(penalty) -> None:
    vae, batch = make_vae(wasserstein_penalty=penalty, n_batch=2).eval(), make_batch(3, 8, 2)
    tensors = {g: {"X": t["x"], "batch": t["batch_index"]} for g, t in as_groups(batch, 3).items()}
    pyro.set_rng_seed(4)
    inferred, decoded, output = vae(
        tensors, inference_kwargs={"n_samples": 2}, loss_kwargs={"kl_weight": 0.3}
    )
    pyro.set_rng_seed(4)
    expected = chain(vae, batch, 3, n_samples=2, kl_weight=0.3)
    for group in ("background", "target"):
        assert torch.equal(inferred[group]["z"], expected[0][group]["z"])
        assert torch.equal(decoded[group]["px_rate"], expected[1][group]["px_rate"])
    assert torch.equal(output.loss, expected[2].loss)
    assert len(vae(tensors, compute_loss=False)) == 2
    # Summed over 2 draws of 8 pairs, whether or not it is a penalty.
    mean, variance = (m.detach() for m in vae.guide.encode(batch)["s"])
    by_hand = (mean[:3].square() + variance[:3]).sum(-1).mean()
    found = float(output.extra_metrics["wasserstein_loss_sum"].detach())
    assert found == pytest.approx(16 * float(by_hand), rel=1e-5)


def test_the_loss_does_not_evaluate_the_networks_again() -> None:
    vae, batch = make_vae(), make_batch(5, 5)  # in training mode, with dropout
    groups = as_groups(batch, 5)
    inferred = vae.inference(**groups)
    decoded = vae.generative(
        **{g: inferred[g] | {"batch_index": groups[g]["batch_index"]} for g in groups}
    )
    before = {name: value.clone() for name, value in vae.named_buffers()}
    tensors = {g: {"X": t["x"], "batch": t["batch_index"]} for g, t in groups.items()}
    one, other = (vae.loss(tensors, inferred, decoded).loss for _ in range(2))
    assert torch.equal(one, other)
    assert all(torch.equal(before[name], value) for name, value in vae.named_buffers())
    one.backward()
    assert all(p.grad is not None for p in vae.parameters())


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("name", OURS)
def test_other_guides_have_the_loss_of_the_objective_too(name, n_samples) -> None:
    torch.manual_seed(0)
    vae, batch = make_vae(guide=OURS[name](), latent_library=True).eval(), make_batch(4, 6)
    pyro.set_rng_seed(2)
    _, _, output = chain(vae, batch, 4, n_samples)
    particles = {"num_particles": n_samples, "vectorize_particles": n_samples > 1}
    objective = make_vae(elbo=TraceMeanField_ELBO, elbo_kwargs=particles).objective
    pyro.set_rng_seed(2)
    expected = objective.loss(vae.model, vae.guide, batch)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_guide_with_a_program_of_its_own_is_told_that_its_moments_are_not_known() -> None:
    vae = make_vae(guide=OwnProgram())
    with pytest.raises(TypeError, match="draws 'z' by a program of its own, whose moments"):
        vae.inference(**as_groups(make_batch(), 5))


def test_the_loss_takes_what_a_caller_changed() -> None:
    vae, batch = make_vae().eval(), make_batch(5, 5)
    inferred, decoded, before = chain(vae, batch, 5)
    decoded["target"]["px_rate"] = decoded["target"]["px_rate"] * 3
    groups = as_groups(batch, 5)
    tensors = {g: {"X": t["x"], "batch": t["batch_index"]} for g, t in groups.items()}
    assert vae.loss(tensors, inferred, decoded).loss != before.loss


def test_pairs_of_unequal_groups_keep_the_mean() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert pair(values, 1).tolist() == [3.0, 4.0, 11.0]
    assert pair(values, 3).tolist() == [11.0, 12.0, 13.0]
    assert pair(values, 2).tolist() == [4.0, 12.0]


def test_another_likelihood_goes_through_all_methods() -> None:
    vae, batch = make_vae(likelihood=NegativeBinomial()), make_batch(4, 6)
    _, decoded, output = chain(vae, batch, 4, n_samples=2)
    assert decoded["target"]["px_dropout"] is None
    assert output.loss.isfinite()


def test_missing_tensors_are_named() -> None:
    groups = as_groups(make_batch(), 5)
    del groups["target"]["batch_index"]
    with pytest.raises(ValueError, match=r"target tensors lack \['batch_index'\]"):
        make_vae().inference(**groups)


def test_library_kl_is_zero_when_observed() -> None:
    vae = make_vae()
    library = torch.randn(2, 5, 1)
    assert vae.library_kl_divergence(torch.zeros(5, 1), None, None, library).shape == (2, 5)


@pytest.mark.parametrize("latent_library", [True, False])
def test_samples_have_the_models_moments(latent_library) -> None:
    vae = make_vae(latent_library=latent_library, n_batch=2)
    drawn = vae.sample(4000, 1, 1, 500.0, return_latents=True, seed=3)
    assert torch.equal(drawn["library"], torch.full((4000, 1), 500.0))
    for name in ("z", "s"):
        assert drawn[name].mean(0).abs().max() < 5 / 4000**0.5
        assert (drawn[name].var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5
    heads = vae.eval().model.decode(
        drawn["z"], drawn["s"], make_batch(0, 4000)
    )  # only for the dropout head: the batch differs
    assert heads["dropout"].shape == drawn["x"].shape
    assert (drawn["x"] == drawn["x"].round()).all()
    assert (drawn["x"] >= 0).all()
    assert torch.allclose(drawn["rate"], 500.0 * drawn["scale"])


def test_sampled_counts_have_the_mean_and_the_zeros_of_their_distribution() -> None:
    vae = make_vae(likelihood=NegativeBinomial())
    drawn = vae.sample(20_000, 1, 0, 40.0, return_latents=True, seed=0)
    theta = vae.model.likelihood.log_inverse_dispersion.exp().detach()
    rate = drawn["rate"]
    variance = rate + rate.square() / theta
    error = (drawn["x"] - rate).mean(0) / (variance.mean(0) / 20_000).sqrt()
    assert error.abs().max() < 5
    zero = (theta / (theta + rate)) ** theta
    observed = (drawn["x"] == 0).float()
    error = (observed - zero).mean(0) / (zero * (1 - zero)).mean(0).div(20_000).sqrt()
    assert error.abs().max() < 5


def test_sampling_leaves_the_model_and_the_random_state_alone() -> None:
    vae = make_vae(latent_library=True)
    buffers = {name: value.clone() for name, value in vae.named_buffers()}
    state = torch.get_rng_state()
    one, other = vae.sample(3, seed=5), vae.sample(3, seed=5)
    assert torch.equal(one, other)
    assert not torch.equal(one, vae.sample(3, seed=6))
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert all(torch.equal(buffers[name], value) for name, value in vae.named_buffers())


def test_background_samples_have_no_salient_latent_and_the_library_may_be_drawn() -> None:
    vae = make_vae(latent_library=True)
    drawn = vae.sample(2000, condition=0, return_latents=True, seed=1)
    assert not drawn["s"].any()
    logs = drawn["library"].log()
    assert abs(float(logs.mean()) - 3.0) < 5 * (0.3 / 2000) ** 0.5
    with pytest.raises(ValueError, match="library"):
        make_vae().sample(3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_input": 0}, "n_input must be at least 1"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
        ({"use_observed_lib_size": False}, "library_log_means"),
        (
            {
                "use_observed_lib_size": False,
                "n_batch": 2,
                "library_log_means": [1.0],
                "library_log_vars": [1.0],
            },
            "1 entries, but there are 2 batches",
        ),
        (
            {
                "use_observed_lib_size": False,
                "library_log_means": [1.0],
                "library_log_vars": [0.0],
            },
            "positive variance",
        ),
        ({"salient_prior": "normal"}, "salient_prior must be"),
    ],
)
def test_bad_arguments_are_named(kwargs, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_vae(**kwargs)
