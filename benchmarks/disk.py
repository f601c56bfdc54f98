"""Cells in memory, in an .h5ad file and in a zarr store: speed, memory and held-out ELBO.

    python benchmarks/disk.py [--cells 50000 --kinds memory h5ad "scvi-tools, h5ad"]

Every way of keeping the cells is measured in a process of its own, so that its peak of memory is
its own. ``--elbo`` adds the held-out ELBO after the same number of steps, over several seeds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

KINDS = ("memory", "h5ad", "zarr", "sharded zarr", "two zarr stores")
REFERENCE = "scvi-tools, "
OF_REFERENCE = (f"{REFERENCE}memory", f"{REFERENCE}h5ad")
"""scvi-tools' model, if asked for: training and latents; needs the ``parity`` extra."""
BLOCK = 20_000
RESPOND = 0.1  # share of the genes
CHUNK, SHARD = 2**15, 2**22
"""Stored values in a chunk and a shard of the sharded store."""


def main() -> None:
    """Make the cells once, then measure each way of keeping them."""
    options = _options()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="disk_"))
    folder.mkdir(exist_ok=True)
    if options.measure:
        measured = _measure_reference if options.measure in OF_REFERENCE else _measure
        print(json.dumps(measured(folder, options)))
        return
    files = [
        folder / f"{options.cells}.h5ad",
        *(folder / f"{options.cells}_{i}.zarr" for i in range(4)),
    ]
    if not all(file.exists() for file in files):
        _make(files, options)
    rows = []
    for kind in options.kinds:
        rows.append(_in_process(kind, folder, options))
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).set_index("kind").to_string(float_format="%.4g"))


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--cells", type=int, default=50_000)
    made.add_argument("--genes", type=int, default=2_000)
    made.add_argument("--density", type=float, default=0.1)
    made.add_argument("--batch-size", type=int, default=128)
    made.add_argument("--epochs", type=int, default=1)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--elbo", type=int, default=0, help="number of seeds")
    made.add_argument("--sorted", action="store_true", help="by type, then by condition")
    made.add_argument("--folder", default=None, help="where the files are kept for another run")
    made.add_argument("--kinds", nargs="+", choices=KINDS + OF_REFERENCE, default=KINDS)
    made.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    return made.parse_args()


def _make(files: list[Path], options: argparse.Namespace) -> None:
    """Write the cells by blocks, never all in memory; unless sorted, conditions interleave."""
    import h5py
    import zarr

    n, share = options.cells, options.genes
    rng = np.random.default_rng(0)
    condition = rng.integers(0, 2, n)
    kind = rng.integers(0, 5, n)
    if options.sorted:
        order = np.lexsort((condition, kind))
        condition, kind = condition[order], kind[order]
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, ["control", "treated"]),
            "type": pd.Categorical.from_codes(kind, list("abcde")),
        },
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(share)])
    level = rng.gamma(0.5, 1.0, (2, 5, share))
    level[1] = level[0] * np.exp(rng.normal(0, 0.7, (5, share)) * (rng.random(share) < RESPOND))
    level *= _scale(level, options.density)
    roots: list[Any] = [
        h5py.File(files[0], "w"),
        *(zarr.open_group(f, mode="w", zarr_format=3) for f in files[1:]),
    ]
    halves = [slice(0, n), slice(0, n), slice(0, n), slice(0, n // 2), slice(n // 2, n)]
    for root, part in zip(roots, halves, strict=True):
        _write(root, obs.iloc[part], var)
    for start in range(0, n, BLOCK):
        cells = slice(start, min(start + BLOCK, n))
        counts = sp.csr_matrix(rng.poisson(level[condition[cells], kind[cells]]).astype(np.float32))
        for at, (root, part) in enumerate(zip(roots, halves, strict=True)):
            low, high = max(start, part.start) - start, min(cells.stop, part.stop) - start
            if high > low:
                _append(root, counts[low:high], is_sharded=at == 2)  # noqa: PLR2004
    roots[0].close()


def _scale(level: Any, density: float) -> float:
    low, high = 1e-4, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (
            (middle, high) if (1 - np.exp(-middle * level)).mean() < density else (low, middle)
        )
    return low


def _write(root: Any, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(root, "/", ad.AnnData(obs=obs, var=var))
    empty = sp.csr_matrix((len(obs), len(var)), dtype=np.float32)
    group = root.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = list(empty.shape)


def _append(root: Any, counts: Any, *, is_sharded: bool) -> None:
    """Add rows to a matrix on disk."""
    group = root["X"]
    arrays = {"data": counts.data, "indices": counts.indices.astype(np.int32)}
    begun = group["data"].shape[0] if "data" in group else 0
    ends = counts.indptr.astype(np.int64) + begun
    arrays["indptr"] = ends if "data" not in group else ends[1:]
    for name, values in arrays.items():
        if name not in group:
            _create(group, name, values.dtype, is_sharded=is_sharded)
        array, size = group[name], group[name].shape[0]
        array.resize((size + len(values),))
        array[size:] = values


def _create(group: Any, name: str, dtype: Any, *, is_sharded: bool) -> None:
    if hasattr(group, "create_dataset") and not hasattr(group, "create_array"):
        group.create_dataset(name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(CHUNK,))
        return
    shards = {"shards": (SHARD,)} if is_sharded else {}
    group.create_array(name, shape=(0,), dtype=dtype, chunks=(CHUNK,), **shards)


def _in_process(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    given = [
        f"--{name.replace('_', '-')}={getattr(options, name)}"
        for name in ("cells", "genes", "density", "batch_size", "epochs", "threads", "elbo")
    ]
    command = [sys.executable, __file__, f"--measure={kind}", f"--folder={folder}", *given]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def _open(kind: str, folder: Path, n: int) -> ad.AnnData:
    from pyro_contrastive.data import open_on_disk

    names = {"h5ad": [f"{n}.h5ad"], "zarr": [f"{n}_0.zarr"], "sharded zarr": [f"{n}_1.zarr"]}
    if kind == "memory":
        return ad.read_h5ad(folder / f"{n}.h5ad")
    return open_on_disk(
        *(folder / name for name in names.get(kind, [f"{n}_2.zarr", f"{n}_3.zarr"]))
    )


@contextmanager
def _timed(found: dict[str, Any], name: str, n_cells: int) -> Iterator[None]:
    """Note cells per second, and per second of processor time, which a busy machine slows less."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    found[f"{name}/s"] = n_cells / (time.perf_counter() - wall)
    found[f"{name}/CPU s"] = n_cells / (time.process_time() - processor)


def _measure_reference(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure scvi-tools' model, which reads a backed file cell by cell."""
    import scvi
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"kind": options.measure}
    backed = None if options.measure == OF_REFERENCE[0] else "r"
    adata = ad.read_h5ad(folder / f"{options.cells}.h5ad", backed=backed)
    with _timed(found, "setup", options.cells):
        scvi.external.ContrastiveVI.setup_anndata(adata)
        model = scvi.external.ContrastiveVI(adata)
    is_target = (adata.obs["condition"] != "control").to_numpy()
    with _timed(found, "train", int(0.9 * options.cells * options.epochs)):
        model.train(
            np.flatnonzero(~is_target).tolist(),
            np.flatnonzero(is_target).tolist(),
            max_epochs=options.epochs,
            batch_size=options.batch_size,
            accelerator="cpu",
            enable_progress_bar=False,
        )
    with _timed(found, "latents", options.cells):
        model.get_latent_representation(representation_kind="salient")
    return found | {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from pyro_contrastive import ContrastiveVI, settings

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"kind": options.measure}
    adata = _open(options.measure, folder, options.cells)
    with _timed(found, "setup", options.cells):
        ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
        settings.seed = 0
        model = ContrastiveVI(adata)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": options.batch_size}
    spread = np.arange(0, options.cells, max(options.cells // 2_000, 1))
    first = {"external_indexing": [spread]}
    model.train(max_epochs=1, seed=0, datasplitter_kwargs=first, **quiet)  # compiles
    with _timed(found, "train", int(0.9 * options.cells * options.epochs)):
        model.train(max_epochs=options.epochs, seed=0, check_val_every_n_epoch=None, **quiet)
    for name, ask in {
        "latents": model.get_latent_representation,
        "elbo": lambda: model.get_elbo(seed=0, silent=True),
        "means": lambda: model.differential_expression(
            mode="means", groupby="condition", group1="treated", strata="type", seed=0, silent=True
        ),
    }.items():
        with _timed(found, name, options.cells):
            ask()
    found["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    values = []
    for seed in range(options.elbo):
        settings.seed = seed
        one = ContrastiveVI(adata)
        one.train(max_epochs=options.epochs, seed=seed, **quiet)
        values.append(float(one.history["elbo_validation"].iloc[-1, 0]))
    if values:
        found |= {
            "held-out -ELBO": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }
    return found


if __name__ == "__main__":
    main()
