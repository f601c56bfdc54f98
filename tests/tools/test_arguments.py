"""Numbers and flags are checked by the name of the argument, with one wording."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pandas as pd
import pytest

import pyro_contrastive as pc
from pyro_contrastive import ContrastiveVI
from pyro_contrastive._tools.arguments import (
    ARGUMENTS,
    Flag,
    Instance,
    Number,
    OneOf,
    Whole,
    check_arguments,
    check_path,
    shown,
)

REFUSED = [
    (Whole(), 0, "at least 1, not 0"),
    (Whole(), 1.5, "a whole number, not 1.5"),
    (Whole(), 2.0, "a whole number, not 2.0"),
    (Whole(), True, "a whole number, not True"),
    (Whole(), "3", "a whole number, not '3'"),
    (Whole(), None, "a whole number, not None"),
    (Whole(), math.nan, "a whole number, not nan"),
    (Whole(or_none=True), [1], "a whole number or None, not [1]"),
    (Whole(0, 9), 10, "at most 9, not 10"),
    (Number(0), -0.1, "at least 0, not -0.1"),
    (Number(0), math.inf, "finite, not inf"),
    (Number(0), math.nan, "at least 0, not nan"),
    (Number(0), "1", "a number, not '1'"),
    (Number(0), False, "a number, not False"),
    (Number(0), 1j, "a number, not 1j"),
    (Number(0, low_closed=False), 0, "positive, not 0"),
    (Number(0, 1), 1.5, "from 0 to 1, not 1.5"),
    (Number(0, 1, low_closed=False, high_closed=False), 1, "between 0 and 1, not 1"),
    (Number(0, 1, high_closed=False), 1.0, "at least 0 and below 1, not 1.0"),
    (Number(0, 1, low_closed=False), 0, "above 0 and at most 1, not 0"),
    (Flag(), "no", "True or False, not 'no'"),
    (Flag(), 2, "True or False, not 2"),
    (Flag(), None, "True or False, not None"),
    (Flag(or_none=True), "no", "True, False or None, not 'no'"),
    (OneOf(("a", "b")), "c", "'a' or 'b', not 'c'"),
    (OneOf(("a", "b"), or_none=True), ["a"], "'a', 'b' or None, not ['a']"),
    (Instance(dict, "a dict"), 3, "a dict, not 3"),
]
ALLOWED = [
    (Whole(), np.int64(3)),
    (Whole(), np.uint8(3)),
    (Whole(or_none=True), None),
    (Number(0, 1), np.float32(0.5)),
    (Number(0, 1), 1),
    (Number(or_none=True), None),
    (Flag(), np.True_),
    (Flag(), 0),
    (OneOf(("a",)), "a"),
    (Instance(dict, "a dict", or_none=True), None),
]


@pytest.mark.parametrize(("rule", "value", "end"), REFUSED)
def test_what_is_refused_is_said(rule, value, end) -> None:
    with pytest.raises(ValueError, match=r"^n must be ") as error:
        check_arguments({"n": value, "unknown": object()}, n=rule)
    assert str(error.value) == f"n must be {end}."


@pytest.mark.parametrize(("rule", "value"), ALLOWED)
def test_what_is_allowed(rule, value) -> None:
    check_arguments({"n": value}, n=rule)


def test_long_values_are_described() -> None:
    assert shown(pd.DataFrame(np.zeros((30, 4)))) == "a DataFrame of shape (30, 4)"
    assert shown("x" * 100) == "a str"
    with pytest.raises(ValueError, match="Mine: n_samples must be a whole number, not a DataFrame"):
        check_arguments({"n_samples": pd.DataFrame({"a": [1, 2]})}, "Mine")


def test_paths(tmp_path) -> None:
    check_path("dir_path", tmp_path)
    check_path("dir_path", "here")
    with pytest.raises(TypeError, match=r"dir_path must be a path, .*, not 3"):
        check_path("dir_path", 3)


METHODS = [
    name
    for name, method in inspect.getmembers(ContrastiveVI, inspect.isfunction)
    if not name.startswith("_") and set(inspect.signature(method).parameters) & set(ARGUMENTS)
]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_checks_every_argument_that_has_a_rule(name) -> None:
    """The model is not even made: arguments are refused before anything is done."""
    model = object.__new__(ContrastiveVI)
    parameters = inspect.signature(getattr(model, name)).parameters
    needed = {
        key: None
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
    }
    for argument in set(parameters) & set(ARGUMENTS):
        with pytest.raises(ValueError, match=rf"^{argument} must be "):
            getattr(model, name)(**(needed | {argument: object()}))


def test_defaults_keep_the_rules() -> None:
    for name in METHODS:
        parameters = inspect.signature(getattr(ContrastiveVI, name)).parameters
        check_arguments({n: p.default for n, p in parameters.items() if p.default is not p.empty})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: pc.MixtureOfGaussians(2, 0),
            "Gaussians: n_components must be at least 1",
        ),
        (lambda: pc.VampPrior(10**9), "VampPrior: n_input must be at most 10,000,000"),
        (lambda: pc.Wasserstein("1"), "Wasserstein: weight must be a number, not '1'"),
        (lambda: pc.MMD(1.0, annealed="no"), "MMD: annealed must be True or False, not 'no'"),
        (lambda: pc.Gaussian(log1p="no"), "Gaussian: log1p must be True or False"),
        (lambda: pc.ShrinkMeans([1.5, 2]), "cells_per_condition must be a list of whole numbers"),
        (lambda: pc.LogNormalLibrary("x", [1.0]), "log_means must be numbers, one per batch"),
        (lambda: pc.ContrastiveVAE(5, dropout_rate=1.0), "dropout_rate must be at least 0 and bel"),
        (lambda: pc.ContrastiveVAE(5, elbo_kwargs=[1]), "elbo_kwargs must be a dict or None"),
        (lambda: pc.ContrastiveELBO(num_particles=1.5), "num_particles must be a whole number"),
    ],
)
def test_parts_name_themselves(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
