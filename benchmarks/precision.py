"""Effect of matrix products in bfloat16 on speed and on the held-out ELBO.

    python benchmarks/precision.py [--seeds 2]

Bundled interferon data, preset "separated", fast schedule; the same cells are held out for both.
ELBOs are evaluated in single precision. Processor seconds of training, 1 thread; a processor
without bfloat16 instructions is slower with it.
"""

from __future__ import annotations

import time

import pandas as pd
import pyro
from common import parser, show, start

from pyro_contrastive import ContrastiveVI
from pyro_contrastive.data import load_kang


def main() -> None:
    """Fit with both precisions and print a table."""
    options = parser(__doc__).parse_args()
    start(options)
    adata = load_kang()
    ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    rows = []
    for seed in range(options.seeds):
        for precision in ("32-true", "bf16-mixed"):
            pyro.set_rng_seed(seed)
            model = ContrastiveVI.from_preset(adata, "separated")
            given = {"max_epochs": options.epochs, "seed": seed, "enable_progress_bar": False}
            model.train(schedule="fast", **(given | {"max_epochs": 1}))  # compiles
            pyro.set_rng_seed(seed)
            model = ContrastiveVI.from_preset(adata, "separated")
            begun = time.process_time()
            model.train(schedule="fast", precision=precision, **given)
            took = time.process_time() - begun
            pyro.set_rng_seed(0)
            elbo = model.get_elbo(indices=model.validation_indices)
            rows.append({"seed": seed, "precision": precision, "s": took, "held-out ELBO": elbo})
    show("Per cell", pd.DataFrame(rows).set_index(["seed", "precision"]), digits=2)


if __name__ == "__main__":
    main()
