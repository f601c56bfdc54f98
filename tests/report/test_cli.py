"""The shell: help at once, mistakes on one line, results in the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pyro_contrastive
from pyro_contrastive import ContrastiveVI
from pyro_contrastive.cli import app
from pyro_contrastive.data import load_kang
from pyro_contrastive.likelihoods import SHORT_NAMES
from pyro_contrastive.report import demo as demo_module
from pyro_contrastive.report import pipeline
from pyro_contrastive.report.study import FitSettings, Study
from pyro_contrastive.training.history import FitResult

run = CliRunner().invoke


class StandIn:
    """What a fitted model looks like to the report."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self.history = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}

    def train(self, **kwargs: Any) -> FitResult:
        return FitResult(n_epochs=2, seconds=1.0, max_epochs=7)

    held_out_indices = None
    setup = SimpleNamespace(sample_key=None)

    def differential_expression(self, **settings: Any) -> pd.DataFrame:
        raise ValueError("a stand-in tests no genes")

    def null_check(self, n_shuffles: int, **settings: Any) -> None:
        raise ValueError("a stand-in is not fitted again")

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
            "day": np.repeat([1.0, 2.5], 20),
            "factor": np.tile([1.0, 0.5, 2.0, 1.5], 10),
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

    def register(cells: ad.AnnData, study: Study, likelihood: Any = None) -> Study:
        noted.update(study=study, likelihood=likelihood)
        return study

    def make_model(cells: ad.AnnData, settings: FitSettings, *, seed: int) -> StandIn:
        noted.update(settings=settings, seed=seed)
        return StandIn(cells.n_obs)

    monkeypatch.setattr(pipeline, "register", register)
    monkeypatch.setattr(demo_module, "register", register)
    monkeypatch.setattr(pipeline, "make_model", make_model)
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


@pytest.mark.slow
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
        "--guide": "low-rank",
    }
    result = run(app, fit_arguments(counts, out, **options))
    assert result.exit_code == 0, result.output
    assert {"index.html", "counts_latents.h5ad", "scores.csv"} <= {p.name for p in out.iterdir()}
    study, settings = calls["study"], calls["settings"]
    columns = study.columns
    assert (columns.condition_key, columns.background) == ("arm", "ctrl")
    assert (study.label_key, columns.batch_key, columns.layer) == ("kind", "same", "raw")
    likelihood = settings.model["likelihood"]
    assert settings.model == {
        "n_background_latent": 6,
        "n_salient_latent": 4,
        "likelihood": likelihood,
        "guide": settings.model["guide"],
    }
    assert isinstance(settings.model["guide"], pyro_contrastive.LowRankGuide)
    assert isinstance(likelihood, pyro_contrastive.NegativeBinomial)
    assert calls["likelihood"] is likelihood
    assert "NegativeBinomial(dispersion=&#39;gene&#39;)" in (out / "index.html").read_text()
    assert settings.train["max_epochs"] == 7
    assert calls["seed"] == 3
    assert "Trained 2 of 7 epochs; no cells were held out.\n" in result.output
    assert "index.html" in result.output
    assert "PC 1" not in result.output


@pytest.mark.parametrize(
    ("change", "hints"),
    [
        ({"--condition-key": "amr"}, ["'amr'", "arm, kind, same, dose, day, factor, holes"]),
        ({"--background": "control"}, ["'control'", "ctrl, drug"]),
        ({"--condition-key": "same", "--background": "x"}, ["nothing to compare"]),
        ({"--condition-key": "holes", "--background": "y"}, ["no value in 1 cells"]),
        ({"--condition-key": "lone", "--background": "z"}, ["1 of 40", "at least two"]),
        ({"--label-key": "type"}, ["label column 'type'", "arm, kind"]),
        ({"--label-key": "same"}, ["'same' has only one value"]),
        ({"--label-key": "dose"}, ["'dose'", "in both background and target"]),
        ({"--batch-key": "plate"}, ["batch column 'plate'"]),
        ({"--layer": "counts"}, ["layer 'counts'", "raw"]),
        ({"--categorical-covariate": "sex"}, ["categorical covariate column 'sex'", "arm, kind"]),
        ({"--continuous-covariate": "age"}, ["continuous covariate column 'age'", "arm, kind"]),
        ({"--size-factor": "sf"}, ["size factor column 'sf'", "arm, kind"]),
        ({"--preset": "separate"}, ["no preset 'separate'", "none, contrastiveVI", "separated"]),
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


@pytest.mark.filterwarnings("ignore:.*more than there are genes")
@pytest.mark.parametrize(
    ("options", "hints"),
    [
        ({"--continuous-covariate": "kind"}, ["'kind'", "must hold numbers"]),
        ({"--size-factor": "kind"}, ["'kind'", "must hold numbers"]),
        ({"--preset": "contrastiveVI", "--size-factor": "factor"}, ["size_factor_key"]),
        (
            {"--preset": "contrastivevi", "--likelihood": "gaussian", "--layer": "logs"},
            ["Gaussian has no library size that could be latent"],
        ),
    ],
)
def test_what_the_model_refuses_is_one_line_before_any_training(
    counts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    hints: list[str],
) -> None:
    data = ad.read_h5ad(counts)
    data.layers["logs"] = np.log1p(data.X)
    data.write_h5ad(counts)
    monkeypatch.setattr(ContrastiveVI, "train", lambda *_, **__: pytest.fail("work was begun"))
    assert_mistake(run(app, fit_arguments(counts, tmp_path / "out", **options)), *hints)


REACHED = {
    "--preset": "mm-cvae",
    "--categorical-covariate": "kind",
    "--continuous-covariate": "day",
    "--size-factor": "factor",
    "--batch-size": "9",
    "--schedule": "fast",
    "--max-epochs": "2",
    "--n-salient-latent": "3",
    "--embedding": "pca",
}


@pytest.mark.filterwarnings("ignore:.*in all cells, so there is nothing")
@pytest.mark.filterwarnings("ignore:.*more than there are genes")
def test_the_options_reach_the_fit(
    counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: dict[str, Any] = {}
    train = ContrastiveVI.train

    def noting(model: ContrastiveVI, **kwargs: Any) -> FitResult:
        noted.update(kwargs, model=model)
        return train(model, **kwargs, enable_progress_bar=False)

    monkeypatch.setattr(ContrastiveVI, "train", noting)
    more = ["--categorical-covariate", "same"]
    result = run(app, [*fit_arguments(counts, tmp_path / "out", **REACHED), *more])
    assert result.exit_code == 0, result.output
    assert (noted["batch_size"], noted["schedule"], noted["max_epochs"]) == (9, "fast", 2)
    data = ad.read_h5ad(tmp_path / "out" / "counts_latents.h5ad")
    assert data.obsm["X_salient"].shape == (40, 3)
    model = ContrastiveVI.load(tmp_path / "out" / "model", adata=data)
    assert [p.name for p in model.module.penalties] == ["mmd_z", "mmd_s"]
    assert model.setup.categorical_covariate_keys == ("kind", "same")
    assert model.setup.continuous_covariate_keys == ("day",)
    assert model.setup.size_factor_key == "factor"
    assert len(model.history["elbo_train"]) == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert "MM-cVAE" in page


@pytest.mark.filterwarnings("ignore:.*more than there are genes")
def test_refined_posteriors_are_kept_and_their_latents_written(
    counts: Path, tmp_path: Path
) -> None:
    options = {"--preset": "none", "--max-epochs": "2", "--embedding": "pca"}
    result = run(app, [*fit_arguments(counts, tmp_path / "out", **options), "--refine"])
    assert result.exit_code == 0, result.output
    data = ad.read_h5ad(tmp_path / "out" / "counts_latents.h5ad")
    model = ContrastiveVI.load(tmp_path / "out" / "model", adata=data)
    assert len(model._stored_posteriors.cells) == data.n_obs
    plain, refined = (
        model.get_latent_representation(representation_kind="background", refine=choice)
        for choice in (False, True)
    )
    np.testing.assert_allclose(data.obsm["X_background"], refined, rtol=1e-5, atol=1e-6)
    assert np.abs(plain - refined).max() > 0.01
    page = (tmp_path / "out" / "index.html").read_text()
    assert "with the refined posterior of every cell" in page


@pytest.mark.filterwarnings("default::UserWarning")  # which the shell shows in its own way
def test_warnings_are_one_line_each(counts: Path, tmp_path: Path) -> None:
    options = {"--batch-key": "dose", "--embedding": "pca", "--max-epochs": "1"}
    result = run(app, fit_arguments(counts, tmp_path / "o", **options))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "'dose'" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Warning: No value of adata.obs['dose'] occurs in both")
    assert ".py" not in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "preset", "schedule"),
    [
        ({}, "separated", "fast"),  # as in the README
        ({"--preset": "none"}, None, "reference"),  # as ContrastiveVI(adata).train()
        ({"--preset": "SEPVAE"}, "SepVAE", "reference"),
        ({"--preset": "none", "--schedule": "fast"}, None, "fast"),
        ({"--schedule": "reference"}, "separated", "reference"),
    ],
)
def test_the_preset_and_the_schedule_that_goes_with_it(
    options: dict[str, str],
    preset: str | None,
    schedule: str,
    counts: Path,
    tmp_path: Path,
    calls: dict[str, Any],
) -> None:
    options = {"--embedding": "pca", **options}
    result = run(app, fit_arguments(counts, tmp_path / "o", **options))
    assert result.exit_code == 0, result.output
    settings = calls["settings"]
    assert (settings.preset, settings.train["schedule"]) == (preset, schedule)
    assert settings.train["max_epochs"] is None
    assert settings.train["batch_size"] == 128


@pytest.mark.slow
def test_a_preset_keeps_its_own_likelihood_unless_another_is_given(
    counts: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    options = {"--embedding": "pca", "--preset": "CPLVM"}
    assert run(app, fit_arguments(counts, tmp_path / "a", **options)).exit_code == 0
    assert isinstance(calls["likelihood"], pyro_contrastive.AdditivePoisson)
    options["--likelihood"] = "nb"
    assert run(app, fit_arguments(counts, tmp_path / "b", **options)).exit_code == 0
    assert isinstance(calls["likelihood"], pyro_contrastive.NegativeBinomial)


@pytest.mark.slow
def test_few_cells_are_fitted_without_early_stopping(
    counts: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    """None of 9 cells would be held out, and early stopping would have nothing to check."""
    data = ad.read_h5ad(counts)
    for n_background, stops in ((9, False), (10, True)):
        chosen = np.r_[0 : 2 * n_background : 2, 1:40:2]
        data[chosen].copy().write_h5ad(counts)
        options = {"--embedding": "pca"}
        result = run(app, fit_arguments(counts, tmp_path / f"{n_background}", **options))
        assert result.exit_code == 0, result.output
        assert calls["settings"].train["early_stopping"] is stops


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


@pytest.mark.parametrize(
    ("option", "names"),
    [("--likelihood", SHORT_NAMES), ("--guide", pyro_contrastive.guides.SHORT_NAMES)],
)
def test_an_unknown_short_name_is_refused_with_those_there_are(
    option: str, names: list[str], counts: Path, tmp_path: Path
) -> None:
    result = run(app, fit_arguments(counts, tmp_path / "o", **{option: "normal"}))
    assert result.exit_code == 2
    for name in names:
        assert name in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT_NAMES)
def test_likelihoods_by_name(
    name: str, counts: Path, tmp_path: Path, calls: dict[str, Any]
) -> None:
    options = {"--likelihood": name, "--embedding": "pca"}
    assert run(app, fit_arguments(counts, tmp_path / "o", **options)).exit_code == 0
    assert type(calls["likelihood"]) is SHORT_NAMES[name]


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("bernoulli", ["binary data", "Bernoulli", "above 1", "--layer NAME (available: raw)"]),
        (
            "zinb",
            [
                "raw counts",
                "ZeroInflatedNegativeBinomial",
                "40 not integers",
                "--layer NAME (available: raw; integers from 0 up are in: raw)",
                "--likelihood gaussian",
            ],
        ),
        ("gaussian", ["numbers from 0 up", "40 negative", "--layer NAME (available: raw)"]),
    ],
)
def test_data_the_likelihood_cannot_have_are_one_line(
    name: str, hints: list[str], counts: Path, tmp_path: Path
) -> None:
    data = ad.read_h5ad(counts)
    if name != "bernoulli":
        data.X[:, 0] = {"zinb": 0.5, "gaussian": -0.5}[name]
        data.write_h5ad(counts)
    arguments = fit_arguments(counts, tmp_path / "out", **{"--likelihood": name})
    result = run(app, arguments)
    assert_mistake(result, *hints)
    assert "setup_anndata" not in result.stderr


def test_counts_that_are_in_raw_alone_or_nowhere_are_one_line(counts: Path, tmp_path: Path) -> None:
    data = ad.read_h5ad(counts)
    del data.layers["raw"]
    data.raw = data.copy()
    data.X = np.log1p(data.X)
    data.write_h5ad(counts)
    line = 'adata.layers["counts"] = adata.raw[:, adata.var_names].X'
    said = [line, "--layer counts", "--likelihood gaussian"]
    assert_mistake(run(app, fit_arguments(counts, tmp_path / "a")), *said)
    data.X = None
    data.write_h5ad(counts)
    assert_mistake(run(app, fit_arguments(counts, tmp_path / "b")), "the file has no X", line)
    del data.raw
    data.write_h5ad(counts)
    assert_mistake(
        run(app, fit_arguments(counts, tmp_path / "c")), "the file has no X", "available: none"
    )


def test_faults_of_the_fit_are_not_dressed_up_as_mistakes(
    counts: Path, tmp_path: Path, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(StandIn, "train", fail)
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


@pytest.mark.parametrize("command", ["fit", "demo"])
def test_several_processes_are_refused_before_any_work(
    counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun sets them
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = fit_arguments(counts, out) if command == "fit" else ["demo", "--out", str(out)]
    result = run(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: torchrun has started 2 processes")
    assert result.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_demo_passes_its_options_on(
    tmp_path: Path, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    some = load_kang()[::20].copy()
    monkeypatch.setattr(demo_module, "load_kang", lambda: some)
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
