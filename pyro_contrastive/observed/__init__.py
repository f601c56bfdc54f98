"""Observations of cells: wherever they are kept, and as the tensors of a mini-batch."""
