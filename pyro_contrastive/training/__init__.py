"""Fitting a ContrastiveVAE to data: splits, mini-batches, the loop, early stopping, history."""
