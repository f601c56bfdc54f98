"""The README's code runs, as written, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_every_python_block_runs(tmp_path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        short = block.replace('schedule="fast"', 'schedule="fast", max_epochs=1')
        exec(compile(short, str(README), "exec"), names)
    assert names["adata"].obsm["X_salient"].shape == (3474, 10)
    assert (tmp_path / "kang_model" / "config.json").exists()
    assert names["untreated"].shape == (3474, 2000)
    assert names["effect"]["upper"].shape == (347, 2)  # the cells that did not train
    assert set(names["effects"]["group"]) == set(names["adata"].obs["cell_type_coarse"])
    assert names["null"].answer in {"response", "signs", "none"}
    assert len(names["genes"]) == 2000
    assert names["log_likelihood"] < 0
    assert {"observed", "reading"} <= set(names["summary"])
    assert names["draws"].posterior_predictive.sizes["gene"] == 1
    assert names["table"].loc["salient map", "reading"]
    assert names["refined"]["upper"].shape == (50, 1)
    assert len(names["k_refined"]) == 50
    assert len(names["leaks"]) == 4
    assert names["replicate"]["x"].shape == (10, 256, 2000)
    assert names["zeros_replicated"].shape == (10,)
    assert names["scale"].shape == (256, 2000)


def test_the_names_it_shows_in_a_shell_exist() -> None:
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"python (benchmarks/\S+\.py)", text):
        assert (README.parent / script).exists(), script
