"""AnnData to :class:`~pyro_contrastive.CellBatch`: registration, validation, mini-batches."""

from pyro_contrastive.data.bundled import load_kang
from pyro_contrastive.data.cell_data import CellData
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.data.stores import open_on_disk

__all__ = ["CellData", "Setup", "load_kang", "open_on_disk"]
