"""What the diagnosis says of donors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.analysis.diagnosis.donors import donor_in_s, donor_numbers
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment

KEYS: dict[str, Any] = {"condition_key": "condition", "background": "control"}


def probe_of(excess: float) -> dict[str, Any]:
    accuracy = 0.25 + 0.75 * excess
    return {"excess": excess, "probe": "linear", "balanced_accuracy": accuracy, "chance": 0.25}


@pytest.mark.parametrize(
    ("excess", "verdict"),
    [(0.0, "good"), (0.2, "good"), (0.201, "look"), (0.5, "look"), (0.501, "bad")],
)
def test_donors_in_s(excess, verdict) -> None:
    for paired in (True, False):
        found = donor_in_s(probe_of(excess), paired=paired)
        assert (found.diagnostic, found.value, found.verdict) == ("donors in s", excess, verdict)
        assert bool(found.advice) == (verdict != "good")
        if verdict != "good":
            words = "either donors respond differently, or" if paired else "cannot be told from"
            assert words in found.reading


@pytest.mark.parametrize(
    ("background", "target", "value", "verdict"),
    [
        ("abc", "def", 3, "good"),
        ("abc", "abc", 3, "good"),
        ("ab", "cde", 2, "look"),
        ("abc", "d", 1, "bad"),
        ("a", "a", 1, "bad"),
    ],
)
def test_numbers_of_donors(background, target, value, verdict) -> None:
    donors = np.array([*background * 2, *target * 3])
    is_target = np.arange(len(donors)) >= 2 * len(background)
    found = donor_numbers(donors, is_target, "who")
    assert (found.value, found.verdict) == (value, verdict)
    numbers = f"{len(background)} background and {len(target)} target donors (adata.obs['who'])"
    assert found.reading.startswith(numbers)
    assert ("none with cells of both" in found.reading) == (background != target)
    assert ("cannot be told from its donors" in found.reading) == (verdict == "bad")


@pytest.mark.parametrize("paired", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_diagnosis_has_rows_about_donors_where_they_are_set_up(paired) -> None:
    settings = TreatmentSettings(
        n_background=80, n_target=80, n_genes=20, n_donors=3, paired=paired, donor_sd=1.5
    )
    adata = simulate_treatment(settings, seed=0)
    batch_key = "donor" if paired else None
    ContrastiveVI.setup_anndata(adata, **KEYS, sample_key="donor", batch_key=batch_key)
    torch.manual_seed(0)
    model = ContrastiveVI(adata, n_hidden=8, n_background_latent=2, n_salient_latent=2)
    if not paired:
        model.train(max_epochs=50, batch_size=32, seed=0, enable_progress_bar=False)
    table = model.diagnose(n_khat_cells=2, n_permutations=1, n_cells=160)
    assert table.loc["donors", "value"] == 3
    assert ("none with cells of both" in table.loc["donors", "reading"]) != paired
    assert "donor in s" not in table.index  # not said twice
    assert ("donor in z" in table.index) == paired
    assert "donors in s" in table.index
    if not paired:
        assert table.loc["donors in s", "value"] > 0.2
