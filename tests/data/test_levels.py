"""Values as users write them: batches, conditions and groups that are no strings, or misspelled."""

from __future__ import annotations

import datetime
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.separation import score_latents
from pyro_contrastive.data import Setup
from pyro_contrastive.data.levels import position_of, suggestion
from pyro_contrastive.data.spelling import spelled_alike
from pyro_contrastive.testing import SimulationSettings, simulate

SMALL: dict[str, Any] = {"n_hidden": 8, "n_background_latent": 2, "n_salient_latent": 2}
FLOATS = ["0.0", "1.0"]
TRUTH = ["False", "True"]


def cells() -> ad.AnnData:
    return simulate(SimulationSettings(n_background=20, n_target=20, n_genes=8), seed=0)


@pytest.mark.parametrize(
    ("value", "levels", "position"),
    [
        (0, FLOATS, 0),
        (0.0, FLOATS, 0),
        (np.float32(1), FLOATS, 1),
        (np.int64(1), FLOATS, 1),
        (np.array(1.0), FLOATS, 1),
        (True, FLOATS, 1),
        ("1.0", FLOATS, 1),
        (2, FLOATS, None),
        ("x", FLOATS, None),
        (None, FLOATS, None),
        (float("nan"), FLOATS, None),
        ([0.0], FLOATS, None),
        (True, TRUTH, 1),
        (np.False_, TRUTH, 0),
        ("True", TRUTH, 1),
        (1, TRUTH, 1),
        ("1", TRUTH, None),
        (float(np.float32(0.1)), ["0.1", "0.2"], 0),  # what tolist makes of a float32
        (20_000_001, ["20000000", "1"], None),  # the same in float32, but another number
        (1, ["01", "1"], 1),
        (1.0, ["01", "1"], None),  # either could be meant
        (pd.Timestamp("2024-01-02"), ["2024-01-01", "2024-01-02"], 1),
        (datetime.date(2024, 1, 2), ["2024-01-01", "2024-01-02"], 1),
        (np.datetime64("2024-01-02"), ["2024-01-01", "2024-01-02"], 1),
        (pd.Interval(0, 1), ["(0, 1]"], 0),
        ("3", [2, 3], 1),
        (np.float64(3), [2, 3], 1),
    ],
)
def test_a_level_however_it_is_written(value: Any, levels: list[Any], position: int | None) -> None:
    assert position_of(value, levels) == position


COLUMNS: dict[str, Any] = {
    "float64": [0.0, 0.5],
    "float32": np.array([0.1, 0.2], dtype=np.float32),
    "int64": [3, 4],
    "bool": [False, True],
    "boolean": pd.array([False, True], dtype="boolean"),
    "category of numbers": pd.Categorical([1.0, 2.0]),
    "category of truth values": pd.Categorical([False, True]),
    "datetime": pd.to_datetime(["2024-01-01", "2024-01-02"]),
    "string": ["a", "b"],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_values_as_they_stand_in_the_column(kind: str) -> None:
    """Each way to write a batch or condition gives what its text gives."""
    adata = cells()
    values = pd.Series(COLUMNS[kind])
    by_cell = values.iloc[np.arange(40) % 2].set_axis(adata.obs_names)
    condition = values.iloc[np.arange(40) // 20].set_axis(adata.obs_names)
    adata.obs["batch"], adata.obs["dose"] = by_cell, condition
    first, second = values.tolist()
    ContrastiveVI.setup_anndata(
        adata, batch_key="batch", condition_key="dose", background=values.iloc[0]
    )
    setup = Setup.of(adata)
    texts = values.astype(str).tolist()
    assert setup.conditions == tuple(texts)
    model = ContrastiveVI(adata, **SMALL)
    text = texts[1]
    expected = model.get_normalized_expression(transform_batch=text, seed=0)["salient"]
    for given in (second, values.iloc[1], [second], values.iloc[[1]], np.array([second])):
        found = model.get_normalized_expression(transform_batch=given, seed=0)["salient"]
        pd.testing.assert_frame_equal(found, expected)
    alike = [
        model.get_counterfactual_expression(given, n_samples=2, seed=0)
        for given in (text, second, values.iloc[1])
    ]
    pd.testing.assert_frame_equal(alike[0], alike[1])
    pd.testing.assert_frame_equal(alike[0], alike[2])
    shared: dict[str, Any] = {
        "groupby": "dose",
        "batch_correction": True,
        "n_samples_overall": 20,
        "seed": 0,
        "silent": True,
    }
    by_text = model.differential_expression(
        group1=text, group2=texts[0], batchid1=text, batchid2=text, **shared
    )
    for batch in (second, [second], values.iloc[[1]]):
        by_value = model.differential_expression(
            group1=second, group2=first, batchid1=batch, batchid2=batch, **shared
        )
        pd.testing.assert_frame_equal(by_value, by_text)


def test_covariates_as_they_stand_in_the_column() -> None:
    adata = cells()
    adata.obs["smoker"] = np.resize([True, False], 40)
    ContrastiveVI.setup_anndata(
        adata,
        categorical_covariate_keys=["smoker"],
        condition_key="condition",
        background="control",
    )
    model = ContrastiveVI(adata, **SMALL)

    def expression(value: Any) -> pd.DataFrame:
        return model.get_salient_normalized_expression(
            transform_covariates={"smoker": value}, seed=0
        )

    pd.testing.assert_frame_equal(expression(True), expression("True"))
    pd.testing.assert_frame_equal(expression(np.False_), expression("False"))
    assert not expression(True).equals(expression(False))
    with pytest.raises(ValueError, match=r"'true' is not a level.*Do you mean 'True'\?"):
        expression("true")
    with pytest.raises(TypeError, match=r"must be a dict.*not a list"):
        model.get_salient_normalized_expression(transform_covariates=[True])  # type: ignore[arg-type]


def test_unknown_values_name_the_known_ones() -> None:
    adata = cells()
    adata.obs["batch"] = np.resize([0.0, 1.0], 40)
    ContrastiveVI.setup_anndata(
        adata, batch_key="batch", condition_key="condition", background="control"
    )
    model = ContrastiveVI(adata, **SMALL)
    known = r"\['0\.0', '1\.0'\]"
    with pytest.raises(ValueError, match=rf"transform_batch: \[7\.5\] are not.*{known}"):
        model.get_normalized_expression(transform_batch=7.5)
    with pytest.raises(ValueError, match=rf"batchid1 holds unknown batches \['2'\].*{known}"):
        model.differential_expression(groupby="condition", batch_correction=True, batchid1=2)
    with pytest.raises(ValueError, match=r"'Treated' is not a cond.*Do you mean 'treated'\?"):
        model.get_counterfactual_expression("Treated")
    with pytest.raises(ValueError, match=r"group1='treated ' is not.*Do you mean 'treated'\?"):
        model.differential_expression(groupby="condition", group1="treated ")
    other = adata.copy()
    other.obs["condition"] = other.obs["condition"].astype(str).replace({"treated": "TREATED"})
    with pytest.raises(ValueError, match=r"\['TREATED'\].*Do you mean 'treated'\?"):
        model.get_elbo(other)


def test_conditions_without_names_are_codes() -> None:
    adata = cells()
    ContrastiveVI.setup_anndata(adata)
    model = ContrastiveVI(adata, **SMALL)
    for one in (1, 1.0, np.int8(1), True, "1"):
        assert model._condition_code(one) == 1
    with pytest.raises(ValueError, match=r"2 is not a condition.*0 \(background\)"):
        model._condition_code(2)


def test_scores_take_the_background_as_a_value_of_its_column() -> None:
    latent = np.random.default_rng(0).normal(size=(60, 2))
    dose = np.repeat([0.0, 1.5], 30)
    by_number = score_latents(latent, latent, dose, background_category=0, n_neighbors=10)
    by_text = score_latents(latent, latent, dose, background_category="0.0", n_neighbors=10)
    pd.testing.assert_frame_equal(by_number, by_text)


# Spelled in two ways


@pytest.mark.parametrize(
    "levels",
    [
        ["control", "Control", "CONTROL"],
        ["control", "control ", " control", "con\ttrol"],
        ["wild type", "wild_type", "wild-type", "Wild  Type", "wild.type", "wildtype"],
        ["a b", "a\N{NO-BREAK SPACE}b", "a\N{EN DASH}b", "a\N{ZERO WIDTH SPACE}b"],
        ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"],
        ["\N{MICRO SIGN}M", "\N{GREEK SMALL LETTER MU}M"],
        ["True", "TRUE", "true"],
        ["1", "1.0", "01"],
        ["10 1", "10_1", "10-1"],
    ],
)
def test_levels_of_one_spelling(levels: list[str]) -> None:
    assert spelled_alike([*levels, "another"]) == [levels]


@pytest.mark.parametrize(
    "levels",
    [
        ["control", "controls", "contrl"],
        ["1_11", "11_1", "111"],
        ["1", "-1", "10"],
        ["day 1", "day -1"],
        ["CD4+", "CD4-", "CD4"],
        ["0.5 uM", "5 uM", "05 uM", ".5 uM"],
        ["v1.0", "v10"],
        ["G1/S", "G1+S"],
        ["1E2", "100"],
        ["cafe", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"],
    ],
)
def test_levels_that_are_different(levels: list[str]) -> None:
    assert spelled_alike(levels) == []


def test_controls_of_another_spelling_are_said_to_be_target() -> None:
    adata = cells()
    adata.obs["drug"] = ["control"] * 12 + ["Control"] * 5 + ["control "] * 5 + ["drug"] * 18
    with pytest.warns(UserWarning, match="differ only in case") as caught:
        ContrastiveVI.setup_anndata(adata, condition_key="drug", background="control")
    (said,) = [str(warning.message) for warning in caught]
    for part in ("'Control' (5 cells)", "'control ' (5 cells)", "'control' (12 cells)"):
        assert part in said
    assert "the 10 cells of 'Control' and 'control ' are target cells" in said
    line = said.rpartition("set the data up again: ")[2]
    exec(line, {"adata": adata})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContrastiveVI.setup_anndata(adata, condition_key="drug", background="control")
    setup = Setup.of(adata)
    assert setup.conditions == ("control", "drug")
    assert int((setup.extract(adata).condition == 0).sum()) == 22


@pytest.mark.parametrize("as_category", [False, True])
@pytest.mark.parametrize("argument", ["batch_key", "labels_key", "categorical_covariate_keys"])
def test_other_columns_are_looked_at_too(argument: str, as_category: bool) -> None:
    adata = cells()
    values = pd.Series(np.resize(["B cell", "B-cell", "T cell", "B cell"], 40), adata.obs_names)
    adata.obs["type"] = values.astype("category") if as_category else values
    given = ["type"] if argument.endswith("keys") else "type"
    with pytest.warns(UserWarning, match=r"obs\['type'\].*'B cell' \(20 cells\) and 'B-cell' \(10"):
        ContrastiveVI.setup_anndata(adata, **{argument: given})


def test_treatments_of_one_spelling_are_not_called_background() -> None:
    adata = cells()
    adata.obs["drug"] = ["control"] * 20 + ["IFN"] * 10 + ["ifn"] * 10
    with pytest.warns(UserWarning, match="'IFN' .10 cells. and 'ifn' .10 cells.") as caught:
        ContrastiveVI.setup_anndata(adata, condition_key="drug", background="control")
    assert "is the background" not in str(caught[0].message)


@pytest.mark.parametrize("given", ["Control", "control ", "contrl", "con-trol"])
def test_a_background_that_is_nearly_a_level(given: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of.*Do you mean 'control'\?"):
        ContrastiveVI.setup_anndata(cells(), condition_key="condition", background=given)


def test_a_batch_of_new_data_that_is_nearly_known() -> None:
    adata = cells()
    adata.obs["lane"] = np.resize(["one", "two"], 40)
    ContrastiveVI.setup_anndata(adata, batch_key="lane")
    model = ContrastiveVI(adata, **SMALL)
    adata.obs["lane"] = adata.obs["lane"].str.title()
    with pytest.raises(ValueError, match=r"\['One', 'Two'\].*Do you mean 'one'\?"):
        model.get_latent_representation(adata)


@pytest.mark.parametrize(
    ("value", "levels", "meant"),
    [
        ("contrl", ["control", "drug"], "control"),
        ("Control", ["control", "drug"], "control"),
        ("donor_1", ["donor1", "donor2"], "donor1"),
        ("donor12", ["donor11", "donor1"], None),  # another donor, not a misspelt one
        ("CD4+", ["CD4-", "CD8-"], None),
        ("zebra", ["control", "drug"], None),
    ],
)
def test_a_name_is_suggested_where_it_is_misspelt(value, levels, meant) -> None:
    assert suggestion(value, levels) == (f" Do you mean {meant!r}?" if meant else "")
