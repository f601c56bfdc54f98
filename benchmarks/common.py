"""What the benchmarks share: reading counts, fitting scvi-tools' model and ours, printing."""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.presets import Sizes, preset_arguments
from pyro_contrastive.testing import SimulationSettings, simulate

REFERENCE = "scvi-tools"
PACKAGES = ("pyro-contrastive", "pyro-ppl", "torch", "scvi-tools", "scanpy")


@dataclass(frozen=True)
class Configuration:
    """How to fit our model.

    Parameters
    ----------
    model
        Makes the keyword arguments of ``ContrastiveVI``, with new components for every fit.
    train
        Keyword arguments of ``train``.
    """

    model: Callable[[], Mapping[str, Any]] = dict
    train: Mapping[str, Any] = field(default_factory=dict)


OURS = {
    "ours": Configuration(),
    # The objective and the warm-up of scvi-tools: only mini-batches and seed differ.
    "ours, as scvi-tools": Configuration(train={"plan_kwargs": {"n_epochs_kl_warmup": 400}}),
    "ours, separated": Configuration(
        partial(preset_arguments, "separated", Sizes(2, 10, 10)), {"schedule": "fast"}
    ),
}


def parser(description: str, **data: Any) -> argparse.ArgumentParser:
    """Make a command line with the arguments that all benchmarks take."""
    made = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    if data:
        made.add_argument("data", **data)
    made.add_argument("--epochs", type=int, default=None, help="default: scvi-tools' rule")
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--threads", type=int, default=1)
    return made


def arguments_of_data(made: argparse.ArgumentParser) -> None:
    """Add the arguments of benchmarks on simulated counts."""
    made.add_argument("--cells", type=int, default=10_000)
    made.add_argument("--genes", type=int, default=2_000)
    made.add_argument("--density", type=float, default=0.1)
    made.add_argument("--batch-size", type=int, default=128, help="cells of each population")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--accelerator", default="cpu", help='"gpu" to measure on one')


def clock(accelerator: str) -> Callable[[], float]:
    """Return a clock: processor time, or on a GPU wall time once all queued work is done."""
    if accelerator == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def simulated(n_cells: int, n_genes: int, density: float, seed: int = 0) -> ad.AnnData:
    """Simulate counts with a share `density` of non-zero entries, half of the cells treated.

    They are drawn from the contrastive model, in pieces because this makes dense matrices.
    """
    total = 1.6 * n_genes * density  # a first guess, refined by bisection
    low, high = total / 30, total * 300
    for _ in range(20):
        total = (low * high) ** 0.5
        found = _some_counts(200, n_genes, total, seed).X
        low, high = (total, high) if found.nnz < density * 200 * n_genes else (low, total)
    n_pieces = -(-n_cells // 10_000)
    sizes = [len(part) for part in np.array_split(np.arange(n_cells), n_pieces)]
    pieces = [_some_counts(n, n_genes, total, seed + i) for i, n in enumerate(sizes)]
    return pieces[0] if n_pieces == 1 else ad.concat(pieces, index_unique="-")


def _some_counts(n_cells: int, n_genes: int, total: float, seed: int) -> ad.AnnData:
    half = n_cells // 2
    settings = SimulationSettings(half, n_cells - half, n_genes, mean_total=total)
    made = simulate(settings, seed=seed)
    return ad.AnnData(made.X, obs=made.obs[["condition"]])


def start(options: argparse.Namespace) -> None:
    """Set the number of threads, silence warnings, print versions, machine and options."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    installed = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{installed}\n{platform.machine()}, {torch.get_num_threads()} threads\n{vars(options)}")


def read_counts(path: str, n_top_genes: int = 2000, flavor: str = "seurat") -> ad.AnnData:
    """Read raw counts; keep the most variable genes and the cells with counts in them.

    Parameters
    ----------
    path
        An h5ad file.
    n_top_genes
        Genes to keep.
    flavor
        Flavour of scanpy's selection: "seurat" (log-normalised counts) or "seurat_v3" (counts).
    """
    threads = torch.get_num_threads()
    import scanpy as sc

    adata = ad.read_h5ad(path)
    if adata.n_vars > n_top_genes:
        ranked = adata.copy()
        if flavor != "seurat_v3":
            sc.pp.normalize_total(ranked, target_sum=1e4)
            sc.pp.log1p(ranked)
        sc.pp.highly_variable_genes(ranked, n_top_genes=n_top_genes, flavor=flavor)
        torch.set_num_threads(threads)  # numba and seurat_v3's loess take all cores from then on
        adata = adata[:, ranked.var["highly_variable"].to_numpy()]
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def fit_ours(
    adata: ad.AnnData,
    condition_key: str,
    background: str,
    *,
    batch_key: str | None = None,
    size_factor_key: str | None = None,
    configuration: Configuration | None = None,
    epochs: int | None = None,
    seed: int = 0,
) -> tuple[ContrastiveVI, float]:
    """Fit our model; `epochs` overrides the configuration's. Return the model and the seconds."""
    import pyro

    configuration = configuration or Configuration()
    pyro.set_rng_seed(seed)
    ContrastiveVI.setup_anndata(
        adata,
        batch_key=batch_key,
        size_factor_key=size_factor_key,
        condition_key=condition_key,
        background=background,
    )
    model = ContrastiveVI(adata, **configuration.model())
    given = {"max_epochs": epochs} if epochs else {}
    begun = time.perf_counter()
    model.train(seed=seed, enable_progress_bar=False, **(configuration.train | given))
    return model, time.perf_counter() - begun


def fit_reference(
    adata: ad.AnnData,
    is_target: NDArray[np.bool_],
    *,
    batch_key: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    **train_kwargs: Any,
) -> tuple[Any, float]:
    """Fit scvi-tools' model with its defaults. Return the model and the seconds."""
    import scvi

    scvi.settings.seed = seed
    scvi.settings.verbosity = 30
    scvi.external.ContrastiveVI.setup_anndata(adata, batch_key=batch_key)
    model = scvi.external.ContrastiveVI(adata)
    begun = time.perf_counter()
    model.train(
        background_indices=np.flatnonzero(~is_target).tolist(),
        target_indices=np.flatnonzero(is_target).tolist(),
        max_epochs=epochs,
        enable_progress_bar=False,
        logger=False,
        **train_kwargs,
    )
    return model, time.perf_counter() - begun


def fit_all(
    adata: ad.AnnData,
    condition_key: str,
    background: str,
    options: argparse.Namespace,
    *,
    batch_key: str | None = None,
    ours: Mapping[str, Configuration] = OURS,
) -> Iterator[tuple[str, int, Any]]:
    """Fit scvi-tools' model and ours, for every seed; yield name, seed and model one by one."""
    is_target = (adata.obs[condition_key].astype(str) != background).to_numpy()
    given = {"batch_key": batch_key, "epochs": options.epochs}
    for seed in range(options.seeds):
        model, seconds = fit_reference(adata, is_target, seed=seed, **given)
        print(f"seed {seed}  {REFERENCE}: {seconds:.0f} s", flush=True)
        yield REFERENCE, seed, model
        for name, configuration in ours.items():
            model, seconds = fit_ours(
                adata, condition_key, background, configuration=configuration, seed=seed, **given
            )
            print(f"seed {seed}  {name}: {seconds:.0f} s", flush=True)
            yield name, seed, model


def summarise(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds, one row per setting, in order of appearance."""
    table = pd.DataFrame(rows).groupby(list(by), sort=False)
    return table.mean().drop(columns="seed").join(table.std().drop(columns="seed"), rsuffix=" sd")


def less_reference(means: pd.DataFrame) -> pd.DataFrame:
    """Return the means minus those of scvi-tools; the model is the last level of the index."""
    columns = [name for name in means if not name.endswith(" sd")]
    others = [level for level in means.index.names if level != "model"]
    reference = means[columns].xs(REFERENCE, level="model")
    less = (
        means[columns]
        .groupby(others, sort=False, group_keys=False)
        .apply(lambda group: group - reference.loc[group.name])
    )
    return less.drop(index=REFERENCE, level="model")


def reference_differential(
    model: Any,
    is_target: NDArray[np.bool_],
    among: NDArray[np.bool_] | slice = slice(None),
    *,
    seed: int,
    **kwargs: Any,
) -> pd.DataFrame:
    """Compare target with background cells by scvi-tools' model, restricted to `among`.

    Without `target_idx`, it would also decode background cells with the salient latent.
    """
    import scvi

    scvi.settings.seed = seed
    one, other = groups(is_target, among)
    return model.differential_expression(
        idx1=one,
        idx2=other,
        target_idx=np.flatnonzero(is_target),
        silent=True,
        **kwargs,
    )


def our_differential(
    model: ContrastiveVI,
    is_target: NDArray[np.bool_],
    among: NDArray[np.bool_] | slice = slice(None),
    *,
    seed: int,
    **kwargs: Any,
) -> pd.DataFrame:
    """Compare target with background cells by our model, restricted to `among`."""
    one, other = groups(is_target, among)
    return model.differential_expression(idx1=one, idx2=other, silent=True, seed=seed, **kwargs)


def groups(
    is_target: NDArray[np.bool_], among: NDArray[np.bool_] | slice
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of the target and of the background cells, restricted to `among`."""
    chosen = np.zeros_like(is_target)
    chosen[among] = True
    return is_target & chosen, ~is_target & chosen


def show(title: str, table: pd.DataFrame, digits: int = 3) -> None:
    """Print a table under a title."""
    text = table.to_string(float_format=lambda value: f"{value:.{digits}f}")
    print(f"\n{title}\n{text}", flush=True)
