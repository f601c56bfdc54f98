"""Do salient latents know the knock-out? Priors with and without a mean per treatment.

    python benchmarks/treatments_papalexi.py papalexi2021_eccite_299genes.h5ad [--seeds 3]

ECCITE-seq cells with one of 25 genes knocked out, against cells with non-targeting guides. Four
fifths of the cells of every knock-out are trained on. How well the rest, which no model has seen,
can be told apart by their salient latent (the encoder is told counts and batch, never the
knock-out): balanced accuracy of a multinomial logistic regression that is fitted on the training
cells' latents (chance: 1/25), and its top-5 accuracy; and, for priors that have a mean per
knock-out, the balanced accuracy of the nearest mean, for which no probe is fitted at all. Printed
per prior, mean and standard deviation over seeds; beside them scvi-tools' model, and the principal
components of the counts. Needs the ``parity`` extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pyro
from anndata import AnnData
from common import parser, read_counts, show, start, summarise
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_contrastive import (
    ContrastiveVI,
    EscapingPerturbation,
    PerConditionNormal,
    Prior,
    ShrinkMeans,
)

CONTROL, GENE, BATCH = "non-targeting", "target_gene", "bio_rep"
N_SALIENT = 10

Latent = NDArray[np.float32]
Cells = NDArray[np.int64]


def scores(latent: Latent, gene: NDArray[np.str_], seen: Cells, unseen: Cells) -> dict[str, float]:
    """Fit a linear probe on the cells seen, score it on the others."""
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced")
    ).fit(latent[seen], gene[seen])
    return {
        "accuracy": balanced_accuracy_score(gene[unseen], probe.predict(latent[unseen])),
        "top 5": top_k_accuracy_score(
            gene[unseen], probe.predict_proba(latent[unseen]), k=5, labels=probe.classes_
        ),
    }


def priors(sizes: list[int]) -> dict[str, Callable[[], tuple[Prior | None, list[ShrinkMeans]]]]:
    """Make prior and penalties anew for every fit."""
    n = len(sizes)
    return {
        "ours, standard normal": lambda: (None, []),
        "ours, PerConditionNormal": lambda: (PerConditionNormal(n, N_SALIENT), []),
        "ours, PerConditionNormal + ShrinkMeans": lambda: (
            PerConditionNormal(n, N_SALIENT),
            [ShrinkMeans(sizes, weight=10.0)],
        ),
        "ours, EscapingPerturbation": lambda: (EscapingPerturbation(n, N_SALIENT), []),
    }


def nearest_mean(latent: Latent, means: Latent, names: list[str]) -> NDArray[np.str_]:
    """Name the condition whose prior mean is nearest to each cell; the background is left out."""
    distances = ((latent[:, None] - means[None, 1:]) ** 2).sum(-1)  # [cells, knock-outs]
    return np.array(names[1:])[distances.argmin(1)]


def ours(
    adata: AnnData, seen: Cells, epochs: int, seed: int
) -> Iterator[tuple[str, Latent, NDArray[np.str_] | None]]:
    """Fit our model under every prior; yield salient latents, and nearest means, of all cells."""
    ContrastiveVI.setup_anndata(adata, batch_key=BATCH, condition_key=GENE, background=CONTROL)
    train = adata[seen].copy()
    names = ContrastiveVI(train, n_hidden=2).setup.conditions
    counts = train.obs[GENE].astype(str).value_counts()
    for name, make in priors([int(counts[n]) for n in names]).items():
        pyro.set_rng_seed(seed)
        prior, penalties = make()
        model = ContrastiveVI(
            train, n_salient_latent=N_SALIENT, salient_prior=prior, penalties=penalties
        )
        model.train(max_epochs=epochs, seed=seed, enable_progress_bar=False)
        latent = model.get_latent_representation(adata, representation_kind="salient")
        means = getattr(prior, "means", None)
        if means is None:
            yield name, latent, None
        else:
            yield name, latent, nearest_mean(latent, means.detach().cpu().numpy(), names)


def reference(adata: AnnData, seen: Cells, epochs: int, seed: int) -> Latent:
    """Fit scvi-tools' model; return salient latents of all cells."""
    import scvi

    scvi.settings.seed = seed
    scvi.settings.verbosity = 30
    train = adata[seen].copy()
    scvi.external.ContrastiveVI.setup_anndata(train, batch_key=BATCH)
    model = scvi.external.ContrastiveVI(train, n_salient_latent=N_SALIENT)
    is_target = (train.obs[GENE].astype(str) != CONTROL).to_numpy()
    model.train(
        background_indices=np.flatnonzero(~is_target).tolist(),
        target_indices=np.flatnonzero(is_target).tolist(),
        max_epochs=epochs,
        enable_progress_bar=False,
    )
    other = adata.copy()
    return model.get_latent_representation(other, representation_kind="salient")


def main() -> None:
    """Fit everything with all seeds; print a table."""
    made = parser(__doc__, help="h5ad of ECCITE-seq cells (Papalexi et al. 2021), raw counts")
    made.set_defaults(seeds=3, epochs=60)
    made.add_argument("--without-reference", action="store_true")
    options = made.parse_args()
    start(options)
    adata = read_counts(options.data)
    gene = adata.obs[GENE].astype(str).to_numpy()
    knocked_out = gene != CONTROL
    rows = []
    for seed in range(options.seeds):
        seen, unseen = train_test_split(
            np.arange(adata.n_obs), test_size=0.2, stratify=gene, random_state=seed
        )
        seen.sort()
        probed = seen[knocked_out[seen]], unseen[knocked_out[unseen]]
        depth = np.asarray(adata.X.sum(1))
        logs = np.log1p(adata.X.toarray() / depth * np.median(depth))
        latents = {"principal components": PCA(N_SALIENT, random_state=seed).fit_transform(logs)}
        if not options.without_reference:
            latents["scvi-tools"] = reference(adata, seen, options.epochs, seed)
        named: dict[str, NDArray[np.str_]] = {}
        for name, latent, nearest in ours(adata, seen, options.epochs, seed):
            latents[name] = latent
            if nearest is not None:
                named[name] = nearest
        for name, latent in latents.items():
            rows.append({"model": name, "seed": seed} | scores(latent, gene, *probed))
            unseen_cells = probed[1]
            rows[-1]["nearest mean"] = (
                balanced_accuracy_score(gene[unseen_cells], named[name][unseen_cells])
                if name in named
                else float("nan")
            )
            print(pd.Series(rows[-1]).to_string(), flush=True)
    show(f"knock-out of unseen cells, mean of {options.seeds} seeds", summarise(rows, ["model"]))


if __name__ == "__main__":
    main()
