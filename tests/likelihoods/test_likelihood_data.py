"""Data outside the support of a likelihood are refused with a reason, before any computation."""

from __future__ import annotations

import re
from typing import Any

import anndata as ad
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
from helpers import make_batch, make_vae
from torch.distributions import constraints

from pyro_contrastive import (
    Bernoulli,
    ContrastiveVI,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedPoisson,
)
from pyro_contrastive._tools.torch_tools import tensor_of
from pyro_contrastive.data.places import where_counts_are
from pyro_contrastive.testing import SimulationSettings, simulate

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}
SMALL: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
STORED = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x}


class Gamma(Likelihood):
    """Positive numbers: not even a zero."""

    heads = ("log_rate",)
    support = constraints.positive

    def forward(self, heads, library):
        return dist.Exponential(heads["log_rate"].exp()).to_event(1)


@pytest.fixture
def adata() -> ad.AnnData:
    return simulate(SimulationSettings(n_background=10, n_target=12, n_genes=6))


def with_value(adata: ad.AnnData, value: float, stored: str = "csr") -> ad.AnnData:
    """The cells with ones and zeros everywhere but in one place."""
    x = (adata.X.toarray() > 0).astype(np.float32)
    x[7, 4] = value
    adata.X = STORED[stored](x)
    return adata


def register_quietly(adata: ad.AnnData, **keys: Any) -> None:
    """Register data that may be no counts."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not hold raw counts", UserWarning)
        ContrastiveVI.setup_anndata(adata, **(KEYS | keys))


def test_setup_warns_of_other_data_and_takes_them(adata):
    adata.layers["logs"] = sp.csr_matrix(np.log1p(adata.X.toarray()))
    rows, columns = np.nonzero(adata.layers["logs"].toarray())
    n, cell, gene = len(rows), adata.obs_names[rows[0]], adata.var_names[columns[0]]
    said = rf"layers\['logs'\].*{n} of its values.*cell '{cell}', gene '{gene}'.*Gaussian"
    with pytest.warns(UserWarning, match=said) as caught:
        ContrastiveVI.setup_anndata(adata, layer="logs", **KEYS)
    assert caught[0].filename == __file__
    assert "_pyro_contrastive" in adata.uns


REFUSED = [
    (None, -1.0, r"raw counts.*ZeroInflatedNegativeBinomial.*\(1 negative\): the first is -1"),
    (
        NegativeBinomial,
        0.5,
        r"raw counts.*\(1 not integers\): the first is 0.5.*none of the layers",
    ),
    (Poisson, -0.5, r"raw counts.*\(1 negative\)"),
    (ZeroInflatedPoisson, 1.5, r"ZeroInflatedPoisson.*\(1 not integers\).*likelihood=Gaussian\(\)"),
    (Bernoulli, 2.0, r"binary data.*Bernoulli.*\(1 above 1\): the first is 2.*layer=\"binary\""),
    (Bernoulli, 0.25, r"binary data.*\(1 not integers\)"),
    (Bernoulli, -1.0, r"binary data.*\(1 negative\)"),
    (Gaussian, -0.1, r"numbers from 0 up.*\(1 negative\).*Gaussian\(log1p=False\)"),
]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("likelihood", "value", "said"), REFUSED)
def test_the_model_refuses_what_its_likelihood_cannot_have(adata, stored, likelihood, value, said):
    register_quietly(with_value(adata, value, stored))
    given = None if likelihood is None else likelihood()
    with pytest.raises(ValueError, match=said) as error:
        ContrastiveVI(adata, likelihood=given, **SMALL)
    assert "cell '7', gene '4'" in str(error.value)
    assert "1 of its values are not" in str(error.value)


@pytest.mark.parametrize("stored", STORED)
def test_advice_names_the_place_where_counts_are(adata, stored):
    counts = STORED[stored](adata.X.toarray())
    adata.layers["logs"] = np.log1p(adata.X.toarray())
    adata.X = adata.layers["logs"].copy()

    def said() -> str:
        with pytest.warns(UserWarning, match="does not hold raw counts") as warned:
            ContrastiveVI.setup_anndata(adata, **KEYS)
        with pytest.raises(ValueError, match="must hold raw counts") as error:
            ContrastiveVI(adata, **SMALL)
        advice = where_counts_are(adata)
        assert advice in str(warned[0].message)
        assert advice in str(error.value)
        return advice

    assert said().startswith(
        "In this AnnData none of the layers ['logs', 'scale', 'untreated'] holds raw counts"
    )
    adata.raw = ad.AnnData(counts, obs=adata.obs, var=adata.var)
    line = 'adata.layers["counts"] = adata.raw[:, adata.var_names].X'
    assert line in said()
    assert 'setup_anndata(adata, layer="counts")' in said()
    exec(line, {"adata": adata})  # what it says is so
    assert "adata.layers['counts'] holds integers" in said()
    ContrastiveVI.setup_anndata(adata, layer="counts", **KEYS)
    ContrastiveVI(adata, **SMALL)


def test_no_matrix_says_where_counts_are(adata):
    adata.layers["umi"] = adata.X.copy()
    adata.X = None
    with pytest.raises(ValueError, match=r"adata.X is empty.*layer=\"umi\""):
        ContrastiveVI.setup_anndata(adata, **KEYS)
    adata.raw = ad.AnnData(adata.layers.pop("umi"), obs=adata.obs, var=adata.var)
    with pytest.raises(ValueError, match=r"adata.X is empty. adata.raw holds integers"):
        ContrastiveVI.setup_anndata(adata, **KEYS)
    del adata.raw, adata.layers["scale"], adata.layers["untreated"]
    with pytest.raises(ValueError, match=r"no layer holds raw counts, and there is no adata.raw"):
        ContrastiveVI.setup_anndata(adata, **KEYS)


def test_raw_without_some_of_the_genes_is_not_advised(adata):
    adata.raw = ad.AnnData(adata.X[:, :4], obs=adata.obs, var=adata.var.iloc[:4])
    assert "adata.raw does not hold those of its genes" in where_counts_are(adata)


@pytest.mark.parametrize("made", [lambda a: a.to_df(), lambda a: a.X.toarray(), lambda a: None])
def test_only_an_anndata_can_be_set_up(adata, made):
    for call in (lambda a: ContrastiveVI.setup_anndata(a, **KEYS), ContrastiveVI):
        with pytest.raises(TypeError, match=r"An AnnData .* is needed, not a .*AnnData\(counts"):
            call(made(adata))


def test_how_many_of_each_kind(adata):
    x = adata.X.toarray()
    x[0, :3], x[5, 1:3] = -2.0, 0.25
    adata.X = x
    register_quietly(adata)
    with pytest.raises(ValueError, match=r"5 of its values are not \(3 negative, 2 not integers\)"):
        ContrastiveVI(adata, **SMALL)


def test_zeros_that_are_not_stored_count_too(adata):
    x = np.full(adata.shape, 0.5, dtype=np.float32)
    x[3, 2] = x[4, 4] = 0
    adata.X = sp.csr_matrix(x)
    register_quietly(adata)
    with pytest.raises(ValueError, match=r"GreaterThan.*Gamma.*2 of its values are zeros"):
        ContrastiveVI(adata, likelihood=Gamma(), **SMALL)
    adata.X = x
    with pytest.raises(ValueError, match=r"2 of its values are not \(2 outside of it\)"):
        ContrastiveVI(adata, likelihood=Gamma(), **SMALL)


QUERIES = {
    "latents": lambda m, a: m.get_latent_representation(a),
    "expression": lambda m, a: m.get_normalized_expression(a),
    "effects": lambda m, a: m.get_treatment_effect(a),
    "counterfactuals": lambda m, a: m.get_counterfactual_expression("control", a),
    "differences": lambda m, a: m.differential_expression(a, groupby="condition"),
    "elbo": lambda m, a: m.get_elbo(a),
    "marginal": lambda m, a: m.get_marginal_ll(a, n_mc_samples=2),
    "library": lambda m, a: m.get_latent_library_size(a),
}


@pytest.mark.parametrize("query", QUERIES)
def test_query_data_are_checked_too(adata, query):
    ContrastiveVI.setup_anndata(adata, **KEYS)
    model = ContrastiveVI(adata, likelihood=Poisson(), **SMALL)
    with pytest.raises(ValueError, match=r"Poisson.*cell '7', gene '4'"):
        QUERIES[query](model, with_value(adata.copy(), 0.5))


def test_data_given_on_loading_or_changed_before_training_are_checked(adata, tmp_path):
    ContrastiveVI.setup_anndata(adata, **KEYS)
    model = ContrastiveVI(adata, likelihood=Poisson(), **SMALL)
    model.save(tmp_path / "m")
    bad = with_value(adata.copy(), -3.0)
    with pytest.raises(ValueError, match=r"Poisson.*the first is -3, cell '7', gene '4'"):
        ContrastiveVI.load(tmp_path / "m", adata=bad)
    with_value(adata, -3.0)
    with pytest.raises(ValueError, match=r"Poisson.*the first is -3"):
        model.train(max_epochs=1, enable_progress_bar=False)


def test_counts_for_a_gaussian_are_warned_of(adata):
    ContrastiveVI.setup_anndata(adata, **KEYS)
    with pytest.warns(
        UserWarning, match=r"Gaussian is not .* every value of adata.X is an integer"
    ):
        ContrastiveVI(adata, likelihood=Gaussian(), **SMALL)


def test_a_gaussian_has_no_library_size(adata):
    adata.layers["logs"] = np.log1p(adata.X.toarray())
    adata.obs["factor"] = 1.0
    register_quietly(adata, layer="logs")
    with pytest.raises(ValueError, match="Gaussian has no library size that could be latent"):
        ContrastiveVI(adata, likelihood=Gaussian(), use_observed_lib_size=False, **SMALL)
    with pytest.raises(ValueError, match="Gaussian has no library size that could be latent"):
        make_vae(likelihood=Gaussian(), latent_library=True)
    register_quietly(adata, layer="logs", size_factor_key="factor")
    with pytest.raises(ValueError, match=r"size_factor_key, but Gaussian has no library size"):
        ContrastiveVI(adata, likelihood=Gaussian(), **SMALL)


@pytest.mark.parametrize(
    ("likelihood", "value", "said"),
    [
        (NegativeBinomial, -2.0, r"down to -2.*NegativeBinomial see log\(1 \+ x\)"),
        (NegativeBinomial, 0.5, r"site 'x'.*support \(IntegerGreaterThan"),
        (Poisson, 0.5, r"site 'x'.*support \(IntegerGreaterThan"),
        (ZeroInflatedPoisson, -0.5, r"site 'x'.*support \(IntegerGreaterThan"),
        (Bernoulli, 2.0, r"site 'x'.*support \(Boolean"),
    ],
)
def test_tensors_are_checked_by_the_programs(likelihood, value, said):
    vae, batch = make_vae(likelihood=likelihood()), make_batch()
    batch.x[:] = (batch.x > 0).float()
    vae.objective.loss(vae.model, vae.guide, batch)
    batch.x[0, 0] = value
    with pytest.raises(ValueError, match=re.compile(said, re.DOTALL)):
        vae.objective.loss(vae.model, vae.guide, batch)


def test_populations_given_to_train_are_recognised_whatever_the_order_of_the_sum(adata):
    rng = np.random.default_rng(0)
    adata.X = np.exp(rng.normal(0, 3, adata.shape)).astype(np.float32)
    register_quietly(adata, condition_key=None, background=None)
    model = ContrastiveVI(adata, likelihood=Gaussian(), **SMALL)
    model.train(range(10), range(10, 22), max_epochs=1, train_size=0.5, enable_progress_bar=False)
    turned = adata.copy()
    turned.X = sp.csr_matrix(turned.X)
    with_s, without = (
        model.get_specific_normalized_expression(turned, expression_type=kind, seed=0).to_numpy()
        for kind in ("salient", "background")
    )
    np.testing.assert_array_equal(with_s[:10], without[:10])
    assert (with_s[10:] != without[10:]).any(axis=1).all()
    assert np.isfinite(with_s).all()


def test_read_only_data_are_taken_and_not_written_to(adata):
    """As those of a data frame in pandas 3, or of a memory-mapped file."""
    logs = np.log1p(adata.X.toarray())
    logs.flags.writeable = False
    adata.X = logs
    register_quietly(adata)
    model = ContrastiveVI(adata, likelihood=Gaussian(), **SMALL)
    model.train(max_epochs=1, enable_progress_bar=False)
    assert np.isfinite(model.get_latent_representation()).all()
    # torch would warn, once in a process only: hence its cause is looked for.
    assert not np.shares_memory(tensor_of(logs).numpy(), logs)
    writable = logs.copy()
    assert np.shares_memory(tensor_of(writable).numpy(), writable)
