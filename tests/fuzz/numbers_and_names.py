"""Odd values for every argument of every method of a model, by the kind of the argument."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from cells import cells
from outcomes import Case

from pyro_contrastive import ContrastiveVI

NAN = float("nan")
DAY = datetime.date(2024, 1, 31)
FRAME = pd.DataFrame({"a": [1, 2]})
N_CELLS = 40

WHOLE = (1.5, "3", NAN, [2], -1, FRAME)
COUNT = (0, *WHOLE)
VALUES: dict[str, tuple[Any, ...]] = {
    "count": COUNT,
    "whole": WHOLE,
    "flag": ("no", 2, [True], 0.5),
    "share": (-0.1, 1.5, "x", NAN, [0.5]),
    "positive": (-1.0, "x", NAN, float("inf"), [1.0]),
    "seed": (-1, 2**64, 1.5, "a", [0]),
    "refine": (0, -3, 1.5, "yes", [1]),
    "library": (-1, 0, NAN, "nope", [1e4], float("inf")),
    "cells": (
        *([0.5], ["a"], [[0, 1]], [10**6], [-(10**6)], 2.5, "abc", 3, {"a": 1}, [1 + 2j], [DAY]),
        np.ones(7, bool),
        np.zeros((N_CELLS, 2), bool),
        np.ma.masked_array([0, 1], mask=[True, False]),
        np.array([0.0, 1.0, NAN]),
        pd.DataFrame({"m": np.ones(N_CELLS, bool)}),
        pd.Series(np.ones(N_CELLS, bool), index=[f"other{i}" for i in range(N_CELLS)]),
        sp.csr_matrix(np.ones((N_CELLS, 1), bool)),
        slice(0, 0.5),
        [None, 1],
    ),
    "genes": ("gene0", ["nope"], [1.5], [["gene0"]], FRAME, [None], 3, ["gene0", "gene0"]),
    "adata": (FRAME, np.ones((3, 15)), "file.h5ad", 3, [1], {"X": 1}),
    "level": ("nope", 1.5, [["a"]], FRAME, DAY, NAN, {"a": 1}, ""),
    "key": ("nope", 3, FRAME, 1.5, DAY, ["nope"], pd.Series(["a"] * N_CELLS), ""),
    "choice": ("nope", 3, ["salient"], 1.5, FRAME),
    "mapping": ({"nope": 1}, ["age"], "age", 3, {"age": "old"}, {"age": NAN}, {"site": "nope"}),
    "function": (3, "nope", [1]),
}
KINDS: dict[str, str] = {
    name: kind
    for kind, names in {
        "count": "batch_size n_samples n_samples_overall n_mc_samples n_draws n_chains n_steps "
        "n_simulations n_permutations n_shuffles n_cells n_khat_cells n_folds max_epochs "
        "check_val_every_n_epoch m_permutation",
        "whole": "nuts_cells calibration_cells fewest_counts fewest_cells strata "
        "early_stopping_warmup_epochs early_stopping_patience n_warmup",
        "flag": "silent give_mean return_mean return_numpy all_stats batch_correction by_stratum "
        "predictive prior sparse nuts shuffle_set_split load_sparse_tensor enable_progress_bar "
        "early_stopping overwrite save_anndata fill_missing",
        "share": "interval fdr_target train_size validation_size",
        "positive": "delta pseudocount early_stopping_min_delta lfc_threshold threshold",
        "seed": "seed",
        "refine": "refine",
        "library": "library_size",
        "cells": "indices idx1 idx2 target_idx indices_to_return_salient background_indices "
        "target_indices",
        "genes": "gene_list correlation_genes",
        "adata": "adata",
        "level": "condition transform_batch group1 group2 treatment batchid1 batchid2",
        "key": "groupby labels_key sample_key labels_keys within",
        "choice": "representation_kind mode quantity salient_source expression_type log_likelihood "
        "method schedule precision early_stopping_mode early_stopping_monitor accelerator "
        "test_mode",
        "mapping": "transform_covariates",
        "function": "functions statistics change_fn",
    }.items()
    for name in names.split()
}

QUICK: dict[str, dict[str, Any]] = {
    "cross_fit": {"n_folds": 2, "silent": True},
    "null_check": {"n_shuffles": 1, "silent": True},
    "diagnose": {"n_cells": 20, "n_khat_cells": 2, "n_permutations": 2, "silent": True},
    "differential_expression": {"groupby": "condition", "n_samples_overall": 20, "silent": True},
    "get_counterfactual_expression": {"condition": "control", "n_samples": 2},
    "get_group_effects": {"n_samples": 2},
    "get_marginal_ll": {"n_mc_samples": 5},
    "get_specific_normalized_expression": {"expression_type": "salient"},
    "get_treatment_effect": {"n_samples": 40, "refine": False},
    "leakage": {"labels_keys": "cell_type", "n_permutations": 2},
    "pareto_k": {"n_samples": 25},
    "posterior_accuracy": {"n_samples": 30, "nuts": False, "indices": [0, 1]},
    "posterior_predictive_check": {"n_samples": 20},
    "refine_posterior": {"n_steps": 2},
    "score_latents": {"labels_key": "cell_type"},
    "simulation_based_calibration": {"n_simulations": 30, "n_draws": 5},
    "to_arviz": {"n_samples": 2},
    "train": {"max_epochs": 1, "enable_progress_bar": False},
}
LEFT_OUT = {"setup_anndata", "from_preset", "from_scvi", "load", "save", "get_setup_arg"}
LEFT_OUT |= {"view_anndata_setup", "view_setup_args", "to_device"}
# Arguments whose values above may be right for some methods, and other names for them.
HARMLESS = {
    ("whole", -1): {"early_stopping_patience"},
    ("level", ""): set(),
}


def arguments_of(method: str) -> Iterator[str]:
    """Names of the arguments of a method that have a kind."""
    names = inspect.signature(getattr(ContrastiveVI, method)).parameters
    yield from (name for name in names if name in KINDS)
    if method == "differential_expression":
        yield from ("n_samples_overall", "fewest_counts", "test_mode", "change_fn", "pseudocounts")


def odd_arguments(model: Callable[[], ContrastiveVI]) -> Iterator[Case]:
    """Yield a case for every method, argument and odd value of its kind."""
    for method in sorted(vars_of(ContrastiveVI)):
        if method in LEFT_OUT:
            continue
        for name in arguments_of(method):
            kind = KINDS.get(name, "positive")
            for value in VALUES[kind]:
                if (method, name, repr(value)[:9]) in FINE:
                    continue
                given = _given(method, name, value)
                yield Case(
                    method,
                    f"{name}={_text(value)}",
                    _call(model, method, given),
                    words=(name, *OTHER_WORDS.get(name, ())),
                )


FINE = {
    # A number of clusters, or NumPy's way to count from the end.
    ("get_group_effects", "labels_key", "''"),
}
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "adata": ("AnnData",),
    "early_stopping_monitor": ("monitor", "Early stopping"),
    "accelerator": ("accelerator",),
    "labels_keys": ("labels_key",),
    "groupby": ("groupby", "adata.obs"),
    "labels_key": ("adata.obs",),
    "sample_key": ("adata.obs",),
    "within": ("adata.obs",),
    "train_size": ("train_size",),
    "condition": ("condition",),
    "functions": ("function", "statistic"),
    "statistics": ("statistic",),
    "treatment": ("treatment",),
    "strata": ("strata", "adata.obs"),
    "group1": ("group",),
    "group2": ("group",),
    "target_indices": ("background_indices",),
    "background_indices": ("target_indices",),
}


def _given(method: str, name: str, value: Any) -> dict[str, Any]:
    given = dict(QUICK.get(method, {}))
    if name in {"idx1", "idx2", "target_idx"}:
        given.pop("groupby", None)
        given["idx1"] = [0, 1]
    if name in {"batchid1", "batchid2"}:
        given["batch_correction"] = True
    if name in {"group1", "group2"}:
        given |= {"group1": "treated", "group2": "control"}
    if name == "background_indices":
        given["target_indices"] = np.arange(20, 40)
    if name == "target_indices":
        given["background_indices"] = np.arange(20)
    if name == "early_stopping_monitor" or name.startswith("early_stopping_"):
        given |= {"early_stopping": True, "max_epochs": 3}
        given["plan_kwargs"] = {"n_epochs_kl_warmup": 0}
    if name in {"lfc_threshold", "strata", "sample_key"} and method == "differential_expression":
        given.pop("n_samples_overall", None)
        given["mode"] = "means"
    if name == "salient_source" and method != "get_counterfactual_expression":
        given["condition"] = "control"
    if method == "prepare_query_anndata" and name != "adata":
        given["adata"] = cells()
    return given | {name: value}


def _call(
    model: Callable[[], ContrastiveVI], method: str, given: dict[str, Any]
) -> Callable[[], Any]:
    def call() -> Any:
        result = getattr(model(), method)(**given)
        return list(result) if inspect.isgenerator(result) else result

    return call


def vars_of(cls: type) -> list[str]:
    """Names of the public methods of a class."""
    return [
        name
        for name in dir(cls)
        if not name.startswith("_") and inspect.isfunction(inspect.getattr_static(cls, name))
    ]


def _text(value: Any) -> str:
    if isinstance(value, ad.AnnData | pd.DataFrame | pd.Series | sp.spmatrix | np.ndarray):
        return f"<{type(value).__name__} {value.shape}>"
    return repr(value)[:40]
