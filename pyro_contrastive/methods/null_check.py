"""Would shuffled labels look like this? The same fit with conditions that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis.decoding import has_expression
from pyro_contrastive.analysis.latent_usage import salient_log_likelihood
from pyro_contrastive.analysis.means.donors import TooFewDonorsError
from pyro_contrastive.analysis.null_check import NullCheck, judged
from pyro_contrastive.analysis.posterior import latent_representation
from pyro_contrastive.analysis.progress import CellBar
from pyro_contrastive.analysis.shuffled_conditions import shuffled_conditions
from pyro_contrastive.cells import BACKGROUND
from pyro_contrastive.data.columns import check_keys, texts
from pyro_contrastive.methods.diagnosis import DiagnosisMethods
from pyro_contrastive.methods.effects import EffectMethods
from pyro_contrastive.methods.refit import refitted, with_conditions
from pyro_contrastive.methods.training import TrainingMethods

N_INTERVAL_CELLS, N_INTERVAL_GENES = 60, 200
FDR = 0.05


class NullMethods(TrainingMethods, EffectMethods, DiagnosisMethods):
    """The fit, held against fits to shuffled conditions."""

    def null_check(
        self,
        n_shuffles: int = 3,
        *,
        within: str | Sequence[str] | None = None,
        seed: int = 0,
        silent: bool = False,
    ) -> NullCheck:
        """Ask whether shuffled conditions would look like this.

        The conditions are shuffled, the same model is trained on them as this one was (from the
        same initial weights, by the same calls of :meth:`train`), and what it finds is put beside
        what this one finds. It costs `n_shuffles` times the training, and a few seconds more.

        Parameters
        ----------
        n_shuffles
            Number of shuffles. Default 3, which says what is usual where there is no response.
        within
            Columns of ``adata.obs``: conditions are shuffled among cells that agree in all of them.
            Default: batch and labels of the setup, where there are any, so that differences in
            the frequencies of cell types are not taken for a response. If the setup names donors
            (`sample_key`), they are the unit: conditions are shuffled within each donor that has
            several of them, and whole donors exchange theirs otherwise.
        seed
            Seed of the shuffles, the training and all draws. Default 0.
        silent
            Do not show a progress bar.

        Returns
        -------
        NullCheck
            ``verdict``, a sentence; ``answer``; and ``table``, with a row for each measure:

            * *genes* that ``differential_expression(mode="means")`` finds at 5 %, with donors as
              the unit if they are set up and there are enough of them;
            * *intervals*: the share of the 95 % intervals of :meth:`get_treatment_effect` that
              exclude 0, of up to 60 treated cells and 200 genes;
            * *nats* that s adds to a treated cell;
            * *separation* of the conditions in s by the better of two probes, from 0 to 1.

            All but the genes are of cells that did not train. At least two must stand out for the
            verdict "a response"; :func:`~pyro_contrastive.analysis.null_check.judged` has the
            rules. Measures that do not apply to the likelihood are left out.

        Raises
        ------
        KeyError
            If a column does not exist.
        ValueError
            If the model was not trained, was saved by a version that did not note how it was
            trained, or was set up without `condition_key`; if fewer than ten cells of either
            population were held out; or if nothing can be shuffled.
        """
        check_arguments(locals())
        if self.setup.condition_key is None:
            msg = (
                "null_check shuffles the column of conditions: set up the data with condition_key=."
            )
            raise ValueError(msg)
        adata = self._adata(None)
        keys = self._null_keys(adata, within)
        codes = self.setup.condition_codes(adata)
        assert codes is not None  # there is a condition_key
        donor_key = getattr(self.setup, "sample_key", None)
        donors = None if donor_key is None else _codes(adata, [donor_key])
        bar = CellBar("Fits with shuffled conditions", n_shuffles, silent=silent)
        rng = np.random.default_rng(seed)
        observed, errors = self._null_measures(seed)
        nulls = []
        try:
            for shuffle in range(n_shuffles):
                shuffled = shuffled_conditions(codes, _codes(adata, keys), donors, rng)
                null_data = with_conditions(self, adata, shuffled, codes)
                null = refitted(self, null_data, seed + shuffle, {})
                nulls.append(null._null_measures(seed)[0])
                bar.advance(1)
        finally:
            bar.close()
        shown = [*keys, *([donor_key] if donor_key else [])]
        return judged(observed, nulls, errors=errors, within=shown, seed=seed)

    def _null_keys(self, adata: AnnData, within: str | Sequence[str] | None) -> list[str]:
        if within is None:
            usual = (self.setup.batch_key, self.setup.labels_key)
            return [key for key in usual if key is not None]
        return list(
            check_keys("within", [within] if isinstance(within, str) else within, adata.obs)
        )

    def _null_measures(self, seed: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the measures by name, and two standard errors."""
        # scikit-learn takes a second to import.
        from pyro_contrastive.analysis.leakage import MIN_PER_CLASS, leakage_row  # noqa: PLC0415

        held_out = self.held_out_indices
        query = self._query(None, held_out)
        assert query.data.condition is not None  # there is a condition_key
        is_target = query.data.condition[query.cells] != BACKGROUND
        fewest = 0 if held_out is None else min(is_target.sum(), (~is_target).sum())
        if fewest < MIN_PER_CLASS:
            msg = (
                f"null_check needs {MIN_PER_CLASS} cells of each population that did not train; "
                f"there are {(~is_target).sum() if held_out is not None else 0} background and "
                f"{is_target.sum() if held_out is not None else 0} target cells. Train with a "
                "smaller train_size."
            )
            raise ValueError(msg)
        targets = query.of(query.cells[is_target])
        with seeded(seed):
            nats = salient_log_likelihood(targets)
            s = latent_representation(query, "salient", give_mean=False).astype(float)
        found: dict[str, float] = {}
        likelihood = self.module.model.likelihood
        if likelihood.uses_library and likelihood.support.is_discrete:
            found["genes"] = float(self._n_genes_found(seed))
        if has_expression(query):
            found["intervals"] = self._share_excluding_zero(targets.cells, seed)
        found["nats"] = float(nats.mean())
        found["separation"] = float(
            leakage_row(s, is_target, n_permutations=0, seed=seed)["excess"]
        )
        errors = {
            "nats": float(nats.std(ddof=1) / np.sqrt(len(nats))),
            "separation": float(1 / np.sqrt(len(is_target))),  # twice that of a share of a half
        }
        return found, errors

    def _n_genes_found(self, seed: int) -> int:
        """Return how many genes differ; cells are the unit where there are too few donors.

        Then the shuffled fits show what a difference between donors alone would give.
        """
        wanted: dict[str, Any] = {"mode": "means", "fdr_target": FDR, "seed": seed, "silent": True}
        try:
            table = self.differential_expression(**wanted)
        except TooFewDonorsError:
            table = self.differential_expression(sample_key=False, **wanted)
        return int(table[f"is_de_fdr_{FDR}"].sum())

    def _share_excluding_zero(self, cells: NDArray[np.int64], seed: int) -> float:
        """Return the share of intervals that exclude 0, of some treated cells and genes."""
        rng = np.random.default_rng(seed)
        some = np.sort(rng.permutation(cells)[:N_INTERVAL_CELLS])
        genes = rng.permutation(self.genes)[:N_INTERVAL_GENES].tolist()
        effect = self.get_treatment_effect(indices=some, gene_list=genes, seed=seed, silent=True)
        return float(((effect["lower"] > 0) | (effect["upper"] < 0)).to_numpy().mean())


def _codes(adata: AnnData, keys: Sequence[str]) -> NDArray[np.int64]:
    """Return a code per cell for the combination of its levels; 0 without keys."""
    if not keys:
        return np.zeros(adata.n_obs, dtype=np.int64)
    columns = [np.unique(texts(adata.obs, key), return_inverse=True)[1] for key in keys]
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel().astype(np.int64)
