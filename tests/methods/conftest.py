"""Cells for tests of a model's methods."""

from __future__ import annotations

import anndata as ad
import pytest
from small_model import small_adata


@pytest.fixture
def adata() -> ad.AnnData:
    return small_adata()
