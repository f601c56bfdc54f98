"""The same numbers as scvi-tools' ContrastiveVAE, with its weights, its noise and its batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_contrastive import CellBatch, ContrastiveVAE
from pyro_contrastive.interop.scvi import rename_scvi_weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

N_CELLS, N_GENES = 23, 41
TOLERANCE = 1e-5

SETTINGS = list(itertools.product((True, False), (1, 2), (0, 1, 3), (0, 10)))


@pytest.fixture(scope="module")
def reference_class() -> Any:
    """Import scvi-tools' module class (slow, so once); it changes a global setting of torch."""
    contrastivevi = pytest.importorskip("scvi.external.contrastivevi")
    return contrastivevi.ContrastiveVAE


def make_pair(
    reference_class: Any, observed: bool, n_layers: int, n_batch: int, penalty: float
) -> tuple[Any, ContrastiveVAE]:
    """Make the reference and ours with the same, non-trivial, weights, in evaluation mode."""
    kwargs = {
        "n_input": N_GENES,
        "n_batch": n_batch,
        "n_hidden": 12,
        "n_background_latent": 4,
        "n_salient_latent": 3,
        "n_layers": n_layers,
        "use_observed_lib_size": observed,
        "wasserstein_penalty": penalty,
    }
    if not observed:
        size = max(n_batch, 1)
        kwargs["library_log_means"] = np.linspace(4.0, 4.5, size).reshape(1, -1)
        kwargs["library_log_vars"] = np.linspace(0.2, 0.4, size).reshape(1, -1)
    torch.manual_seed(1)
    reference = reference_class(**kwargs)
    with torch.no_grad():
        for name, buffer in reference.named_buffers():  # batch-norm statistics away from 0 and 1
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    ours = ContrastiveVAE(**kwargs)
    weights = rename_scvi_weights(reference.state_dict(), latent_library=not observed)
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("_prior._" in name for name in missing), missing  # constants of N(0, 1) only
    return reference.eval(), ours.eval()


def make_groups(n_batch: int) -> dict[str, dict[str, torch.Tensor]]:
    """Counts of two groups of the same size (the reference drops cells otherwise)."""
    generator = torch.Generator().manual_seed(2)
    groups = {}
    for name in ("background", "target"):
        rate = 3 * torch.rand(N_CELLS, N_GENES, generator=generator)
        codes = torch.randint(0, max(n_batch, 1), (N_CELLS, 1), generator=generator)
        groups[name] = {"x": torch.poisson(rate, generator=generator), "batch_index": codes}
    return groups


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest error relative to the largest value."""
    ours, reference = ours.detach(), reference.detach()
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-30))


def run(vae: Any, groups: dict[str, dict[str, torch.Tensor]], kl_weight: float) -> Any:
    """Run inference, generative and loss as a caller of the reference does, with fixed noise."""
    torch.manual_seed(3)
    inferred = vae.inference(**groups)
    decoded = vae.generative(
        **{
            name: {k: inferred[name][k] for k in ("z", "s", "library")}
            | {"batch_index": groups[name]["batch_index"]}
            for name in groups
        }
    )
    tensors = {n: {"X": g["x"], "batch": g["batch_index"]} for n, g in groups.items()}
    return inferred, decoded, vae.loss(tensors, inferred, decoded, kl_weight=kl_weight)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_output_and_the_loss_agree(reference_class: Any, setting: Any) -> None:
    reference, ours = make_pair(reference_class, *setting)
    groups = make_groups(n_batch=setting[2])
    for kl_weight in (1.0, 0.3):
        expected, got = run(reference, groups, kl_weight), run(ours, groups, kl_weight)
        for stage in (0, 1):
            for name, outputs in expected[stage].items():
                for key, value in outputs.items():
                    if value is None:
                        assert got[stage][name][key] is None
                    elif value.abs().max() > 0:
                        assert got[stage][name][key].shape == value.shape, (name, key)
                        assert relative_error(got[stage][name][key], value) < TOLERANCE, (name, key)
                    else:
                        assert not got[stage][name][key].any(), (name, key)
        assert relative_error(got[2].loss, expected[2].loss) < TOLERANCE
        recon = "reconstruction_loss"
        assert (
            relative_error(
                got[2].reconstruction_loss[recon], expected[2].reconstruction_loss[recon]
            )
            < TOLERANCE
        )
        for key, value in expected[2].kl_local.items():
            assert got[2].kl_local[key].shape == value.shape
            assert torch.allclose(got[2].kl_local[key], value, rtol=TOLERANCE, atol=1e-5), key
        if setting[3]:
            key = "wasserstein_loss_sum"
            assert (
                relative_error(got[2].extra_metrics[key], expected[2].extra_metrics[key])
                < TOLERANCE
            )


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_mean_field_objective_is_the_reference_loss(
    reference_class: Any, setting: Any, kl_weight: float
) -> None:
    reference, ours = make_pair(reference_class, *setting)
    groups = make_groups(n_batch=setting[2])
    expected = run(reference, groups, kl_weight)[2].loss
    objective = ContrastiveVAE(
        N_GENES, wasserstein_penalty=setting[3], elbo=TraceMeanField_ELBO
    ).objective
    objective.kl_weight = kl_weight
    batch = CellBatch(
        condition=torch.arange(2 * N_CELLS) // N_CELLS,
        x=torch.cat([g["x"] for g in groups.values()]),
        batch=torch.cat([g["batch_index"] for g in groups.values()]).squeeze(-1),
    )
    torch.manual_seed(3)  # the noise `run` gave the reference
    got = objective(ours.model, ours.guide)(batch)
    assert relative_error(got, expected) < TOLERANCE


@pytest.mark.parametrize("observed", [True, False])
def test_gradients_agree(reference_class: Any, observed: bool) -> None:
    reference, ours = make_pair(reference_class, observed, 2, 3, 10)
    groups = make_groups(n_batch=3)
    run(reference, groups, 0.3)[2].loss.backward()
    run(ours, groups, 0.3)[2].loss.backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    renamed = rename_scvi_weights(expected, latent_library=not observed)
    got = {n: p.grad for n, p in ours.named_parameters()}
    assert set(renamed) == set(got)
    for name, gradient in renamed.items():
        if gradient.abs().max() > 1e-4:  # biases before batch norm have a gradient of 0
            assert relative_error(got[name], gradient) < 1e-4, name


def test_helper_methods_agree(reference_class: Any) -> None:
    reference, ours = make_pair(reference_class, False, 1, 3, 0)
    generator = torch.Generator().manual_seed(5)
    mean, other_mean = torch.randn(2, 7, 3, generator=generator)
    variance, other_variance = torch.rand(2, 7, 3, generator=generator) + 0.1
    arguments = (mean, variance, other_mean, other_variance)
    assert torch.allclose(
        ours.latent_kl_divergence(*arguments), reference.latent_kl_divergence(*arguments)
    )
    codes = torch.tensor([[0], [1], [2], [0], [1], [2], [0]])
    arguments = (codes, mean[:, :1], variance[:, :1], mean[:, :1])
    assert torch.allclose(
        ours.library_kl_divergence(*arguments), reference.library_kl_divergence(*arguments)
    )
    x = torch.tensor([[0.0, 1.0, 7.0]]).expand(7, 3)
    arguments = (x, variance * 5, other_variance[0], mean)
    assert torch.allclose(
        ours.reconstruction_loss(*arguments), reference.reconstruction_loss(*arguments), rtol=1e-5
    )
