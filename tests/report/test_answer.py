"""The first section of the page says which genes respond, and beside it what chance gives."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.report.answer import add_gene_figures, answer_of, in_words
from pyro_contrastive.report.figures import FigureSet
from pyro_contrastive.report.genes import GeneRequest, GeneTables, make_tables, write_tables
from pyro_contrastive.testing import TreatmentSettings, simulate_treatment


def fitted(**columns: str) -> ContrastiveVI:
    """Return a model that was trained for a moment; half of the genes respond strongly."""
    settings = TreatmentSettings(
        n_background=120, n_target=120, n_genes=40, n_types=2, share_affected=0.5, smallest_lfc=1.5
    )
    adata = simulate_treatment(settings, seed=0)
    adata.obs["patient"] = [f"p{i % 4}" for i in range(adata.n_obs)]
    adata.obs["alone"] = adata.obs["condition"].astype(str)
    keys = {"condition_key": "condition", "background": "control", "sample_key": "patient"}
    one_donor = pytest.warns(UserWarning, match="what distinguishes one donor")
    with one_donor if "sample_key" in columns else nullcontext():
        ContrastiveVI.setup_anndata(adata, **(keys | columns))
    torch.manual_seed(0)
    model = ContrastiveVI(adata, n_hidden=16)
    model.train(max_epochs=1, enable_progress_bar=False, seed=0)
    return model


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    return fitted()


@pytest.fixture(scope="module")
def tables(model: ContrastiveVI) -> GeneTables:
    return make_tables(model, GeneRequest(labels="cell_type", strata=1))


def test_tables_of_all_cells_of_labels_and_of_donors_are_written(
    tables: GeneTables, tmp_path: Path
) -> None:
    assert write_tables(tables, tmp_path) == ["genes.csv", "genes_by_label.csv", "effects.csv"]
    genes = pd.read_csv(tmp_path / "genes.csv", index_col="gene")
    assert len(genes) == 40
    assert (genes["n_donors1"] == 4).all()
    by_label = pd.read_csv(tmp_path / "genes_by_label.csv", index_col="gene")
    assert set(by_label["stratum"]) == {"type 0", "type 1"}
    effects = pd.read_csv(tmp_path / "effects.csv", index_col="gene")
    assert set(effects["sample"]) == {"p0", "p1", "p2", "p3", "all donors"}


def test_words_and_table_hold_the_numbers_of_the_test(tables: GeneTables) -> None:
    assert tables.genes is not None
    n_found = int(tables.genes["is_de_fdr_0.05"].sum())
    assert n_found > 10
    sentence, unit = in_words(tables)
    assert sentence.startswith(f"treated vs control: {n_found} of the 40 genes tested differ")
    assert unit.startswith("Donors (patient) are the replicates")
    answer = answer_of(tables, "cell type", cautions=["Beware."], no_null="not asked for")
    top, by_label = answer.tables
    assert list(top.table.index) == list(tables.genes.index[: len(top.table)])
    assert by_label.table["found"].sum() == tables.by_label["is_de_fdr_0.05"].sum()
    assert answer.cautions == [
        "Beware.",
        "Nothing says what shuffled conditions would give: not asked for.",
    ]


def test_a_volcano_and_a_map_of_effects_are_drawn(tables: GeneTables) -> None:
    figures = FigureSet()
    add_gene_figures(figures, tables, "cell type")
    assert set(figures.files) == {"volcano.png", "effects.png"}
    assert all(png.startswith(b"\x89PNG") for png in figures.files.values())


def test_other_reasons_do_not_make_cells_replicates(
    model: ContrastiveVI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that leave nothing to compare donors by would leave false discoveries of cells."""

    def refuse(*, sample_key: object, **_: object) -> None:
        assert sample_key == "patient"
        raise ValueError("Register no batch_key.")

    monkeypatch.setattr(model, "differential_expression", refuse)
    tables = make_tables(model, GeneRequest())
    assert tables.genes is None
    assert tables.reasons == {"genes": "Register no batch_key."}


def test_where_donors_cannot_be_compared_cells_are_and_the_page_says_so() -> None:
    tables = make_tables(fitted(sample_key="alone"), GeneRequest(strata=1))
    assert tables.genes is not None
    assert tables.sample_key is None
    answer = answer_of(tables, "labels", cautions=[])
    assert answer.cautions[0].startswith("Donors are not the replicates: ")
    assert "Cells are the replicates" in answer.sentences[-1]


def test_nothing_found_is_said_without_a_table_of_genes(tables: GeneTables) -> None:
    assert tables.genes is not None
    genes = tables.genes.assign(**{"is_de_fdr_0.05": False})
    none = GeneTables(request=GeneRequest(), genes=genes)
    assert in_words(none)[0].startswith("treated vs control: None of the 40 genes tested differs")
    assert answer_of(none, "labels", cautions=[]).tables == []


def test_a_single_gene_of_the_sexes_is_pointed_to(tables: GeneTables) -> None:
    assert tables.genes is not None
    genes = tables.genes.rename(index={tables.genes.index[0]: "XIST"})
    genes.loc["XIST", "note"] = "sex-linked: donors of different sex?"
    sentences = in_words(GeneTables(request=GeneRequest(), genes=genes))
    assert any("tell the sexes apart (XIST)" in sentence for sentence in sentences)
    assert not any("sexes" in sentence for sentence in in_words(tables))


def test_a_reason_ends_with_one_full_stop() -> None:
    tables = GeneTables(request=GeneRequest(), reasons={"genes": "There are no counts."})
    answer = answer_of(tables, "labels", cautions=[], no_null="Too few cells.")
    assert answer.cautions[0] == "genes.csv was not made: There are no counts."
    assert answer.cautions[1].endswith("would give: Too few cells.")
