"""The columns of a table of cells that a method reads, and the condition of the cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.columns import one_or_several

UNNAMED_CONDITIONS = ("background", "target")


def known_conditions(data: CellData) -> NDArray[np.int64]:
    """Return the condition code of every cell of the data.

    Raises
    ------
    ValueError
        If the model knows of none.
    """
    if data.condition is None:
        msg = "The model knows no conditions: set the data up with condition_key=, or train."
        raise ValueError(msg)
    return data.condition


def label_keys(
    obs: pd.DataFrame, given: object, argument: str, default: Sequence[str | None]
) -> list[str]:
    """Return the columns asked for, or those of the default that this table has.

    Parameters
    ----------
    obs
        A row per cell.
    given
        A name or several; ``None``: the default.
    argument
        Name of the argument, for the error.
    default
        Columns of the setup; ``None`` for one that was not set up.

    Raises
    ------
    KeyError
        If there is no such column; the error lists the columns.
    """
    if given is None:
        return list(dict.fromkeys(key for key in default if key is not None and key in obs))
    keys = one_or_several(argument, given, obs)
    missing = [key for key in keys if key not in obs]
    if missing:
        msg = f"{argument}: adata.obs has no column {missing}; it has {list(obs.columns)}."
        raise KeyError(msg)
    return keys
