"""Wrong arguments and empty selections are refused by every method before any work."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from pyro_contrastive import ContrastiveVI, compare_models
from pyro_contrastive.testing import SimulationSettings, simulate


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    cells: ad.AnnData = simulate(
        SimulationSettings(n_background=15, n_target=15, n_genes=12), seed=0
    )
    ContrastiveVI.setup_anndata(cells, condition_key="condition", background="control")
    return ContrastiveVI(cells, n_hidden=4, n_background_latent=2, n_salient_latent=2)


NONE = np.zeros(30, dtype=bool)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.latent_signal(indices=NONE),
        lambda m: m.leakage(indices=NONE),
        lambda m: m.get_latent_usage(indices=NONE),
        lambda m: m.posterior_accuracy(indices=NONE),
        lambda m: m.simulation_based_calibration(indices=NONE),
        lambda m: m.diagnose(indices=NONE),
        lambda m: compare_models({"a": m, "b": m}, indices=NONE),
    ],
)
def test_no_cells(model, call) -> None:
    with pytest.raises(ValueError, match="indices selects no cells"):
        call(model)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m.diagnose(n_khat_cells=0), ValueError, "n_khat_cells must be at least 1"),
        (lambda m: m.diagnose(nuts_cells=-1), ValueError, "nuts_cells must be at least 0"),
        (lambda m: m.diagnose(labels_key="nope"), KeyError, "no column .'nope'.; it has"),
        (lambda m: m.leakage(labels_keys="nope"), KeyError, "no column .'nope'.; it has"),
        (lambda m: m.leakage(n_permutations=-1), ValueError, "n_permutations must be at least 1"),
        (lambda m: compare_models([m, m]), TypeError, "by name"),
        (lambda m: compare_models({"a": m, "b": m}, refine=0), ValueError, "refine must be"),
        (lambda m: m.get_normalized_expression(gene_list="g1"), TypeError, "a list of genes"),
        (
            lambda m: m.posterior_predictive_check(functions={"library_size": lambda x: x.sum(1)}),
            ValueError,
            "choose another",
        ),
        (
            lambda m: m.posterior_predictive_check(functions={1: lambda x: x.sum(1)}),
            TypeError,
            "must be a string",
        ),
    ],
)
def test_wrong_arguments(model, call, error, match) -> None:
    with pytest.raises(error, match=match):
        call(model)
