"""The verdicts of a diagnosis change where its texts say they do: at each threshold, both sides.

The numbers are those of the documented rules, not imported ones, so that none changes unnoticed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from diagnosis_helpers import GOOD, closeness, probe_of, table_of, usage

from pyro_contrastive.analysis.calibration import Calibration
from pyro_contrastive.analysis.diagnosis.measure import balanced_sample
from pyro_contrastive.analysis.diagnosis.measurements import GenesFound, Structure
from pyro_contrastive.analysis.diagnosis.posterior_findings import (
    accuracy_findings,
    calibration_finding,
)
from pyro_contrastive.analysis.diagnosis.salient_map import salient_map
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy
from pyro_contrastive.analysis.score_readings import READINGS, Reading


def still_falling(by: float) -> np.ndarray:
    """A fall of 1,000, of which the last tenth of the epochs brought `by`."""
    return np.concatenate([[1100.0], np.full(79, 500.0), np.full(10, 100.0 + by), np.full(10, 100)])


def risen(by: float) -> np.ndarray:
    """A fall of 1,000, and a rise by `by` since."""
    return np.concatenate([[1100.0], np.full(98, 100.0), [100.0 + by]])


# Row, what is changed to reach a value, and the value with the verdict on it.
EDGES: list[tuple[str, Callable[[float], dict[str, Any]], dict[float, str]]] = [
    (
        "use of the salient latent",
        lambda nats: {"salient_nats": nats},
        {0.99: "bad", 1.0: "look", 2.99: "look", 3.0: "good"},
    ),
    (
        "condition in z",
        lambda excess: {"condition_in_z": probe_of(excess)},
        {0.2: "good", 0.201: "look", 0.5: "look", 0.501: "bad"},
    ),
    (
        "donor in z",
        lambda excess: {"batch_in_z": {"donor": probe_of(excess)}},
        {0.2: "good", 0.201: "look", 0.5: "look", 0.501: "bad"},
    ),
    (
        "condition in s",
        lambda excess: {"condition_in_s": probe_of(excess)},
        {0.299: "bad", 0.3: "look", 0.799: "look", 0.8: "good"},
    ),
    (
        "cell_type in s",
        lambda excess: {"shared_in_s": {"cell_type": probe_of(excess)}},
        {0.3: "good", 0.301: "look", 0.6: "look", 0.601: "bad"},
    ),
    (
        "treatments in s",
        lambda excess: {"treatments_in_s": probe_of(excess)},
        {0.2: "look", 0.201: "good"},
    ),
    # A probe that does no better than the best of the shuffled labels has found nothing.
    (
        "treatments in s",
        lambda upper: {"treatments_in_s": probe_of(0.5) | {"upper_chance": upper}},
        {0.749: "good", 0.75: "look"},
    ),
    # Of 400 draws the threshold is 1 - 1 / log10(400) = 0.6157.
    (
        "pareto k",
        lambda k: {"guide": closeness(k)},
        {0.615: "good", 0.617: "look", 1.0: "look", 1.001: "bad"},
    ),
    (
        "pareto k, refined",
        lambda k: {"refined": closeness(k)},
        {0.615: "good", 0.617: "look", 1.0: "look", 1.001: "bad"},
    ),
    (
        "amortisation gap",
        lambda gap: {"refined": closeness(elbo=-301.0 + gap)},
        {1.0: "good", 1.01: "look", 5.0: "look", 5.01: "bad"},
    ),
    # A quarter of a nat, and one nat, for each of the 8 dimensions.
    (
        "looseness of the ELBO",
        lambda gap: {"refined": closeness(log_p=-301.0 + gap)},
        {2.0: "good", 2.01: "look", 8.0: "look", 8.01: "bad"},
    ),
    ("training", lambda by: {"elbo": still_falling(by)}, {10.0: "good", 10.1: "look"}),
    ("training", lambda by: {"elbo": risen(by)}, {30.0: "good", 30.1: "bad"}),
    (
        "unused background dimensions",
        lambda n: {"usage": usage(n_z=int(n))},
        {0: "bad", 1: "look", 2: "good", 4: "good"},
    ),
]
CASES = [
    pytest.param(row, change, value, verdict, id=f"{row} {value}")
    for row, change, verdicts in EDGES
    for value, verdict in verdicts.items()
]


@pytest.mark.parametrize(("row", "change", "value", "verdict"), CASES)
def test_a_verdict_changes_at_its_threshold(
    row: str, change: Callable[[float], dict[str, Any]], value: float, verdict: str
) -> None:
    assert table_of(**change(value)).loc[row, "verdict"] == verdict


def test_the_last_tenth_of_few_epochs_is_the_last_one() -> None:
    settled = np.array([1100.0, *[500.0] * 5, 150.0, 150.0, 100.0, 100.0])
    assert table_of(elbo=settled).loc["training", "verdict"] == "good"
    falling = np.array([1100.0, *[500.0] * 7, 150.0, 100.0])
    assert table_of(elbo=falling).loc["training", "verdict"] == "look"


@pytest.mark.parametrize(("by", "verdict"), [(30.0, "good"), (30.1, "bad")])
def test_weights_put_back_of_an_epoch_that_is_nearly_the_best_are_good(by, verdict) -> None:
    elbo = risen(100.0)
    elbo[60] += by
    found = table_of(elbo=elbo, restored_epoch=60).loc["training"]
    assert (found["value"], found["verdict"]) == (0.1, verdict)
    assert "the weights of epoch 60 were put back" in found["reading"]


def test_five_epochs_are_enough_to_say_whether_training_has_settled() -> None:
    assert "training" not in table_of(elbo=np.linspace(5, 1, 4)).index
    assert "training" in table_of(elbo=np.linspace(5, 1, 5)).index


@pytest.mark.parametrize(
    ("nats", "words"),
    [
        (3.0, "s adds 3.0 nats"),
        (0.05, "s adds only 0.1 nats"),
        (0.049, "s adds no measurable log-likelihood"),
        (-0.049, "s adds no measurable log-likelihood"),
        (-0.5, "s takes 0.5 nats from"),
    ],
)
def test_a_loss_without_s_is_not_given_with_a_minus_sign(nats: float, words: str) -> None:
    assert words in table_of(salient_nats=nats).loc["use of the salient latent", "reading"]


def test_what_s_adds_must_exceed_two_standard_errors() -> None:
    row = "use of the salient latent"
    for error, verdict in ((2.49, "good"), (2.5, "bad")):
        assert table_of(salient_nats=5.0, salient_nats_se=error).loc[row, "verdict"] == verdict
    unsure = {"salient_nats": 5.0, "salient_nats_se": 2.5}
    assert "no measurable" in table_of(**unsure).loc[row, "reading"]
    assert "has collapsed" in table_of(**unsure).loc["salient map", "reading"]
    lost = table_of(salient_nats=-5.0, salient_nats_se=2.5).loc[row, "reading"]
    assert "no measurable" in lost


def test_nothing_in_the_table_of_a_coin_toss_claims_a_response() -> None:
    """s may hold what both populations have, and a lucky probe is not better than shuffles."""
    nothing = {"condition_in_s": probe_of(0.0), "condition_in_x": probe_of(0.02)}
    table = table_of(salient_nats=20.0, salient_nats_se=1.0, **nothing)
    assert table.loc["salient map", "reading"].startswith("No response found.")
    use = table.loc["use of the salient latent"]
    assert (use["verdict"], "no response" in use["reading"]) == ("look", True)
    lucky = probe_of(0.4) | {"upper_chance": 0.75}
    table = table_of(condition_in_s=lucky, condition_in_x=lucky, shared_in_s={"type": lucky})
    assert table.loc["salient map", "reading"].startswith("No response found.")
    assert table.loc["condition in s", "verdict"] == "bad"
    assert "than shuffled labels" in table.loc["condition in s", "reading"]
    assert table.loc["type in s", "verdict"] == "good"


def test_a_weak_response_is_neither_found_nor_denied() -> None:
    """A probe that beats every shuffle by little; where none does, no response is found."""
    weak = {"condition_in_s": probe_of(0.0), "condition_in_x": probe_of(0.12)}  # 56 %, chance 55 %
    row = table_of(**weak).loc["salient map"]
    assert row["reading"].startswith("A weak response, if any")
    assert "null_check()" in row["advice"]
    none = {"condition_in_s": probe_of(0.0), "condition_in_x": probe_of(0.09)}
    assert table_of(**none).loc["salient map", "reading"].startswith("No response found.")


@pytest.mark.parametrize(
    ("n_found", "begins"), [(2, "No response found."), (3, "A weak response:")]
)
def test_a_response_of_the_means_is_not_denied(n_found: int, begins: str) -> None:
    """Whether s has collapsed or not; two genes may be two false discoveries."""
    genes = GenesFound(n_found, 299)
    unseen = {"condition_in_s": probe_of(0.0), "condition_in_x": probe_of(0.02), "genes": genes}
    for more in ({}, {"salient_nats": 0.1}, {"usage": usage(n_s=0)}):
        row = table_of(**unseen | more).loc["salient map"]
        assert row["reading"].startswith(begins)
        assert ("null_check()" in row["advice"]) == (n_found == 3)
        assert ("has collapsed" in row["reading"]) == bool(more)
    use = table_of(**unseen).loc["use of the salient latent", "reading"]
    assert ("no response" in use, "little of the response" in use) == (n_found < 3, n_found == 3)


def test_the_genes_have_a_row_that_says_what_the_replicates_were() -> None:
    row = "genes that differ"
    assert row not in table_of().index
    cells = table_of(genes=GenesFound(40, 299)).loc[row]
    assert (cells["value"], cells["verdict"]) == (40, "good")
    assert "40 of 299 genes differ" in cells["reading"]
    assert "cells as replicates" in cells["reading"]
    none = table_of(genes=GenesFound(0, 299, "donor")).loc[row]
    assert (none["value"], none["verdict"]) == (0, "look")
    assert none["reading"].startswith("No gene differs")
    assert "donors (donor) as replicates" in none["reading"]
    refused = table_of(genes=GenesFound(refused="There are too few donors.")).loc[row]
    assert np.isnan(refused["value"])
    assert refused["reading"] == "Not tested. There are too few donors."


@pytest.mark.parametrize(("n_used", "verdict"), [(2, "look"), (3, "good")])
def test_fewer_than_half_of_the_dimensions_in_use_are_few(n_used: int, verdict: str) -> None:
    five = pd.DataFrame({"latent": "background", "dimension": range(5), "used": range(5)})
    five["used"] = five["used"] < n_used
    both = pd.concat([five, usage().query("latent == 'salient'")])
    found = table_of(usage=both).loc["unused background dimensions"]
    assert (found["value"], found["verdict"]) == (5 - n_used, verdict)


def test_all_dimensions_used_and_some_to_spare_read_differently() -> None:
    row = "unused background dimensions"
    every = table_of(usage=usage(n_z=4)).loc[row]
    assert every["value"] == 0
    assert "All 4 dimensions" in every["reading"]
    assert "do no harm" in table_of(usage=usage(n_z=3)).loc[row, "reading"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"salient_nats": 0.99}, "has collapsed"),
        ({"salient_nats": 1.0}, "No blob"),
        ({"condition_in_s": probe_of(0.799)}, "in part"),
        ({"condition_in_s": probe_of(0.8)}, "No blob"),
        ({"condition_in_s": probe_of(0.3)}, "in part"),
        ({"condition_in_s": probe_of(0.299)}, "lie among the treated ones"),
        ({"structure": Structure(0.1, 2)}, "one cloud"),
        ({"structure": Structure(0.101, 2)}, "No blob"),
        ({"condition_in_s": probe_of(0.1), "structure": Structure(0.1, 2)}, "all look alike"),
        ({"condition_in_s": probe_of(0.1), "structure": Structure(0.101, 2)}, "about 2 groups"),
        ({"shared_in_s": {"type": probe_of(0.6)}}, "separates treated from background cells, and"),
        ({"shared_in_s": {"type": probe_of(0.601)}}, "these follow type"),
        ({"salient_nats": 0.1, "condition_in_x": probe_of(0.2)}, "nothing salient to find"),
        ({"salient_nats": 0.1, "condition_in_x": probe_of(0.201)}, "has not found it"),
        ({"salient_nats": 0.1, "condition_in_z": probe_of(0.2)}, "has not found it"),
        ({"salient_nats": 0.1, "condition_in_z": probe_of(0.201)}, "into the background latent"),
    ],
)
def test_the_salient_map_reads_differently_at_a_threshold(
    changes: dict[str, Any], words: str
) -> None:
    reading = salient_map(dataclasses.replace(GOOD, **changes)).reading
    assert words in reading.replace("went ", ""), reading


def accuracy(error: float = 0.0, ratio: float = 1.0) -> PosteriorAccuracy:
    latents = {"cell": ["a"], "site": ["z"], "dimension": [0]}
    latents |= {"encoder_mean": [error], "encoder_sd": [ratio]}
    latents |= {"refined_mean": [0.0], "refined_sd": [1.0], "nuts_mean": [0.0], "nuts_sd": [1.0]}
    return PosteriorAccuracy(pd.DataFrame({"amortisation_gap": [0.0]}), pd.DataFrame(latents))


@pytest.mark.parametrize(
    ("row", "found", "verdict"),
    [
        ("error of z", accuracy(error=0.299), "good"),
        ("error of z", accuracy(error=0.301), "look"),
        ("error of z", accuracy(error=1.0), "look"),
        ("error of z", accuracy(error=1.001), "bad"),
        ("width of z", accuracy(ratio=1.25), "good"),
        ("width of z", accuracy(ratio=1.251), "look"),
        ("width of z", accuracy(ratio=0.799), "look"),
        ("width of z", accuracy(ratio=2.0), "look"),
        ("width of z", accuracy(ratio=2.001), "bad"),
        ("width of z", accuracy(ratio=0.499), "bad"),
    ],
)
def test_the_accuracy_of_the_encoder_is_graded(
    row: str, found: PosteriorAccuracy, verdict: str
) -> None:
    rows = {finding.diagnostic: finding for finding in accuracy_findings(found)}
    assert rows[row].verdict == verdict


def test_a_narrow_posterior_is_called_narrow_and_a_wide_one_wide() -> None:
    def words(ratio: float) -> str:
        return accuracy_findings(accuracy(ratio=ratio))[1].reading

    assert "narrower than that of NUTS" in words(0.9)
    assert "wider than that of NUTS" in words(1.1)


@pytest.mark.parametrize(
    ("n_failing", "n_uniform", "verdict"), [(0, 3, "good"), (1, 1, "look"), (51, 50, "bad")]
)
def test_calibration_is_bad_where_most_quantities_fail(
    n_failing: int, n_uniform: int, verdict: str
) -> None:
    uniform, constant = np.arange(100.0), np.zeros(100)
    ranks = {f"fails {i}": constant for i in range(n_failing)}
    ranks |= {f"holds {i}": uniform for i in range(n_uniform)}
    found = calibration_finding(Calibration(pd.DataFrame(ranks), 99, "guide"))
    assert (found.value, found.verdict) == (n_failing, verdict)


def test_ten_cells_of_a_population_are_enough() -> None:
    codes = np.repeat([0, 1], [50, 10])
    assert (codes[balanced_sample(codes, np.arange(60), 40, 0)] == 1).sum() == 10
    with pytest.raises(ValueError, match="9 target cells"):
        balanced_sample(codes, np.arange(59), 40, 0)


@pytest.mark.parametrize("reading", READINGS.values(), ids=map(str, READINGS))
def test_a_score_just_short_of_a_threshold_reads_as_the_next_worse(reading: Reading) -> None:
    worse = -1e-6 if reading.best == "high" else 1e-6
    assert reading(reading.good + worse) == reading.sentences[1]
    assert reading(reading.fair + worse) == reading.sentences[2]
