"""Does the salient latent separate 1 h and 3 h of dexamethasone? scvi-tools and ours.

    python benchmarks/salient_a549.py scicar_a549_dex.h5ad [--seeds 3] [--epochs N]

The time since treatment is a known label of the target cells that no model is given. Prints how
well the two times are separated among target cells (NMI and ARI of k-means with two clusters,
silhouette; mixing, which is low where they are), in the salient latent and, for comparison, in the
background latent: mean and standard deviation over seeds, and ours minus scvi-tools'. Needs the
``parity`` extra.
"""

from __future__ import annotations

import numpy as np
from common import fit_all, less_reference, parser, read_counts, show, start, summarise

from pyro_contrastive.analysis.separation import score_labels

CONDITION, BACKGROUND, TIME = "condition", "control", "time_h"


def main() -> None:
    """Fit all models with all seeds, print both tables."""
    made = parser(__doc__, help="h5ad of sci-CAR A549 cells (Cao et al. 2018), raw counts")
    made.set_defaults(seeds=3)
    options = made.parse_args()
    start(options)
    adata = read_counts(options.data)
    is_target = (adata.obs[CONDITION].astype(str) != BACKGROUND).to_numpy()
    time = adata.obs[TIME].astype(str).to_numpy()[is_target]
    times = dict(zip(*np.unique(time, return_counts=True), strict=True))
    print(f"{(~is_target).sum()} and {is_target.sum()} cells {times}, {adata.n_vars} genes")
    rows = []
    for name, seed, model in fit_all(adata, CONDITION, BACKGROUND, options):
        for kind in ("salient", "background"):
            latent = model.get_latent_representation(representation_kind=kind)
            scores = score_labels(latent[is_target], time)
            rows.append({"latent": kind, "model": name, "seed": seed} | scores)
    means = summarise(rows, ["latent", "model"])
    show(f"separation of 1 h and 3 h, mean of {options.seeds} seeds", means)
    show("minus scvi-tools", less_reference(means))


if __name__ == "__main__":
    main()
