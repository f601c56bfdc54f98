"""Odd arguments of saving and loading, and of the shell."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cells import cells, fresh, model, set_up
from outcomes import Case
from typer.testing import CliRunner

from pyro_contrastive import ContrastiveVI, Poisson, StandardNormal
from pyro_contrastive.cli import app


@cache
def folder() -> Path:
    """Return a folder with a saved model."""
    path = Path(tempfile.mkdtemp()) / "model"
    model().save(path)
    return path


@cache
def file() -> Path:
    """Return a file of cells."""
    path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    cells().write_h5ad(path)
    return path


def _new() -> Path:
    return Path(tempfile.mkdtemp()) / "new"


def saving() -> Iterator[Case]:
    """Yield cases of `save`, `load` and `from_scvi`."""
    for value in (3, None, ["a"], pd.DataFrame({"a": [1]}), 1.5):
        words = ("dir_path", "folder")
        yield Case("save", f"dir_path={value!r:.20}", lambda v=value: fresh().save(v), words)
        yield Case("load", f"dir_path={value!r:.20}", lambda v=value: _load(v), words)
    for name, values in {
        "overwrite": ("no", 2),
        "save_anndata": ("no", 2),
        "prefix": (3, ["a"], "../out", "a/b"),
        "nope": (3,),
    }.items():
        for value in values:
            yield Case(
                "save",
                f"{name}={value!r}",
                lambda n=name, v=value: fresh().save(_new(), **{n: v}),
                (name, "prefix"),
            )
    yield Case("save", "into a file", lambda: fresh().save(file()), ("is there already",))
    yield Case("save", "into a full folder", lambda: fresh().save(folder()), ("overwrite",))
    for name, values in {
        "adata": (3, "cells.h5ad", pd.DataFrame({"a": [1]}), np.ones((3, 15)), cells()),
        "accelerator": ("nope", 3),
        "device": ("nope", -5, 1.5),
        "prefix": ("nope", 3),
        "likelihood": ("zinb", 3, Poisson(), Poisson),
        "salient_prior": ("nope", 3, StandardNormal),
        "penalties": ("nope", 3, [1]),
        "guide": ("nope", 3),
        "nope": (3,),
    }.items():
        for value in values:
            yield Case(
                "load",
                f"{name}={value!r:.30}",
                lambda n=name, v=value: _load(folder(), **{n: v}),
                (name, "AnnData", "registered", "file", "genes", "saved", "parts"),
                "either" if name == "adata" and hasattr(value, "uns") else "error",
            )
    yield Case("load", "no folder", lambda: _load(_new()), ("no ", "not"))
    yield Case("load", "a file", lambda: _load(file()), ("folder", "file", "saved model"))
    for value in (3, None, "nope", pd.DataFrame({"a": [1]}), object(), "", file()):
        yield Case(
            "from_scvi",
            f"path_or_model={value!r:.30}",
            lambda v=value: ContrastiveVI.from_scvi(v, set_up()),
            ("scvi", "model.pt", "folder", "path", "torch.save", "There is no"),
        )


def _load(path: Any, **given: Any) -> ContrastiveVI:
    return ContrastiveVI.load(path, **({"adata": model().adata} | given))


OPTIONS: dict[str, tuple[str, ...]] = {
    "--n-salient-latent": ("0", "-1", "1.5", "1e8", "100000000", "x", "", "20000000000000000000"),
    "--n-background-latent": ("0", "1e8", "100000000", "x"),
    "--max-epochs": ("0", "-1", "1.5", "x"),
    "--batch-size": ("0", "-1", "x"),
    "--seed": ("-1", "x", "1.5", "18446744073709551616"),
    "--null-shuffles": ("-1", "x", "1.5"),
    "--preset": ("nope", "", "seperated"),
    "--likelihood": ("nope", ""),
    "--guide": ("nope", ""),
    "--schedule": ("nope", ""),
    "--embedding": ("nope", ""),
    "--condition-key": ("nope", "", "age"),
    "--background": ("nope", "", "Control"),
    "--label-key": ("nope", "", "condition"),
    "--sample-key": ("nope", ""),
    "--batch-key": ("nope", ""),
    "--layer": ("nope", ""),
    "--size-factor": ("nope", "", "age", "lane"),
    "--categorical-covariate": ("nope", ""),
    "--continuous-covariate": ("nope", "lane"),
    "--nope": ("3",),
}


def shell() -> Iterator[Case]:
    """Yield cases of the options of `pyro-contrastive fit`."""
    for option, values in OPTIONS.items():
        for value in values:
            yield Case("shell", f"{option} {value!r}", _run(option, value), ("Error",), _is_refusal)


def _run(option: str, value: str) -> Callable[[], Any]:
    given = {"--condition-key": "condition", "--background": "control"}
    given |= {"--preset": "separated", "--max-epochs": "1", "--null-shuffles": "0"}
    given |= {option: value}

    def call() -> Any:
        pairs = [text for pair in given.items() for text in pair]
        arguments = ["fit", str(file()), "--out", str(_new()), *pairs]
        return option, CliRunner().invoke(app, arguments)

    return call


def _is_refusal(found: Any) -> bool:
    """Tell whether a command refused an option: exit code 2, and a line that names it."""
    option, result = found
    text = result.output + result.stderr
    role = option.strip("-").partition("-")[0]
    named = option in text or role in text or "adata.obs" in text or "background" in text
    return result.exit_code == 2 and named and "Traceback" not in text
