"""Does the background latent separate patients unless given them? scvi-tools and ours.

    python benchmarks/patients_gbm.py zhao2021_gbm_panobinostat.h5ad [--seeds 3] [--epochs N]

Every patient contributed treated and untreated cells, so differences between patients are variation
that both share. Prints how well patients are separated in the background latent (NMI and ARI of
k-means, silhouette; mixing, which is 1 where they are indistinguishable), without a batch key and
with ``batch_key="patient_id"``, and how well the conditions mix there: mean and standard deviation
over seeds, and ours minus scvi-tools'. Needs the ``parity`` extra.
"""

from __future__ import annotations

from common import OURS, fit_all, less_reference, parser, read_counts, show, start, summarise

from pyro_contrastive.analysis.separation import score_labels

CONDITION, BACKGROUND, PATIENT = "condition", "ctrl", "patient_id"


def main() -> None:
    """Fit all models with all seeds, with and without batches, print both tables."""
    made = parser(__doc__, help="h5ad of glioblastoma cells (Zhao et al. 2021), raw counts")
    made.set_defaults(seeds=3)
    made.add_argument("--ours", nargs="*", choices=list(OURS), default=list(OURS))
    options = made.parse_args()
    start(options)
    adata = read_counts(options.data)
    print(f"{adata.n_obs} cells, {adata.n_vars} genes, {adata.obs[PATIENT].nunique()} patients")
    ours = {name: OURS[name] for name in options.ours}
    rows = []
    for batch_key in (None, PATIENT):
        fits = fit_all(adata, CONDITION, BACKGROUND, options, batch_key=batch_key, ours=ours)
        for name, seed, model in fits:
            latent = model.get_latent_representation(representation_kind="background")
            scores = score_labels(latent, adata.obs[PATIENT])
            mixing = score_labels(latent, adata.obs[CONDITION])["mixing"]
            row = {"batch_key": str(batch_key), "model": name, "seed": seed}
            rows.append(row | scores | {"mixing of condition": mixing})
    means = summarise(rows, ["batch_key", "model"])
    show(f"patients in the background latent, mean of {options.seeds} seeds", means)
    show("minus scvi-tools", less_reference(means))


if __name__ == "__main__":
    main()
