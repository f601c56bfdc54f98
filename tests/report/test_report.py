"""The page holds everything, explains it, and cannot be broken by the names in the data."""

from __future__ import annotations

import ast
import base64
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from scipy import ndimage, sparse

from pyro_contrastive.analysis.separation import score_latents
from pyro_contrastive.plotting.style import GREY
from pyro_contrastive.report import ReportFigure, ReportPage, ReportTable, write_report
from pyro_contrastive.report.demo import DEMO_STUDY, run_demo
from pyro_contrastive.report.figures import FigureSet, draw_figures
from pyro_contrastive.report.html import _format_cell, installed_versions
from pyro_contrastive.report.results import write_results
from pyro_contrastive.report.study import Columns, FitSettings, Study
from pyro_contrastive.report.summary import describe_training, print_summary, training_facts
from pyro_contrastive.report.tables import cell_counts, response_table
from pyro_contrastive.training.history import FitResult

EVIL = "<script>alert('x')</script>&\""


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "  # Neighbouring table cells are separate words.

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def cells(n: int = 40) -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "arm": pd.Categorical(np.tile(["drug", "no <b>drug</b>"], n // 2)),
            "kind": np.repeat(["T cell", EVIL], n // 2),
        },
        index=[f"cell {i}" for i in range(n)],
    )
    counts = rng.poisson(3, size=(n, 6)).astype(np.float32)
    counts[:, 2] += 20 * (obs["arm"] == "drug").to_numpy()
    var = pd.DataFrame(index=["A", "B", EVIL, "D", "E", "F"])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


COLUMNS = Columns(condition_key="arm", background="no <b>drug</b>")
STUDY = Study(
    name="mine",
    title=f"Title {EVIL}",
    lead="Lead",
    columns=COLUMNS,
    label_key="kind",
    label_name="kind of cell",
    source="First line\n\nSecond line",
)


class StandIn:
    """What a fitted model looks like to the report."""

    def __init__(self, data: ad.AnnData) -> None:
        rng = np.random.default_rng(1)
        shift = 10 * (data.obs["arm"] == "drug").to_numpy()[:, None]
        self.latents = {
            "background": rng.normal(size=(data.n_obs, 3)),
            "salient": rng.normal(size=(data.n_obs, 2)) + shift,
        }
        self.history = {
            "elbo_train": pd.DataFrame({"elbo_train": [30.0, 20.0, 15.25]}),
            "elbo_validation": pd.DataFrame({"elbo_validation": [31.0, 17.75, 18.0]}),
        }

    held_out_indices = None
    setup = SimpleNamespace(sample_key=None)

    def differential_expression(self, **settings: Any) -> pd.DataFrame:
        raise ValueError("a stand-in tests no genes")

    def null_check(self, n_shuffles: int, **settings: Any) -> None:
        raise ValueError("a stand-in is not fitted again")

    def get_latent_representation(self, *, representation_kind: str) -> np.ndarray:
        return self.latents[representation_kind]

    def save(self, dir_path: str, *, overwrite: bool = False) -> None:
        Path(dir_path).mkdir(exist_ok=overwrite)
        (Path(dir_path) / "weights").write_text("w")


Results = tuple[Path, StandIn, pd.DataFrame, Page]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("results")
    data = cells()
    model = StandIn(data)
    scores = write_results(
        model,
        data,
        out,
        STUDY,
        settings=FitSettings(model={"n_hidden": 77}, train={"plan_kwargs": {"lr": 0.125}}),
        seconds=83.4,
        method="pca",
    )
    return out, model, scores, Page((out / "index.html").read_text(encoding="utf-8"))


def test_page_needs_nothing_from_outside(results: Results) -> None:
    *_, page = results
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for address in page.attributes("src"):
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert all(address.startswith("#") for address in page.attributes("href"))
    assert "url(http" not in page.text
    assert "@import" not in page.text


def test_links_lead_to_sections_and_ids_are_unique(results: Results) -> None:
    *_, page = results
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    links = {address.removeprefix("#") for address in page.attributes("href")}
    assert links
    assert links <= set(ids)


def is_grey_drawn(png: bytes) -> bool:
    pixels = imread(BytesIO(png))[..., :3]
    is_grey = (np.abs(pixels - to_rgb(GREY)) < 1e-3).all(axis=-1)
    return bool(ndimage.binary_erosion(is_grey, iterations=2).any())  # not the edge of a letter


def test_maps_by_condition_have_grey_background_cells_and_say_so(results: Results) -> None:
    out, *_, page = results
    for name in ("background", "salient"):
        assert is_grey_drawn((out / "figures" / f"{name}_by_condition.png").read_bytes())
        assert not is_grey_drawn((out / "figures" / f"{name}_by_labels.png").read_bytes())
    assert is_grey_drawn((out / "figures" / "latents.png").read_bytes())
    assert page.text.count("Grey: no <b>drug</b>.") == 2


def test_maps_are_drawn_if_no_background_cell_is_among_those_shown() -> None:
    rng = np.random.default_rng(0)
    latents = {name: rng.normal(size=(8, 2)) for name in ("background", "salient")}
    condition = pd.Series(["a", "b"] * 4, name="condition")
    scores = pd.DataFrame(
        {"latent": ["salient"], "of": "x", "measure": "m", "value": [-0.001], "best": "low"}
    )
    history = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}
    figures = draw_figures(
        latents, {"condition": condition}, history, scores, background="control", method="pca"
    )
    assert not is_grey_drawn(figures.files["salient_by_condition.png"])
    assert "m of x in salient 0.00." in figures.scores[0].alt


def test_every_image_has_an_alternative_text_and_a_caption(results: Results) -> None:
    *_, page = results
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    # Two latents by two colourings, training curves, scores.
    assert len(images) == 6
    assert all(len(attrs["alt"]) > 20 for attrs in images)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == 6
    assert page.text.count("What to see:") == 6


def test_names_in_the_data_are_escaped(results: Results) -> None:
    out, *_, page = results
    assert "<script" not in (out / "index.html").read_text(encoding="utf-8")
    assert page.text.count(EVIL) >= 3
    assert "no <b>drug</b>" in page.text


def test_page_shows_counts_scores_training_and_settings(results: Results) -> None:
    _, _, scores, page = results
    flat = " ".join(page.text.split())
    assert "40 cells and 6 genes" in flat
    for row in scores.to_dict("records"):
        assert row["reading"] in flat
        assert f"{row['value']:.3f}" in flat
    for text in ("1 min 23 s", "17.8 nats per pair", "model: n_hidden 77", "{'lr': 0.125}"):
        assert text in flat
    for text in ("kind of cell", "First line", "Second line", *installed_versions()):
        assert text in flat


def test_every_listed_file_is_there_and_nothing_else(results: Results) -> None:
    out, *_ = results
    listed = {"index.html", "mine.h5ad", "latents.csv", "model", "scores.csv", "figures"}
    listed.add("manifest.json")
    assert {path.name for path in out.iterdir()} == listed
    assert {path.name for path in (out / "figures").iterdir()} == {
        "latents.png",
        "background_by_condition.png",
        "salient_by_condition.png",
        "background_by_labels.png",
        "salient_by_labels.png",
        "training.png",
        "scores.png",
    }
    assert (out / "model" / "weights").exists()


def test_latents_and_scores_are_written_as_they_are(results: Results) -> None:
    out, model, scores, _ = results
    written = ad.read_h5ad(out / "mine.h5ad")
    for kind, latent in model.latents.items():
        np.testing.assert_array_equal(written.obsm[f"X_{kind}"], latent)
    pd.testing.assert_frame_equal(pd.read_csv(out / "scores.csv"), scores)
    condition = written.obs["arm"].astype(str)
    expected = score_latents(
        *model.latents.values(),
        condition,
        labels=written.obs["kind"],
        background_category="no <b>drug</b>",
        n_neighbors=10,
    )
    pd.testing.assert_frame_equal(scores, expected)


def test_loading_code_is_python_that_names_the_files(results: Results) -> None:
    *_, page = results
    start = page.text.index("import anndata as ad")
    code = page.text[start : page.text.index("Made with")]
    ast.parse(code)
    assert 'read_h5ad("mine.h5ad")' in code
    assert 'load("model"' in code


def test_page_without_labels(tmp_path: Path) -> None:
    data = cells()
    study = Study(name="mine", title="t", lead="l", columns=COLUMNS)
    scores = write_results(
        StandIn(data), data, tmp_path, study, settings=FitSettings(), seconds=1, method="pca"
    )
    assert set(scores["of"]) == {"condition"}
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    assert "all cells" in page.text


def write_small(path: Path, background: str = "control", **change: Any) -> Page:
    counts = pd.DataFrame({"control": [3], "drug": [4]}, index=["all cells"])
    scores = score_latents(
        np.arange(7.0)[:, None],
        np.arange(7.0)[:, None],
        list("cccdddd"),
        background_category="c",
        n_neighbors=2,
    )
    call = {
        "study": Study(
            name="mine",
            title="T",
            lead="L",
            columns=Columns(condition_key="arm", background=background),
        ),
        "cell_counts": counts,
        "n_genes": 5,
        "scores": scores,
        "figures": FigureSet(),
        "training": {},
        "settings": {},
    }
    return Page(write_report(path, ReportPage(**(call | change))).read_text(encoding="utf-8"))


def test_write_report_takes_any_tables_and_figures(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    page = write_small(
        tmp_path / "page.html",
        figures=FigureSet(
            latents=[ReportFigure(title="F", image=figure, alt="a line", reading="It rises.")]
        ),
        tables=[
            ReportTable(
                title="My table",
                table=pd.DataFrame({"x": [1234567, 0.00123]}, index=["r", "q"]),
                reading="Read me.",
            )
        ],
        versions={"thing": "9.9"},
    )
    for text in ("It rises.", "My table", "Read me.", "1,234,567", "0.00123", "thing", "9.9"):
        assert text in page.text
    assert "a line" in page.attributes("alt")
    # What was not given has no heading and no link.
    assert "Where the data come from" not in page.text
    assert "To load the results" not in page.text


def test_checks_section_is_left_out_without_tables(tmp_path: Path) -> None:
    assert "#checks" not in write_small(tmp_path / "page.html").attributes("href")


def test_background_must_be_a_column_of_the_counts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'placebo'; it has: control, drug"):
        write_small(tmp_path / "page.html", background="placebo")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(12345), "12,345"),
        (0.04693, "0.0469"),
        (12.0, "12.0"),
        (np.float32(1234.5), "1,234"),
        (float("inf"), "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
        ("as is", "as is"),
        (True, "True"),
        (None, "None"),
    ],
)
def test_numbers_are_written_for_people(value: object, text: str) -> None:
    assert _format_cell(value) == text


def test_cell_counts_put_background_first_and_large_labels_on_top() -> None:
    condition = pd.Series(["x", "ctrl", "a", "a", "ctrl", "a"])
    labels = pd.Series(["B", "T", "T", "T", "T", "B"], name="cell type")
    table = cell_counts(condition, labels, "ctrl")
    assert table.columns.tolist() == ["ctrl", "a", "x"]
    assert table.index.tolist() == ["T", "B"]
    assert table.to_numpy().tolist() == [[2, 2, 0], [0, 1, 1]]
    assert table.index.name == "cell type"
    assert cell_counts(condition, None, "ctrl").to_numpy().tolist() == [[2, 3, 1]]


COUNTS = np.array([[2, 0, 5], [0, 0, 5], [6, 1, 5], [2, 3, 5]])
IS_TARGET = np.array([False, False, True, True])


def counts_of(matrix: Any) -> ad.AnnData:
    var = pd.DataFrame(index=["up", "new", "flat"])
    obs = pd.DataFrame(index=[str(i) for i in range(len(COUNTS))])
    return ad.AnnData(matrix, obs=obs, var=var, layers={"twice": matrix * 2})


@pytest.mark.parametrize("matrix", [COUNTS, sparse.csr_matrix(COUNTS), sparse.csc_matrix(COUNTS)])
def test_response_of_named_genes_by_hand(matrix: Any) -> None:
    data = counts_of(matrix.astype(np.float32))
    table = response_table(data, IS_TARGET, genes=["new", "up"])
    assert table.index.tolist() == ["new", "up"]
    assert table.to_numpy().tolist() == [[0, 2, np.inf, 0, 100], [1, 4, 4, 50, 100]]
    twice = response_table(data, IS_TARGET, genes=["up"], layer="twice")
    assert twice["mean count, target"].item() == 8


def test_response_finds_the_gene_that_responds() -> None:
    data = cells()
    is_target = (data.obs["arm"] == "drug").to_numpy()
    assert response_table(data, is_target, n_top=2).index[0] == EVIL
    assert len(response_table(data, is_target, n_top=2)) == 2


def test_response_of_values_that_are_no_counts_is_a_difference() -> None:
    values = np.array([[0.5, 0.0, 3.0], [1.5, 0.0, 3.5], [4.0, 0.25, 3.0], [2.0, 0.0, 3.5]])
    is_target = np.array([False, False, True, True])
    data = ad.AnnData(values, var=pd.DataFrame(index=["up", "new", "flat"]))
    table = response_table(data, is_target, genes=["up", "new"])
    assert table.columns.tolist()[:3] == [
        "mean value, background",
        "mean value, target",
        "difference",
    ]
    assert table.to_numpy().tolist() == [[1, 3, 2, 100, 100], [0, 0.125, 0.125, 0, 50]]
    # 2 over sqrt((.25 + 1) / 2); .125 over sqrt(.0156 / 2); 0.
    assert response_table(data, is_target).index.tolist() == ["up", "new", "flat"]


def test_response_names_absent_genes() -> None:
    data = counts_of(COUNTS.astype(np.float32))
    with pytest.raises(ValueError, match="not in the data: X1, X2"):
        response_table(data, IS_TARGET, genes=["X1", "up", "X2"])


def test_training_facts() -> None:
    history = {
        "elbo_train": pd.DataFrame({"elbo_train": [3.0, 2.0, 1.0]}),
        "elbo_validation": pd.DataFrame({"elbo_validation": [3.0, 1.5, np.nan]}),
    }
    assert training_facts(history, 59.6) == {
        "epochs": "3",
        "wall time": "1 min 0 s",
        "best held-out negative ELBO": "1.5 nats per pair",
        "reached at epoch (counted from 0)": "1",
        "last training negative ELBO": "1.0 nats per pair",
    }
    assert training_facts({}, 2.2) == {"epochs": "not recorded", "wall time": "2 s"}


HISTORY = {"elbo_validation": pd.DataFrame({"elbo_validation": [9.0, 1.5, 2.5, 2.0]})}


@pytest.mark.parametrize(
    ("result", "history", "said"),
    [
        (
            FitResult(4, 1.0, True, False, 9, 1, "it has not improved for 2 checks"),
            HISTORY,
            "Trained 4 of 9 epochs: stopped early (it has not improved for 2 checks); best held-out"
            " -ELBO 1.5 per pair, at epoch 1, whose weights are kept (epochs counted from 0).",
        ),
        (FitResult(4, 1.0, max_epochs=4, best_epoch=3), HISTORY, "those of epoch 3, after the KL"),
        (FitResult(4, 1.0, max_epochs=4), HISTORY, "weights are those of the last epoch"),
        (FitResult(4, 1.0, False, True, 7, None, "Ctrl-C"), {}, "stopped early (Ctrl-C); no cells"),
    ],
)
def test_the_end_of_training_is_described(
    result: FitResult, history: dict[str, pd.DataFrame], said: str
) -> None:
    assert said in describe_training(result, history)


def test_demo_refuses_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr(
        "pyro_contrastive.report.demo.load_kang", lambda: pytest.fail("work was begun")
    )
    with pytest.raises(FileExistsError):
        run_demo(tmp_path)


def test_summary_prints_scores_and_an_unbroken_path(tmp_path: Path, results: Results) -> None:
    _, _, scores, _ = results
    console = Console(width=60, record=True, file=StringIO())
    folder = tmp_path / ("long [name] " * 8).strip()
    print_summary(scores, folder, 12.0, console=console)
    text = console.export_text()
    assert str(folder / "index.html") in text
    for value in scores["value"]:
        assert f"{value:.3f}" in text


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = run_demo(tmp_path / "demo", max_epochs=2, method="pca")
    out = tmp_path / "demo"
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    for gene in DEMO_STUDY.genes:
        assert gene in page.text
    written = ad.read_h5ad(out / "kang.h5ad")
    assert written.obsm["X_background"].shape == written.obsm["X_salient"].shape == (3474, 10)
    assert np.isfinite(scores["value"]).all()
    assert "index.html" in capsys.readouterr().out

    from pyro_contrastive.contrastive_vi import ContrastiveVI

    model = ContrastiveVI.load(str(out / "model"), adata=written)
    np.testing.assert_allclose(
        model.get_latent_representation(representation_kind="salient"),
        written.obsm["X_salient"],
        rtol=1e-4,
        atol=1e-5,
    )
