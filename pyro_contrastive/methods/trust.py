"""How near the guide is to the posterior."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from pyro_contrastive._tools.torch_tools import seeded
from pyro_contrastive.analysis import posterior_accuracy as accuracy
from pyro_contrastive.analysis.calibration import Calibration, Method, calibrate
from pyro_contrastive.analysis.comparison import estimate
from pyro_contrastive.analysis.likelihood import log_weights_of_cells
from pyro_contrastive.analysis.local_posterior import LocalFit
from pyro_contrastive.analysis.nuts import NutsSettings
from pyro_contrastive.analysis.pareto import check_draws, k_threshold
from pyro_contrastive.analysis.posterior_accuracy import PosteriorAccuracy
from pyro_contrastive.analysis.progress import progress
from pyro_contrastive.methods.base import ModelBase


class TrustMethods(ModelBase):
    """Pareto k, NUTS and simulation-based calibration."""

    def pareto_k(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 500,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        silent: bool = False,
    ) -> pd.DataFrame:
        r"""Return the Pareto k of the guide in each cell: how far from the posterior it is.

        The shape of the tail of the importance weights
        :math:`p(x, z, s, l) / q(z, s, l \mid x)` (Yao, Vehtari, Simpson & Gelman, ICML 2018;
        Vehtari et al., JMLR 2024). Below 0.5 the weights have a variance and the guide can be
        corrected; above 0.7 it is not near the posterior in all directions at once, although means
        of single latents may still be right (:meth:`posterior_accuracy` looks at these); above 1
        the weights have no mean. It grows with the number of latents. The decoder is taken as
        learned.

        Parameters
        ----------
        adata, indices, seed, silent
            As in :meth:`get_elbo`.
        n_samples
            Posterior draws per cell, at least 25; a few hundred are needed to judge a tail.
        batch_size
            Cells at a time; default 64 (memory is 50 draws x cells x genes).

        Returns
        -------
        Indexed by cell: ``k``; ``high``, whether it is above the threshold for so many draws;
        ``elbo``, ``log_p`` (importance-weighted, Pareto-smoothed) in nats.
        """
        check_draws(n_samples)
        chosen, data, cells = self._some_cells(adata, indices)
        with seeded(seed), progress("Pareto k", len(cells), silent=silent):
            weights = log_weights_of_cells(self.module, data, cells, n_samples, batch_size)
        found = estimate(weights)
        return pd.DataFrame(
            {
                "k": found.k,
                "high": found.k > k_threshold(n_samples),
                "elbo": weights.mean(axis=1),
                "log_p": found.psis,
            },
            index=chosen.obs_names[cells],
        )

    def posterior_accuracy(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_samples: int = 1000,
        *,
        nuts: bool = True,
        n_draws: int = 200,
        n_warmup: int = 100,
        n_chains: int = 2,
        local_steps: int = 200,
        seed: int | None = None,
        silent: bool = False,
    ) -> PosteriorAccuracy:
        """Compare the encoder with the best posterior of its family, and with NUTS, cell by cell.

        All with the decoder as learned, and parameters that have a prior at their posterior mean
        (for NUTS) or drawn (for the ELBOs). What the encoder loses against a normal posterior
        fitted to the cell itself is the amortisation gap; what that one loses against log p(x) the
        approximation gap (Cremer, Li & Duvenaud, ICML 2018). NUTS draws from the posterior itself.

        Parameters
        ----------
        adata
            As in :meth:`get_elbo`.
        indices
            A few cells, ten say; required, for NUTS takes seconds to a minute for each.
        n_samples
            Posterior draws per cell for log p(x) and k, at least 25.
        nuts
            Whether to run NUTS.
        n_draws, n_warmup, n_chains
            Draws of each chain that are kept, and those before them; chains per cell.
        local_steps
            Steps of Adam for the fitted posterior.
        seed
            Of all draws.
        silent
            Show no progress bar, however long it takes.

        Raises
        ------
        ValueError
            If `indices` is not given, or a number is too small (four draws and one chain at
            least, so that there is a variance).
        TypeError
            If the guide is not a `ContrastiveGuide`.
        """
        if indices is None:
            msg = (
                "posterior_accuracy takes seconds to a minute per cell: give the indices of a few."
            )
            raise ValueError(msg)
        if nuts and (n_draws < 4 or n_warmup < 1 or n_chains < 1):  # noqa: PLR2004
            msg = (
                "NUTS needs n_draws of 4 at least, n_warmup and n_chains of 1, not "
                f"{n_draws}, {n_warmup} and {n_chains}."
            )
            raise ValueError(msg)
        check_draws(n_samples)
        chosen, data, cells = self._some_cells(adata, indices)
        with seeded(seed), progress("Posterior accuracy", len(cells), silent=silent):
            return accuracy.posterior_accuracy(
                self.module,
                data,
                cells,
                chosen.obs_names[cells],
                n_samples=n_samples,
                local=LocalFit(n_steps=local_steps),
                nuts=NutsSettings(n_draws, n_warmup, n_chains) if nuts else None,
            )

    def simulation_based_calibration(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_simulations: int = 500,
        n_draws: int = 99,
        *,
        method: Method = "guide",
        seed: int | None = None,
        silent: bool = False,
    ) -> Calibration:
        """Rank latents that made simulated cells among posterior draws given those cells.

        Latents are drawn from their priors and data from the likelihood, in place of real cells
        whose condition, batch, covariates and observed library size they take. If the posterior is
        right, the ranks are uniform (Talts et al., arXiv 1804.06788, 2018). The log-likelihood is
        ranked too, which notices a posterior that ignores the data (Modrák et al., Bayesian
        Analysis 2023).

        It asks whether the guide inverts the model where the *model* puts cells. If latents of real
        cells do not look like draws from the prior, the encoder has seen no such cells in training,
        and ranks may fail although real cells are served well: :meth:`posterior_accuracy` and
        :meth:`pareto_k` look at those.

        Parameters
        ----------
        adata, indices
            The real cells, as in :meth:`get_elbo`.
        n_simulations
            How many cells to simulate, each in place of one drawn from these.
        n_draws
            Posterior draws for each; ranks go from 0 to so many. 19, 99 or 199 divide evenly.
        method
            ``"guide"`` (default), or ``"nuts"``, to check that the fault is the guide's: slow, take
            50 simulations.
        seed
            Of all draws.
        silent
            Show no progress bar, however long it takes.

        Returns
        -------
        Calibration
            ``.table`` tests the ranks of each quantity for uniformity; ``.ranks`` has them, for
            :func:`pyro_contrastive.plotting.plot_ranks`.

        Raises
        ------
        ValueError
            If `method` is neither, or the numbers are too small to test anything (10 simulations).
        """
        if method not in {"guide", "nuts"}:
            msg = f"method must be 'guide' or 'nuts', not {method!r}."
            raise ValueError(msg)
        if n_simulations < 10 or n_draws < 1:  # noqa: PLR2004  # two bins of five
            msg = (
                "Calibration needs 10 simulations and 1 draw at least, not "
                f"{n_simulations} and {n_draws}."
            )
            raise ValueError(msg)
        _, data, among = self._some_cells(adata, indices)
        rng = np.random.default_rng(seed)
        cells = rng.choice(among, n_simulations, replace=n_simulations > len(among))
        with seeded(seed), progress("Calibration", len(cells), silent=silent):
            return calibrate(self.module, data, cells, n_draws, method=method)
