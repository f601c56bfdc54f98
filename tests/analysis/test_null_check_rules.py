"""The verdict of a null check: margins, and how many measures must stand out."""

from __future__ import annotations

import json

import pytest

from pyro_contrastive.analysis.null_check import judged

NOTHING = {"genes": 0.0, "intervals": 0.03, "nats": -0.1, "separation": 0.05}
CASES = [
    ("genes", [0.0, 1.0], {4.9: False, 5.0: True}),
    ("intervals", [0.02, 0.04], {0.089: False, 0.0901: True}),
    ("nats", [-0.1, 0.2], {0.29: False, 0.31: True}),
    ("separation", [0.0, 0.1], {0.29: False, 0.301: True}),
]


def check(
    observed: dict[str, float],
    nulls: list[dict[str, float]],
    nats_error: float = 0.01,
    error: float = 0.01,
):
    errors = {"nats": nats_error, "separation": error}
    return judged(observed, nulls, errors=errors, within=["donor"], seed=3)


@pytest.mark.parametrize(("measure", "nulls", "values"), CASES, ids=[case[0] for case in CASES])
def test_a_measure_must_exceed_every_shuffle_by_a_margin(measure, nulls, values) -> None:
    for value, stands_out in values.items():
        made = check(NOTHING | {measure: value}, [NOTHING | {measure: null} for null in nulls])
        assert made.table.loc[measure, "stands_out"] == stands_out
        assert made.answer == ("signs" if stands_out else "none")


def test_nats_must_exceed_shuffles_by_three_standard_errors() -> None:
    for nats, stands_out in ((1.49, False), (1.51, True)):
        made = check(NOTHING | {"nats": nats}, [NOTHING], nats_error=0.5)
        assert made.table.loc["nats", "stands_out"] == stands_out


def test_losing_less_than_a_shuffle_is_no_sign_of_a_response() -> None:
    worse = NOTHING | {"nats": -5.0, "separation": -0.5}
    assert check(NOTHING, [worse]).answer == "none"


def test_separation_must_exceed_what_few_cells_give_by_chance() -> None:
    for value, stands_out in ((0.34, False), (0.36, True)):
        made = check(NOTHING | {"separation": value}, [NOTHING], error=0.1)
        assert made.table.loc["separation", "stands_out"] == stands_out


def test_the_verdict_and_what_is_written() -> None:
    found = check({"genes": 90.0, "intervals": 0.5, "nats": 80.0, "separation": 0.9}, [NOTHING] * 3)
    assert found.answer == "response"
    assert found.verdict.startswith("A response: the fit finds more than 3 fits with shuffled")
    row = found.table.loc["genes"]
    assert (row["observed"], row["null_mean"], row["null_max"]) == (90.0, 0.0, 0.0)
    assert [row[f"shuffle {i}"] for i in (1, 2, 3)] == [0.0, 0.0, 0.0]
    read = json.loads(found.to_json())
    assert (read["answer"], read["within"], read["seed"]) == ("response", ["donor"], 3)
    assert read["measures"]["nats"]["observed"] == 80.0
    nothing = check(NOTHING, [NOTHING] * 2)
    assert nothing.verdict == "No response found: 2 fits with shuffled conditions look the same."
    assert nothing.verdict in str(nothing)
    assert "only one measure (genes)" in check(NOTHING | {"genes": 9.0}, [NOTHING]).verdict
    two = check({"nats": 80.0, "separation": 0.9}, [{"nats": 0.0, "separation": 0.0}])
    assert (two.answer, list(two.table.index)) == ("response", ["nats", "separation"])
