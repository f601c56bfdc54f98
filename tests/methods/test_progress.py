"""The progress bar of the getters: after a few seconds, on stderr, where somebody looks."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from pyro_contrastive import ContrastiveVI, settings
from pyro_contrastive.analysis import progress as bars
from pyro_contrastive.testing import SimulationSettings, simulate

DRAWS = 40
GETTERS = {
    "get_latent_representation": ("Latents", 26, {}),
    "get_latent_library_size": ("Library sizes", 26, {}),
    "get_normalized_expression": ("Expression", 26, {}),
    "get_salient_normalized_expression": ("Expression", 26, {}),
    "get_specific_normalized_expression": ("Expression", 26, {"expression_type": "background"}),
    "get_counterfactual_expression": (
        "Counterfactual expression",
        26,
        {"condition": "treated", "n_samples": 2},
    ),
    "get_treatment_effect": ("Treatment effects", 26, {"n_samples": 3, "interval": 0.5}),
    "get_elbo": ("ELBO", 26, {}),
    "get_reconstruction_error": ("Reconstruction", 26, {}),
    "get_marginal_ll": ("Marginal likelihood", 26, {"n_mc_samples": 3}),
    "differential_expression": (
        "Differential expression",
        4 * DRAWS,  # two comparisons of two groups
        {"groupby": "condition", "n_samples_overall": DRAWS},
    ),
}


@pytest.fixture(scope="module")
def model() -> ContrastiveVI:
    adata = simulate(SimulationSettings(n_background=12, n_target=14, n_genes=9), seed=0)
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    return ContrastiveVI(adata, n_hidden=8, n_background_latent=3, n_salient_latent=2)


class Terminal:
    """A terminal that keeps what is drawn on it, and a clock beside it."""

    def __init__(self, monkeypatch, *, is_terminal: bool = True) -> None:
        self.file = StringIO()
        self.seconds_between_looks = 2.0
        self.now = 0.0
        self.console = Console(
            file=self.file, force_terminal=is_terminal, force_interactive=is_terminal, width=100
        )
        monkeypatch.setattr(bars, "stderr_console", lambda: self.console)
        monkeypatch.setattr(bars, "clock", self.clock)

    def clock(self) -> float:
        self.now += self.seconds_between_looks
        return self.now

    @property
    def drawn(self) -> str:
        return self.file.getvalue()


@pytest.mark.parametrize("name", GETTERS)
def test_slow_work_shows_a_bar_and_counts_every_cell_once(model, monkeypatch, name):
    description, total, arguments = GETTERS[name]
    counted = []
    advance = bars.CellBar.advance

    def recorded(bar, n_cells):
        counted.append((bar._n_cells, n_cells))
        advance(bar, n_cells)

    monkeypatch.setattr(bars.CellBar, "advance", recorded)
    terminal = Terminal(monkeypatch)
    getattr(model, name)(batch_size=5, **arguments)
    assert description in terminal.drawn
    assert f"/{total}" in terminal.drawn
    assert {announced for announced, _ in counted} == {total}
    assert sum(n for _, n in counted) == total


@pytest.mark.parametrize("name", GETTERS)
def test_quick_or_silent_work_leaves_no_trace(model, monkeypatch, capfd, name):
    _, _, arguments = GETTERS[name]
    terminal = Terminal(monkeypatch)
    getattr(model, name)(batch_size=5, silent=True, **arguments)
    terminal.seconds_between_looks = 0.01
    getattr(model, name)(batch_size=5, **arguments)
    assert terminal.drawn == ""
    assert capfd.readouterr() == ("", "")


def test_bars_are_switched_off_everywhere_at_once(model, monkeypatch, capsys):
    terminal = Terminal(monkeypatch)
    monkeypatch.setattr(settings, "progress_bars", False)
    model.get_latent_representation(batch_size=5)
    model.train(max_epochs=1)
    assert terminal.drawn == ""
    assert capsys.readouterr() == ("", "")


def test_nothing_is_drawn_where_nobody_looks(model, monkeypatch):
    terminal = Terminal(monkeypatch, is_terminal=False)
    model.get_latent_representation(batch_size=5)
    assert terminal.drawn == ""


def test_the_bar_comes_after_the_delay_and_not_for_the_last_cells(monkeypatch):
    terminal = Terminal(monkeypatch)
    terminal.seconds_between_looks = 0.0
    with bars.progress("Work", 10), bars.counted(10) as bar:
        terminal.now = bars.DELAY - 0.1
        bar.advance(4)
        assert terminal.drawn == ""
        terminal.now = bars.DELAY + 0.1
        bar.advance(6)
        assert terminal.drawn == ""  # all is done
    with bars.progress("Work", 10), bars.counted(10) as bar:
        terminal.now += bars.DELAY + 0.1
        bar.advance(4)
        assert "Work" in terminal.drawn
        assert "4/10" in terminal.drawn


def test_the_bar_goes_away_at_the_end_and_on_an_error(model, monkeypatch):
    terminal = Terminal(monkeypatch)
    for fails in (False, True):
        try:
            with bars.progress("Work", 10), bars.counted(10) as bar:
                bar.advance(4)
                bar.advance(1)
                started = bar._progress
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert started.live.is_started is False
        assert terminal.drawn.endswith("\x1b[2K")  # the line is wiped
    with bars.counted(3) as own:  # nobody's bar is left over
        assert own is not bar


def test_mini_batches_run_by_hand_have_a_bar_of_their_own(model, monkeypatch):
    from pyro_contrastive.analysis.posterior import latent_representation
    from pyro_contrastive.analysis.query import Query

    terminal = Terminal(monkeypatch)
    data = model.setup.extract(model.adata)
    query = Query(model.module, data, np.arange(26), batch_size=5)
    latent_representation(query, "salient", give_mean=True)
    assert "Cells" in terminal.drawn


def test_the_bar_is_for_stderr():
    assert bars.stderr_console().stderr


def test_settings():
    with pytest.raises(AttributeError):
        settings.progres_bars = False
    import logging

    import torch

    before, level = torch.get_rng_state(), logging.getLogger("pyro_contrastive").level
    settings.seed = 3
    first = torch.rand(2)
    settings.seed = 3
    assert torch.equal(first, torch.rand(2))
    assert settings.seed == 3
    settings.verbosity = "ERROR"
    assert settings.verbosity == logging.ERROR
    logging.getLogger("pyro_contrastive").setLevel(level)
    torch.set_rng_state(before)
