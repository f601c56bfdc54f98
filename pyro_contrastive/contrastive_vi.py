"""ContrastiveVI: the class for users, which works on an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from anndata import AnnData
from pyro.infer import Trace_ELBO

from pyro_contrastive._tools.arguments import check_arguments
from pyro_contrastive.components.parts import guide_given, likelihood_given, penalties_given
from pyro_contrastive.data.oddities import warn_of_many_latents
from pyro_contrastive.data.setup import Setup
from pyro_contrastive.data.support import check_support, warn_of_counts
from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.likelihoods import Likelihood
from pyro_contrastive.likelihoods.dispersion import Posterior
from pyro_contrastive.methods.cross_fit import CrossFitMethods
from pyro_contrastive.methods.diagnosis import DiagnosisMethods
from pyro_contrastive.methods.effects import EffectMethods
from pyro_contrastive.methods.expression import ExpressionMethods
from pyro_contrastive.methods.fit_quality import FitQualityMethods
from pyro_contrastive.methods.group_effects import GroupEffectMethods
from pyro_contrastive.methods.latents import LatentMethods
from pyro_contrastive.methods.null_check import NullMethods
from pyro_contrastive.methods.predictive import PredictiveMethods
from pyro_contrastive.methods.repeat import RepeatMethods
from pyro_contrastive.methods.storage import StorageMethods
from pyro_contrastive.penalties import Penalty
from pyro_contrastive.presets import Sizes, check_conditions, preset_arguments
from pyro_contrastive.priors import PriorLike


class ContrastiveVI(
    NullMethods,
    CrossFitMethods,
    RepeatMethods,
    LatentMethods,
    ExpressionMethods,
    EffectMethods,
    GroupEffectMethods,
    FitQualityMethods,
    PredictiveMethods,
    DiagnosisMethods,
    StorageMethods,
):
    """Contrastive analysis of single-cell counts (Weinberger, Lin & Lee, Nature Methods 2023).

    Same names and defaults as ``scvi.external.ContrastiveVI``. The Pyro programs are
    ``model.module.model`` and ``model.module.guide``.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    n_hidden
        Width of the hidden layers.
    n_background_latent, n_salient_latent
        Dimensions of the background latent z (variation shared by all cells) and of the salient
        latent s (variation that only target cells have).
    n_layers
        Number of hidden layers of each encoder and of the decoder.
    dropout_rate
        Dropout in the encoders.
    use_observed_lib_size
        Take a cell's total count as its library size (default), or infer it, with a log-normal
        prior per batch.
    wasserstein_penalty
        Weight of the penalty that pins the salient latent of background cells to 0.
    likelihood, background_prior, salient_prior, library_prior, dispersion_prior, \
dispersion_posterior, guide, n_layers_decoder, penalties, elbo, elbo_kwargs
        As in :class:`~pyro_contrastive.ContrastiveVAE`.

    Raises
    ------
    ValueError
        If `adata` is not registered, its data are outside the likelihood's support (the error names
        the first cell and gene, and says what to do), or it has size factors but the library size
        is latent, or the likelihood has none.

    Notes
    -----
    **Shared arguments** of most methods:

    ``adata`` : AnnData, default ``None``
        Cells with the model's genes, covariates and conditions. By default those the model was made
        with.
    ``indices`` : array, default ``None``
        Which of them, as indices or boolean mask. By default all. If it selects none, a result
        per cell is empty, and a result about all cells together is an error. A mask that is a
        pandas Series is aligned by its index, which must hold the cell names; integers are
        positions, whatever their index.
    ``batch_size`` : int, default ``None``
        Cells in memory at a time. By default 1,024, or fewer where each has many draws.
    ``seed`` : int, default ``None``
        Seed of all random draws. By default torch's global state, as set by ``pyro.set_rng_seed``.
        The global state is the same after a seeded call as before it. Random numbers are drawn
        mini-batch by mini-batch: the draws of a cell also depend on `batch_size`, on which other
        cells are asked for, and on their order, and with these they differ by sampling noise. What
        is computed without draws, such as the mean of a posterior, is that of the cell alone.
    ``refine`` : bool or int, default ``False``
        Improve the posterior of each cell before it is used. The encoders serve all cells at once,
        and none gets the best posterior it could have. Refined, a cell has a multivariate normal
        posterior over all its latents that was fitted to its own counts, the decoder fixed, in 30
        steps or the number given: 5 to 10 ms per cell on one core for 2,000 genes. It matters for
        intervals, marginal likelihoods and weak responses, not for a map. The guide's posterior is
        kept in a cell where this does not improve the ELBO. :meth:`refine_posterior` keeps refined
        posteriors in the model.
    ``silent`` : bool, default ``False``
        Show no progress bar. By default a bar appears when a call takes more than a few seconds.

    Examples
    --------
    >>> from pyro_contrastive import ContrastiveVI
    >>> from pyro_contrastive.data import load_kang
    >>> adata = load_kang()[::20].copy()
    >>> ContrastiveVI.setup_anndata(adata, condition_key="condition", background="control")
    >>> model = ContrastiveVI(adata, n_hidden=16)
    >>> _ = model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.get_latent_representation(representation_kind="salient").shape[1]
    10
    """

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_background_latent: int = 10,
        n_salient_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        use_observed_lib_size: bool = True,
        wasserstein_penalty: float = 0,
        *,
        likelihood: Likelihood | None = None,
        background_prior: PriorLike | None = None,
        salient_prior: PriorLike | None = None,
        library_prior: PriorLike | None = None,
        dispersion_prior: PriorLike | None = None,
        dispersion_posterior: Posterior = "variational",
        guide: ContrastiveGuide | None = None,
        n_layers_decoder: int | None = None,
        penalties: Sequence[Penalty] = (),
        elbo: type[Trace_ELBO] = Trace_ELBO,
        elbo_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_arguments(locals())
        settings: dict[str, Any] = {
            "n_hidden": n_hidden,
            "n_background_latent": n_background_latent,
            "n_salient_latent": n_salient_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "use_observed_lib_size": use_observed_lib_size,
            "wasserstein_penalty": wasserstein_penalty,
            "dispersion_posterior": dispersion_posterior,
            "n_layers_decoder": n_layers_decoder,
            "elbo_kwargs": elbo_kwargs or {},
        }
        setup = Setup.of(adata)
        missing = setup.missing_genes(adata)
        if missing:
            msg = (
                f"This AnnData lacks {len(missing)} of the {len(setup.genes)} genes that were set "
                f"up, e.g. {missing[:3]}: it was subset since. Call setup_anndata on it again."
            )
            raise ValueError(msg)
        likelihood = likelihood_given(likelihood)
        data = setup.extract(adata)
        check_support(data.rows(), setup.with_genes(adata), setup.layer, likelihood)
        warn_of_counts(data.rows(), setup.layer, likelihood)
        warn_of_many_latents(
            len(setup.genes),
            n_background_latent=n_background_latent,
            n_salient_latent=n_salient_latent,
        )
        _check_size_factors(setup, likelihood, observed=use_observed_lib_size)
        library: dict[str, Any] = {}
        if not use_observed_lib_size:
            moments = data.library_moments(setup.n_batch)
            library = dict(zip(("library_log_means", "library_log_vars"), moments, strict=True))
        components = {
            "likelihood": likelihood,
            "background_prior": background_prior,
            "salient_prior": salient_prior,
            "library_prior": library_prior,
            "dispersion_prior": dispersion_prior,
            "guide": guide_given(guide),
            "penalties": penalties_given(penalties),
        }
        check_conditions(components, setup.conditions)
        self._assemble(setup, settings, components | library, elbo)
        self.adata = adata

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        condition_key: str | None = None,
        background: str | float | None = None,
        sample_key: str | None = None,
    ) -> None:
        """Name the columns of `adata` to use; checks them, and notes them in ``adata.uns``.

        The data may be any finite numbers. Whether they suit the likelihood is checked when the
        model is made. Warnings say

        * if they are not raw counts, which most likelihoods need;
        * if a population has fewer than 10 cells;
        * if no batch (or value of a categorical covariate) has both background and target cells, so
          that no model can separate the effect of the batch from that of the treatment;
        * if two levels of a column are probably one with two spellings, such as ``"Control"`` and
          ``"control"``, where one of them would count as a treatment;
        * if a batch or level of a categorical covariate has cells of one population only, or a
          continuous covariate follows the condition (correlation above 0.95), or a covariate is
          the same in all cells;
        * if a treatment, of several, has fewer than 5 cells;
        * if a value of a column is ``'nan'``, empty or the like, as missing values are when they
          have become text;
        * if genes have no counts in any cell, counts are above 2^24 (single precision rounds
          them), or names of cells repeat;
        * if ``adata.var`` says that some features are not genes;
        * if a column looks like donors and `sample_key` is not given, or by `sample_key` all cells
          of a population are from one donor.

        Parameters
        ----------
        adata
            Cells by genes, in memory.
        layer
            Layer with the raw counts, or other data for the likelihood. Default: ``adata.X``.
        batch_key
            Column of ``adata.obs`` with the batch of each cell, an input of encoders and decoder.
        labels_key
            Column with labels (cell types), for analysis; the model does not use them.
        size_factor_key
            Column with size factors, used as library size instead of the total counts. Only their
            ratios matter: they are scaled to the mean of the total counts.
        categorical_covariate_keys, continuous_covariate_keys
            Columns with further covariates, inputs of encoders and decoder.
        condition_key
            Column with the condition of each cell. Without it, give the indices of background and
            target cells to :meth:`train`.
        background
            The value of the condition that marks background (control) cells: a string, a number or
            a boolean, as in the column. All other cells are target cells.
        sample_key
            Column that says which donor (patient, animal, sample) a cell is from. The model does
            not use it; tests take donors as the unit, since cells of one donor are not replicates,
            and :meth:`diagnose` says how much of the salient latent is donor. Where each donor has
            cells of both conditions, it may be the `batch_key` too.

        Raises
        ------
        KeyError
            If a column or layer does not exist.
        ValueError
            If a value of the data is missing or infinite (the error names the cell and the gene),
            a column has missing values, gene names repeat, or `background` is not one of the
            conditions.
        TypeError
            If the name of a column or layer is not a string, for example the column itself.
        """
        Setup.register(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            condition_key=condition_key,
            background=background,
            sample_key=sample_key,
        )

    @classmethod
    def from_preset(
        cls,
        adata: AnnData,
        preset: str,
        n_background_latent: int = 10,
        n_salient_latent: int = 10,
        **changes: Any,
    ) -> Self:
        """Make a published model of the family.

        Parameters
        ----------
        adata
            Registered with :meth:`setup_anndata`.
        preset
            A row of :func:`pyro_contrastive.presets`, e.g. ``"MM-cVAE"``, in any case.
        n_background_latent, n_salient_latent
            Dimensions of the latents. In multiGroupVI every treatment has `n_salient_latent`.
        **changes
            Arguments of the constructor, in place of the preset's.

        Raises
        ------
        ValueError
            If there is no such preset, or as the constructor does.
        """
        conditions = Setup.of(adata).conditions
        sizes = Sizes(max(len(conditions), 2), n_background_latent, n_salient_latent)
        return cls(adata, **(preset_arguments(preset, sizes) | changes))


def _check_size_factors(setup: Setup, likelihood: Likelihood, *, observed: bool) -> None:
    """Refuse size factors where the library size is not observed."""
    if setup.size_factor_key is None:
        return
    if not likelihood.uses_library:
        msg = (
            f"The setup names a size_factor_key, but {type(likelihood).__name__} has no "
            "library size; set up the data without it."
        )
        raise ValueError(msg)
    if not observed:
        msg = (
            "The setup names a size_factor_key, which is an observed library size; use "
            "use_observed_lib_size=True, or set up the data without it."
        )
        raise ValueError(msg)
