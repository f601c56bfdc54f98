"""The shell: help at once, mistakes on one line, results in the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pyro_contrastive
from pyro_contrastive.cli import app
from pyro_contrastive.report import demo as demo_module
from pyro_contrastive.report import pipeline
from pyro_contrastive.report.study import FitSettings, Study

run = CliRunner().invoke


class StandIn:
    """What a fitted model looks like to the report."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self.history = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}

    def get_latent_representation(self, *, representation_kind: str) -> np.ndarray:
        seed = {"background": 0, "salient": 1}[representation_kind]
        return np.random.default_rng(seed).normal(size=(self.n_cells, 3))

    def save(self, dir_path: str, *, overwrite: bool = False) -> None:
        pass


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "arm": np.tile(["ctrl", "drug"], 20),
            "kind": np.repeat(["B", "T"], 20),
            "same": "x",
            "dose": np.tile(["0", "1", "0", "2"], 10),
            "holes": [None, *["y", "z"] * 19, "y"],
            "lone": ["z", *["y"] * 39],
        },
        index=[str(i) for i in range(40)],
    )
    data = ad.AnnData(rng.poisson(2, size=(40, 5)).astype(np.float32), obs=obs)
    data.layers["raw"] = data.X
    path = tmp_path / "counts.h5ad"
    data.write_h5ad(path)
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace registration and fit by stand-ins that note what they were given."""
    noted: dict[str, Any] = {}

    def register(cells: ad.AnnData, study: Study, likelihood: Any = None) -> None:
        noted.update(study=study, likelihood=likelihood)

    def fit_model(cells: ad.AnnData, settings: FitSettings, *, seed: int) -> tuple[StandIn, float]:
        noted.update(settings=settings, seed=seed)
        return StandIn(cells.n_obs), 1.0

    monkeypatch.setattr(pipeline, "register", register)
    monkeypatch.setattr(demo_module, "register", register)
    monkeypatch.setattr(pipeline, "fit_model", fit_model)
    return noted


def fit_arguments(counts: Path, out: Path, **change: Any) -> list[str]:
    options = {"--condition-key": "arm", "--background": "ctrl", "--out": str(out)} | change
    return ["fit", str(counts), *(part for pair in options.items() for part in pair)]


def test_help_names_the_commands() -> None:
    result = run(app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output
    assert "fit" in result.output


def test_version() -> None:
    result = run(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.strip() == pyro_contrastive.__version__


def test_the_shell_itself_imports_none_of_the_report() -> None:
    code = (
        "import sys, pyro_contrastive.cli;"
        "sys.exit('pyro_contrastive.report' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fit_writes_a_page_and_passes_every_option_on(
    counts: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    options = {
        "--label-key": "kind",
        "--batch-key": "same",
        "--layer": "raw",
        "--max-epochs": "7",
        "--seed": "3",
        "--embedding": "pca",
        "--n-salient-latent": "4",
        "--n-background-latent": "6",
        "--likelihood": "nb",
    }
    result = run(app, fit_arguments(counts, out, **options))
    assert result.exit_code == 0, result.output
    assert {"index.html", "counts_latents.h5ad", "scores.csv"} <= {p.name for p in out.iterdir()}
    study, settings = calls["study"], calls["settings"]
    assert (study.condition_key, study.background) == ("arm", "ctrl")
    assert (study.label_key, study.batch_key, study.layer) == ("kind", "same", "raw")
    likelihood = settings.model["likelihood"]
    assert settings.model == {
        "n_background_latent": 6,
        "n_salient_latent": 4,
        "likelihood": likelihood,
    }
    assert isinstance(likelihood, pyro_contrastive.NegativeBinomial)
    assert calls["likelihood"] is likelihood
    assert "NegativeBinomial(dispersion=&#39;gene&#39;)" in (out / "index.html").read_text()
    assert settings.train["max_epochs"] == 7
    assert calls["seed"] == 3
    assert "index.html" in result.output
    assert "PC 1" not in result.output


@pytest.mark.parametrize(
    ("change", "hints"),
    [
        ({"--condition-key": "amr"}, ["'amr'", "arm, kind, same, dose, holes"]),
        ({"--background": "control"}, ["'control'", "ctrl, drug"]),
        ({"--condition-key": "same", "--background": "x"}, ["nothing to compare"]),
        ({"--condition-key": "holes", "--background": "y"}, ["no value in 1 cells"]),
        ({"--condition-key": "lone", "--background": "z"}, ["1 of 40", "at least two"]),
        ({"--label-key": "type"}, ["label column 'type'", "arm, kind"]),
        ({"--label-key": "same"}, ["'same' has one value only"]),
        ({"--label-key": "dose"}, ["'dose'", "in both background and target"]),
        ({"--batch-key": "plate"}, ["batch column 'plate'"]),
        ({"--layer": "counts"}, ["layer 'counts'", "raw"]),
    ],
)
def test_mistakes_in_the_columns_are_one_line(
    counts: Path, tmp_path: Path, calls: dict[str, Any], change: dict[str, Any], hints: list[str]
) -> None:
    assert_mistake(run(app, fit_arguments(counts, tmp_path / "out", **change)), *hints)
    assert not calls
    assert not (tmp_path / "out").exists()


def assert_mistake(result: Any, *hints: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for hint in hints:
        assert hint in result.stderr


def test_missing_and_unreadable_files_are_one_line(tmp_path: Path) -> None:
    assert_mistake(run(app, fit_arguments(tmp_path / "no.h5ad", tmp_path / "o")), "no.h5ad")
    text = tmp_path / "text.h5ad"
    text.write_text("not counts")
    assert_mistake(run(app, fit_arguments(text, tmp_path / "o")), "text.h5ad", ".h5ad file")


def test_what_registration_refuses_is_one_line(
    counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(cells: ad.AnnData, study: Study, likelihood: Any) -> None:
        raise ValueError("counts must be\nintegers")

    monkeypatch.setattr(pipeline, "register", refuse)
    assert_mistake(run(app, fit_arguments(counts, tmp_path / "o")), "counts must be integers")


LIKELIHOODS = {
    "zinb": pyro_contrastive.ZeroInflatedNegativeBinomial,
    "poisson": pyro_contrastive.Poisson,
    "zip": pyro_contrastive.ZeroInflatedPoisson,
    "bernoulli": pyro_contrastive.Bernoulli,
    "gaussian": pyro_contrastive.Gaussian,
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_by_name(
    name: str, counts: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    options = {"--likelihood": name, "--embedding": "pca"}
    assert run(app, fit_arguments(counts, tmp_path / "o", **options)).exit_code == 0
    assert type(calls["likelihood"]) is LIKELIHOODS[name]


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("bernoulli", ["binary data", "Bernoulli", "above 1"]),
        ("zinb", ["raw counts", "ZeroInflatedNegativeBinomial", "40 not integers"]),
    ],
)
def test_data_the_likelihood_cannot_have_are_one_line(
    name: str, hints: list[str], counts: Path, tmp_path: Path
) -> None:
    data = ad.read_h5ad(counts)
    if name == "zinb":
        data.X[:, 0] = 0.5
        data.write_h5ad(counts)
    arguments = fit_arguments(counts, tmp_path / "out", **{"--likelihood": name})
    assert_mistake(run(app, arguments), *hints)


def test_faults_of_the_fit_are_not_dressed_up_as_mistakes(
    counts: Path, tmp_path: Path, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(pipeline, "fit_model", fail)
    result = run(app, fit_arguments(counts, tmp_path / "o"))
    assert result.exit_code == 1
    assert str(result.exception) == "a fault of ours"


@pytest.mark.parametrize("command", ["demo", "fit"])
def test_a_folder_with_content_is_refused_before_any_work(
    command: str, counts: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    arguments = fit_arguments(counts, full) if command == "fit" else ["demo", "--out", str(full)]
    assert_mistake(run(app, arguments), "full is not empty", "--overwrite")
    assert not calls


def test_umap_without_umap_learn_is_refused_before_any_work(
    counts: Path, tmp_path: Path, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_contrastive.cli.find_spec", lambda name: None)
    arguments = fit_arguments(counts, tmp_path / "o", **{"--embedding": "umap"})
    assert_mistake(run(app, arguments), "pip install umap-learn")
    assert not calls


def test_demo_passes_its_options_on(tmp_path: Path, calls: dict[str, Any]) -> None:
    out = tmp_path / "demo"
    arguments = [
        "demo",
        "--out",
        str(out),
        "--max-epochs",
        "2",
        "--seed",
        "5",
        "--embedding",
        "pca",
    ]
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    assert (out / "index.html").exists()
    assert calls["settings"].train["max_epochs"] == 2
    assert calls["settings"].model == demo_module.DEMO_SETTINGS.model
    assert calls["seed"] == 5
    assert "GSE96583" in calls["study"].source
