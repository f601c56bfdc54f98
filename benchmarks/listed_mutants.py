"""Faults that the tests once did not notice: room, file, what is there, what takes its place."""

LISTED = (
    # Draws of a mean of 5,000 would be of a mean of 1,000.
    (
        *("distributions", "density/distributions.py"),
        *("_MAX_POISSON_RATE = 1e18", "_MAX_POISSON_RATE = 1e3"),
    ),
    # Second derivatives at a mean of 0 would be NaN.
    (
        *("distributions", "density/counts.py"),
        *("rate = torch.where(x > 0, m, 1)", "rate = m"),
    ),
    # Products of zeros' probabilities would underflow.
    ("kernels", "density/kernel_zeros.py", "LARGE_MEAN = f4(4.0)", "LARGE_MEAN = f4(40.0)"),
    # Either side of these branches is accurate only on its side.
    ("kernels", "density/kernel_functions.py", "SMALL = 1e-3", "SMALL = 1e-1"),
    ("kernels", "density/kernel_functions.py", "SMALL = 1e-3", "SMALL = 1e-9"),
    ("kernels", "density/kernel_functions.py", "SERIES_FROM = 10.0", "SERIES_FROM = 3.0"),
    ("kernels", "density/kernel_counts.py", "LARGE_LOGIT = f4(80.0)", "LARGE_LOGIT = f4(120.0)"),
    (
        *("kernels", "density/kernel_counts.py"),
        *("LARGE_LOGIT = f4(80.0)", "LARGE_LOGIT = f4(5.0)"),
    ),
    ("kernels", "density/kernel_zeros.py", "LIKELY = -0.5", "LIKELY = -1.0"),
    ("kernels", "density/kernel_zeros.py", "LIKELY = -0.5", "LIKELY = 0.0"),
    ("density", "density/nonzero_counts.py", "_SMALL = 1e-3", "_SMALL = 1e-1"),
    ("density", "density/nonzero_counts.py", "_SMALL = 1e-3", "_SMALL = 1e-9"),
    ("density", "density/nonzero_counts.py", "IDENTITY_FROM = 80.0", "IDENTITY_FROM = 10.0"),
    ("density", "density/counts.py", "_LARGE_MEAN = 4.0", "_LARGE_MEAN = 100.0"),
    ("density", "density/counts.py", "likely = shortfall > -1 / 2", "likely = shortfall > -1"),
    # Batches of held-out cells would be as large as the target cells are many.
    (
        *("splits", "training/splits.py"),
        *("-(-max(len(cells.background), len(cells.target))", "-(-max(1, len(cells.background))"),
    ),
    # Each epoch would have the same mini-batches.
    (
        *("splits", "training/splits.py"),
        *("order = self._rng.permutation(self._larger)", "order = self._larger"),
    ),
    (
        *("splits", "training/splits.py"),
        *("self._rng.permutation(self._smaller)])", "self._smaller])"),
    ),
    (
        *("plan", "training/plan.py"),
        *("round(CELLS_AT_MAX_EPOCHS", "int(CELLS_AT_MAX_EPOCHS"),
    ),
    ("plan", "training/plan.py", "round(FAST_STEPS", "int(FAST_STEPS"),
    ("plan", "training/plan.py", "round(WARMUP_FRACTION", "int(WARMUP_FRACTION"),
    # Found by drawing mutants (results/mutants.md).
    ("density", "density/heads.py", "ROOM = 2.0**40", "ROOM = 80.0"),
    ("penalties", "penalties/learned.py", "classifier(s).squeeze(-1)", "classifier(s).squeeze(1)"),
    ("penalties", "penalties/_pairs.py", "last == 2 * scale", "last == 2 / scale"),
    ("means", "analysis/means/group_effects.py", "len(paired) >= TWO", "len(paired) > TWO"),
    ("means", "analysis/means/results.py", '.index("p_value") + 1', '.index("p_value") - 1'),
    ("means", "analysis/means/pseudobulk.py", '["lfcSE"] * LOG_2', '["lfcSE"] / LOG_2'),
    (
        *("means", "analysis/means/sex_genes.py"),
        *("in SEX_LINKED or n.removesuffix", "in SEX_LINKED and n.removesuffix"),
    ),
)
