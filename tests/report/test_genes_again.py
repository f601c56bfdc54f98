"""``pyro-contrastive genes`` makes the tables of a fit again, and replaces nothing unasked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.cli import app
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``fit`` leaves, as far as the command reads it."""
    folder = tmp_path_factory.mktemp("results")
    settings = TreatmentSettings(
        n_background=100, n_target=100, n_genes=30, n_types=2, share_affected=0.5, smallest_lfc=1.5
    )
    adata = simulate_treatment(settings, seed=0)
    adata.obs["patient"] = [f"p{i % 4}" for i in range(adata.n_obs)]
    keys = {"condition_key": "condition", "background": "control", "sample_key": "patient"}
    ContrastiveVI.setup_anndata(adata, **keys)
    torch.manual_seed(0)
    model = ContrastiveVI(adata, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False, seed=0)
    model.save(str(folder / "model"))
    adata.write_h5ad(folder / "mine_latents.h5ad")
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["genes", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.slow
def test_donors_of_the_fit_are_the_unit_unless_cells_are_asked_for(
    results: Path, tmp_path: Path
) -> None:
    code, said = run(results, "--out", tmp_path / "a", "--label-key", "cell_type", "--strata", 1)
    assert code == 0, said
    assert "Donors (patient) are the replicates" in said
    genes = pd.read_csv(tmp_path / "a" / "genes.csv", index_col="gene")
    assert (genes["n_donors1"] == 4).all()
    by_label = pd.read_csv(tmp_path / "a" / "genes_by_label.csv")
    assert set(by_label["stratum"]) == {"type 0", "type 1"}
    assert (tmp_path / "a" / "volcano.png").read_bytes().startswith(b"\x89PNG")
    options = ("--cells-as-replicates", "--strata", "cell_type", "--fdr", 0.2)
    code, said = run(results, "--out", tmp_path / "b", *options)
    assert code == 0, said
    assert "Cells are the replicates" in said
    cells = pd.read_csv(tmp_path / "b" / "genes.csv", index_col="gene")
    assert "n_donors1" not in cells
    assert "is_de_fdr_0.2" in cells
    assert not (tmp_path / "b" / "genes_by_label.csv").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label-key", "nothing"], "label column 'nothing' is not in obs; available: "),
        (["--sample-key", "nobody"], "sample column 'nobody' is not in obs"),
        (["--sample-key", "patient", "--cells-as-replicates"], "contradict each other"),
        (["--strata", "kinds"], "kinds"),
    ],
)
def test_what_is_not_there_is_named_on_one_line(
    results: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    code, said = run(results, "--out", tmp_path / "c", *options)
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_no_table_is_replaced_unless_allowed(results: Path, tmp_path: Path) -> None:
    (tmp_path / "genes.csv").write_text("mine")
    code, said = run(results, "--out", tmp_path, "--strata", 1)
    assert code == 2
    assert "already holds genes.csv" in said
    assert (tmp_path / "genes.csv").read_text() == "mine"
    code, _ = run(results, "--out", tmp_path, "--strata", 1, "--overwrite")
    assert code == 0
    assert (tmp_path / "genes.csv").read_text() != "mine"


def test_a_folder_without_a_fit_is_refused(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "holds no folder model" in said
