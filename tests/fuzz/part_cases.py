"""Odd sizes, parts and settings of a model and its training; empty selections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import scipy.sparse as sp
from cells import N_CELLS, N_GENES, SMALL, fresh, model, set_up, trained
from outcomes import Case

import pyro_contrastive as pc
from pyro_contrastive import ContrastiveVI

NAN = float("nan")
SIZES = (0, -1, 1.5, "3", NAN, [2], 10**12, True)
SHARES = (-0.1, 1.0, 1.5, "x", NAN, [0.5])
WEIGHTS = (-1.0, "x", NAN, float("inf"), [1.0])
ODD_PARTS = ("nope", 3, object(), dict, [1])


def constructor() -> Iterator[Case]:
    """Yield cases of the constructor and of presets."""
    values: dict[str, tuple[Any, ...]] = {
        "n_hidden": SIZES,
        "n_background_latent": SIZES,
        "n_salient_latent": SIZES,
        "n_layers": SIZES,
        "n_layers_decoder": SIZES[1:],
        "dropout_rate": SHARES,
        "use_observed_lib_size": ("no", 2, [True]),
        "wasserstein_penalty": WEIGHTS,
        "likelihood": (*ODD_PARTS, pc.Poisson, dist.Poisson(1.0)),
        "background_prior": (*ODD_PARTS, pc.StandardNormal, dist.Uniform(0.0, 1.0)),
        "salient_prior": (*ODD_PARTS, pc.VampPrior(7), pc.MixtureOfGaussians(7)),
        "library_prior": (*ODD_PARTS, dist.Normal(0.0, 1.0)),
        "dispersion_prior": (*ODD_PARTS, dist.Normal(0.0, 1.0)),
        "dispersion_posterior": ("nope", 3, None),
        "guide": (*ODD_PARTS, pc.FlowGuide),
        "penalties": (*ODD_PARTS, pc.MMD(1.0), [pc.MMD], [pc.MMD(1.0), pc.MMD(2.0)], ["mmd"]),
        "elbo": ("nope", 3, pc.ContrastiveELBO),
        "elbo_kwargs": (3, [1], {"nope": 1}, {"num_particles": 0}, {"num_particles": 1.5}),
        "nope": (3,),
    }
    words = {
        "elbo_kwargs": ("num_particles", "nope"),
        "penalties": ("name",),
        "salient_prior": ("VampPrior", "MixtureOfGaussians"),
        "background_prior": ("Uniform",),
    }
    for name, odd in values.items():
        for value in odd:
            if name == "dispersion_posterior" and value is None:
                continue
            yield Case(
                "constructor",
                f"{name}={value!r:.40}",
                lambda name=name, value=value: fresh(**{name: value}),
                (name, *words.get(name, ())),
                "error",
            )
    for preset in ("nope", 3, None, ["separated"], "seperated", ""):
        yield Case(
            "from_preset",
            f"preset={preset!r}",
            lambda preset=preset: ContrastiveVI.from_preset(set_up(), preset),
            ("preset",),
        )
    for name in ("n_background_latent", "n_salient_latent", "n_hidden"):
        for value in SIZES:
            yield Case(
                "from_preset",
                f"{name}={value!r:.40}",
                lambda name=name, value=value: ContrastiveVI.from_preset(
                    set_up(), "separated", **{name: value}
                ),
                (name, "n_latent", "rank"),
            )


ODD_ARGUMENTS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "MixtureOfGaussians": (pc.MixtureOfGaussians, {"n_latent": 2}, {"n_components": SIZES}),
    "StandardNormal": (pc.StandardNormal, {}, {"n_latent": SIZES}),
    "VampPrior": (pc.VampPrior, {"n_input": 15}, {"n_components": SIZES, "n_input": SIZES}),
    "NormalizingFlowPrior": (
        pc.NormalizingFlowPrior,
        {"n_latent": 2},
        {"n_flows": SIZES, "n_hidden": SIZES, "n_latent": SIZES},
    ),
    "SparseSalient": (pc.SparseSalient, {"n_latent": 2}, {"min_scale": SHARES, "n_latent": SIZES}),
    "EscapingPerturbation": (
        pc.EscapingPerturbation,
        {"n_conditions": 2, "n_latent": 2},
        {"escape_scale": SHARES, "n_conditions": SIZES, "n_latent": SIZES},
    ),
    "PerConditionNormal": (
        pc.PerConditionNormal,
        {"n_conditions": 2, "n_latent": 2},
        {"n_conditions": SIZES, "n_latent": SIZES},
    ),
    "PrivateSalient": (
        pc.PrivateSalient,
        {"n_conditions": 3, "n_latent": 2},
        {"n_conditions": SIZES, "n_latent": SIZES},
    ),
    "FixedPrior": (
        pc.FixedPrior,
        {"distribution": dist.Normal(0.0, 1.0), "n_latent": 2},
        {"distribution": ODD_PARTS, "n_latent": SIZES},
    ),
    "LogNormalLibrary": (
        pc.LogNormalLibrary,
        {"log_means": [1.0], "log_variances": [1.0]},
        {"log_means": ("x", [NAN], [1.0, 2.0]), "log_variances": ([-1.0], [NAN], "x")},
    ),
    "NegativeBinomial": (pc.NegativeBinomial, {}, {"dispersion": ("nope", 3, None, ["gene"])}),
    "ZeroInflatedNegativeBinomial": (
        pc.ZeroInflatedNegativeBinomial,
        {},
        {"dispersion": ("nope", 3, None)},
    ),
    "AdditivePoisson": (pc.AdditivePoisson, {}, {"nope": (1,)}),
    "Gaussian": (pc.Gaussian, {}, {"log1p": ("no", 2, None)}),
    "Wasserstein": (pc.Wasserstein, {}, {"weight": WEIGHTS, "annealed": ("no", 2)}),
    "MMD": (pc.MMD, {}, {"weight": WEIGHTS, "site": ("nope", 3, None), "annealed": ("no", 2)}),
    "HSIC": (pc.HSIC, {}, {"weight": WEIGHTS, "annealed": ("no", 2)}),
    "NarrowSalient": (pc.NarrowSalient, {}, {"weight": WEIGHTS, "sigma": (0, *WEIGHTS)}),
    "LateSalient": (pc.LateSalient, {}, {"weight": WEIGHTS, "n_steps": SIZES[:6]}),
    "ShrinkMeans": (
        pc.ShrinkMeans,
        {"cells_per_condition": [20, 20]},
        {
            "weight": WEIGHTS,
            "site": ("nope", 3),
            "cells_per_condition": (3, "x", [NAN], [-1, 2], [], [1.5, 2.5]),
        },
    ),
    "TotalCorrelation": (
        pc.TotalCorrelation,
        {},
        {"weight": WEIGHTS, "n_hidden": SIZES, "n_layers": SIZES, "gain": (0, *WEIGHTS)},
    ),
    "SalientClassifier": (
        pc.SalientClassifier,
        {},
        {"weight": WEIGHTS, "n_salient_latent": SIZES},
    ),
    "FlowGuide": (pc.FlowGuide, {}, {"n_flows": SIZES, "n_hidden": SIZES}),
    "LowRankGuide": (pc.LowRankGuide, {}, {"rank": SIZES}),
}


def parts() -> Iterator[Case]:
    """Yield cases of the arguments of priors, likelihoods, penalties and guides."""
    for name, (make, given, odd) in ODD_ARGUMENTS.items():
        for argument, values in odd.items():
            for value in values:
                yield Case(
                    "parts",
                    f"{name}({argument}={value!r:.40})",
                    lambda make=make, given=given, a=argument, v=value: make(**(given | {a: v})),
                    (
                        argument,
                        "dispersion",
                        "distribution",
                        "library size",
                        "number of treatments",
                    ),
                )


PLAN: dict[str, tuple[Any, ...]] = {
    "lr": (0, *WEIGHTS),
    "eps": (0, *WEIGHTS),
    "weight_decay": WEIGHTS,
    "n_epochs_kl_warmup": (-1, 1.5, "3", [1]),
    "n_steps_kl_warmup": (-1, 1.5, "3", [1]),
    "min_kl_weight": (2.0, *WEIGHTS),
    "max_kl_weight": WEIGHTS,
    "optimizer": ("nope", 3, "Custom", None),
    "optimizer_creator": (3, "nope"),
    "one_cycle": ("no", 2),
    "cycle_rise": SHARES,
    "reduce_lr_on_plateau": ("no", 2),
    "molecule_dropout": (-0.1, 1.0, "x", NAN),
    "record_steps": ("no", 2),
    "nope": (1,),
}


def training() -> Iterator[Case]:
    """Yield cases of the plan, the split and other arguments of `train`."""
    for name, values in PLAN.items():
        for value in values:
            yield Case(
                "train",
                f"plan_kwargs {name}={value!r:.40}",
                lambda name=name, value=value: trained(plan_kwargs={name: value}),
                (name,),
            )
    for name, value in {
        "plan_kwargs": 3,
        "datasplitter_kwargs": 3,
        "trainer_kwargs": {"a": 1},
        "max_epoch": 3,
        "devices": "nope",
        "load_sparse_tensor": True,
    }.items():
        yield Case("train", f"{name}={value!r}", lambda n=name, v=value: trained(**{n: v}), (name,))
    everything, mask = np.arange(N_CELLS), np.arange(N_CELLS) % 4 > 0
    held = np.flatnonzero(~mask)
    splits: dict[str, tuple[Any, Any]] = {
        "masks": ([mask, ~mask, np.zeros(N_CELLS, bool)], "either"),
        "positions": ([np.flatnonzero(mask), held], "either"),
        "floats": ([np.flatnonzero(mask).astype(float), held.astype(float)], "error"),
        "negative": ([np.flatnonzero(mask) - N_CELLS, held], "either"),
        "too large": ([everything + 5, []], "error"),
        "overlapping": ([everything, held], "error"),
        "twice": ([[0, 0, 1, 20, 21], held], "error"),
        "names": ([[f"cell{i}" for i in range(40)], []], "error"),
        "2-D": ([everything.reshape(2, 20), []], "error"),
        "one array": (everything, "error"),
        "frame": (pd.DataFrame({"a": everything}), "error"),
        "frames": ([pd.DataFrame({"a": everything}), []], "error"),
        "four": ([everything, [], [], []], "error"),
        "empty": ([], "error"),
        "empty training": ([[], held], "error"),
        "None": ([None, held], "error"),
        "sparse": ([sp.csr_matrix(mask[:, None]), held], "error"),
        "a text": ("train", "error"),
        "one population": ([np.arange(20), np.arange(20, 40)], "error"),
        "a mask too short": ([mask[:10], held], "error"),
        "zeros and ones": ([mask.astype(int), (~mask).astype(int)], "error"),
    }
    for name, (given, expect) in splits.items():
        yield Case(
            "train",
            f"external_indexing {name}",
            lambda given=given: trained(datasplitter_kwargs={"external_indexing": given}),
            ("external_indexing", "population"),
            expect,
        )
    yield Case(
        "train",
        "Gaussian on raw counts",
        lambda: fresh(likelihood=pc.Gaussian(log1p=False)).train(
            max_epochs=30, enable_progress_bar=False, plan_kwargs={"lr": 1.0}
        ),
        ("Gaussian", "lr"),
        "either",
    )


def _rows(n: int) -> Callable[[Any], bool]:
    return lambda found: found.shape[0] == n


def _none(axis: int, *rest: int) -> Callable[[Any], bool]:
    shape = (*rest[:axis], 0, *rest[axis:])
    return lambda found: np.shape(found) == shape


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda found: all(check(each) for each in found.values())


EMPTY: dict[str, tuple[dict[str, Any], Any]] = {
    "get_latent_representation": ({}, _none(0, 2)),
    "get_latent_representation ": ({"give_mean": False, "seed": 0}, _none(0, 2)),
    "get_latent_library_size": ({}, lambda found: np.shape(found)[0] == 0),
    "get_normalized_expression": ({}, _all(_none(0, N_GENES))),
    "get_normalized_expression ": (
        {"n_samples": 2, "return_mean": False},
        _all(_none(1, 2, N_GENES)),
    ),
    "get_normalized_expression  ": ({"n_samples": 2}, _all(_none(0, N_GENES))),
    "get_salient_normalized_expression": ({"n_samples": 2}, _none(0, N_GENES)),
    "get_salient_normalized_expression ": (
        {"n_samples": 3, "return_mean": False},
        _none(1, 3, N_GENES),
    ),
    "get_specific_normalized_expression": (
        {"expression_type": "background", "n_samples": 2},
        _none(0, N_GENES),
    ),
    "get_counterfactual_expression": ({"condition": "control"}, _none(0, N_GENES)),
    "get_counterfactual_expression ": (
        {"condition": "control", "n_samples": 2, "return_mean": False},
        _none(1, 2, N_GENES),
    ),
    "get_treatment_effect": ({"n_samples": 40}, _all(_none(0, N_GENES))),
    "get_elbo": ({"return_mean": False}, _none(0)),
    "get_reconstruction_error": ({"return_mean": False}, _all(_none(0))),
    "get_marginal_ll": ({"n_mc_samples": 5, "return_mean": False}, _none(0)),
    "posterior_predictive_sample": ({"n_samples": 2}, _none(1, 2, N_GENES)),
    "posterior_predictive_sample ": (
        {"n_samples": 2, "sparse": True},
        lambda found: [each.shape for each in found] == [(0, N_GENES)] * 2,
    ),
    "prior_predictive_sample": ({"n_samples": 2}, _none(1, 2, N_GENES)),
    "iterate_posterior_predictive": ({"n_samples": 2}, lambda found: list(found) == []),
    "pareto_k": ({"n_samples": 25}, _rows(0)),
}
NO_CELLS = ("selects no cells", "no cells", "no background cells", "no target cells")
SUMMARIES: dict[str, dict[str, Any]] = {
    "get_elbo": {},
    "get_reconstruction_error": {},
    "get_marginal_ll": {"n_mc_samples": 5},
    "refine_posterior": {"n_steps": 1},
    "get_latent_usage": {},
    "latent_signal": {},
    "leakage": {"labels_keys": "cell_type", "n_permutations": 2},
    "score_latents": {"labels_key": "cell_type"},
    "diagnose": {"n_cells": 20},
    "posterior_predictive_check": {"n_samples": 20},
    "posterior_accuracy": {"nuts": False},
    "simulation_based_calibration": {"n_simulations": 30, "n_draws": 5},
    "to_arviz": {"n_samples": 2},
    "get_group_effects": {"n_samples": 2},
}
NOTHING: tuple[Any, ...] = ([], np.zeros(N_CELLS, bool), np.array([]), pd.Series([], dtype=int))


def empty_selections() -> Iterator[Case]:
    """Yield cases of no cells and no genes."""
    for indices in NOTHING:
        text = f"indices=<empty {type(indices).__name__}>"
        for name, (given, expect) in EMPTY.items():
            method = name.strip()
            yield Case(
                "empty", f"{method} {text} {given}", _ask(method, given, indices), (), expect
            )
        for method, given in SUMMARIES.items():
            yield Case("empty", f"{method} {text}", _ask(method, given, indices), NO_CELLS)
        for given in ({"idx1": indices}, {"idx1": [0], "idx2": indices}):
            for mode in ("change", "vanilla", "means"):
                kwargs = {**given, "mode": mode, "silent": True}
                yield Case(
                    "empty",
                    f"differential_expression {mode} {sorted(given)} {text}",
                    lambda k=kwargs: model().differential_expression(**k),
                    ("cells", "idx"),
                )
    for method in ("get_normalized_expression", "get_salient_normalized_expression"):
        yield Case(
            "empty",
            f"{method} gene_list=[]",
            lambda method=method: getattr(model(), method)(gene_list=[]),
            ("gene_list",),
            lambda found: all(
                np.shape(each) == (N_CELLS, 0)
                for each in (found.values() if isinstance(found, dict) else [found])
            ),
        )
    yield Case(
        "empty",
        "posterior_predictive_sample gene_list=[]",
        lambda: model().posterior_predictive_sample(gene_list=[]),
        ("gene_list",),
        lambda found: found.shape == (1, N_CELLS, 0),
    )


def _ask(method: str, given: dict[str, Any], indices: Any) -> Callable[[], Any]:
    def call() -> Any:
        result = getattr(model(), method)(**given, indices=indices)
        return list(result) if method.startswith("iterate") else result

    return call


__all__ = ["SMALL", "constructor", "empty_selections", "parts", "training"]
