"""Change the files of a saved model, as somebody who writes new checksums, or an old version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from pyro_contrastive.saving.checksums import CHECKSUMS, sealed
from pyro_contrastive.saving.folder import FIRST
from pyro_contrastive.saving.saved_config import ADATA, CONFIG, SINCE_2, WEIGHTS


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the configuration, and write checksums that fit the files as they are now."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    if CHECKSUMS in config:
        del config[CHECKSUMS]
        others = {name: folder / name for name in (WEIGHTS, ADATA) if (folder / name).exists()}
        config = sealed(config, CONFIG, others)
    (folder / CONFIG).write_text(json.dumps(config))


def as_format_1(folder: Path) -> None:
    """Make a saved model one of the first format, which had no checksums."""

    def change(config: dict[str, Any]) -> None:
        config["format"] = 1
        for name in SINCE_2:
            del config[name]

    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if not k.startswith(FIRST)}, folder / WEIGHTS)
    edit_config(folder, change)
