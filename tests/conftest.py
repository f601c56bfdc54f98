"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch

from pyro_contrastive.density import nonzero


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Give every test the same random numbers and an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: threads cost more than they give
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["gathered", "everywhere"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate densities as on a CPU, and as on a GPU."""
    if request.param == "everywhere":
        monkeypatch.setattr(nonzero, "GATHERED_ON", set())


@pytest.fixture
def untouched_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Require that figures are neither shown nor change how others look."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("plt.show was called"))
    before = mpl.rcParams.copy()
    yield
    assert mpl.rcParams == before
    plt.close("all")
