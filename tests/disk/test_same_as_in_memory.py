"""What is asked of a model about cells on disk is answered as about the same cells in memory."""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from disk_helpers import PER_STEP, cells, read_in_pieces, write

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.data import open_on_disk

SMALL = {"n_hidden": 8, "n_background_latent": 3, "n_salient_latent": 2}
SETUP = {
    "batch_key": "lane",
    "condition_key": "condition",
    "background": "control",
    "sample_key": "who",
}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def in_memory() -> ad.AnnData:
    return cells()


@pytest.fixture(scope="module")
def fitted(in_memory: ad.AnnData) -> ContrastiveVI:
    ContrastiveVI.setup_anndata(in_memory, **SETUP)
    settings.seed = 0
    model = ContrastiveVI(in_memory, **SMALL)
    model.train(max_epochs=2, seed=0, **QUIET)
    return model


@pytest.fixture(params=["backed", "h5ad", "zarr", "two files", "a view"])
def on_disk(request, in_memory, tmp_path) -> Iterator[ad.AnnData]:
    kind = request.param
    if kind == "zarr":
        yield open_on_disk(write(in_memory, tmp_path / "cells.zarr"))
    elif kind == "two files":
        halves = [
            write(in_memory[part].copy(), tmp_path / f"{i}.{suffix}")
            for i, (part, suffix) in enumerate([(np.s_[:45], "h5ad"), (np.s_[45:], "zarr")])
        ]
        yield open_on_disk(*halves)
    elif kind == "a view":
        order = np.random.default_rng(3).permutation(in_memory.n_obs)
        genes = np.random.default_rng(4).permutation(in_memory.n_vars)
        file = write(in_memory[order][:, genes].copy(), tmp_path / "cells.h5ad")
        yield open_on_disk(file)[np.argsort(order)][:, np.argsort(genes)]
    else:
        file = write(in_memory, tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(file, backed="r") if kind == "backed" else open_on_disk(file)
        yield adata


def test_zarr_stores_are_read_with_and_without_zarrs(in_memory, tmp_path, monkeypatch):
    pytest.importorskip("zarrs")
    store = write(in_memory, tmp_path / "cells.zarr")
    decoders = set()
    for is_there in (True, False):
        if not is_there:
            monkeypatch.setattr("pyro_contrastive.data.disk.find_spec", lambda name: None)
        adata = open_on_disk(store)
        values = adata.X.source.parts[0].values
        decoders.add(type(values.async_array.codec_pipeline).__name__)
        np.testing.assert_array_equal(adata.X.to_memory().toarray(), in_memory.X.toarray())
    assert len(decoders) == 2


SOME = np.r_[100:60:-1, 3, 3]
QUESTIONS = {
    "salient": lambda m, a: m.get_latent_representation(a),
    "background of some": lambda m, a: m.get_latent_representation(
        a, SOME, representation_kind="background"
    ),
    "expression": lambda m, a: m.get_normalized_expression(a, n_samples=2, seed=0),
    "elbo": lambda m, a: m.get_elbo(a, return_mean=False, seed=0),
    "means": lambda m, a: m.differential_expression(
        a, mode="means", groupby="condition", group1="treated", seed=0, strata="lane"
    ),
    "single cells": lambda m, a: m.differential_expression(
        a,
        groupby="condition",
        group1="treated",
        n_samples_overall=60,
        seed=0,
        all_stats=True,
        silent=True,
    ),
    "groups": lambda m, a: m.get_group_effects(a, groupby="lane", seed=0, silent=True),
}
LONG = {
    "effect": lambda m, a: m.get_treatment_effect(a, n_samples=4, interval=0.5, seed=0),
    "scores": lambda m, a: m.score_latents(a, labels_key="lane"),
    "diagnosis": lambda m, a: m.diagnose(a, seed=0, n_khat_cells=5, n_permutations=2, silent=True),
    "predictive check": lambda m, a: (
        m.posterior_predictive_check(a, n_samples=19, seed=0, silent=True).genes
    ),
}


def test_questions_have_the_same_answers_and_read_few_cells_at_a_time(
    fitted, in_memory, on_disk, monkeypatch
):
    check(QUESTIONS, fitted, in_memory, on_disk, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", ["two files"], indirect=True)
def test_long_questions_have_the_same_answers(fitted, in_memory, on_disk, monkeypatch):
    check(LONG, fitted, in_memory, on_disk, monkeypatch)


def check(questions, fitted, in_memory, on_disk, monkeypatch):
    read = read_in_pieces(monkeypatch)
    model = fitted
    for name, ask in questions.items():
        expected, found = ask(model, in_memory), ask(model, on_disk)
        for one, other in zip(_values(expected), _values(found), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5, err_msg=name)
    # Encoders alone take twice as many cells in a step, which are read in one piece.
    assert max(read) <= 2 * PER_STEP


def _values(answer):
    if isinstance(answer, dict):
        return [value for each in answer.values() for value in _values(each)]
    if isinstance(answer, pd.DataFrame):
        answer = answer.sort_index(kind="stable")
        return [answer[c].to_numpy() for c in answer if pd.api.types.is_float_dtype(answer[c])]
    return [np.asarray(answer)]
