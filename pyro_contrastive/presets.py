"""Published members of the family, as configurations of this one program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import pyro.distributions as dist

from pyro_contrastive._tools.arguments import shown
from pyro_contrastive.data.levels import suggestion
from pyro_contrastive.likelihoods import AdditivePoisson, ZeroInflatedNegativeBinomial
from pyro_contrastive.penalties import (
    HSIC,
    MMD,
    LateSalient,
    NarrowSalient,
    SalientClassifier,
    TotalCorrelation,
    Wasserstein,
)
from pyro_contrastive.priors import EscapingPerturbation, PrivateSalient


@dataclass(frozen=True)
class Sizes:
    """Sizes that the components of a model depend on.

    Parameters
    ----------
    n_conditions
        Number of conditions, including the background.
    n_background_latent, n_salient_latent
        Dimensions of z and s.
    """

    n_conditions: int
    n_background_latent: int
    n_salient_latent: int


@dataclass(frozen=True)
class Preset:
    """A published model, as a configuration.

    Parameters
    ----------
    paper
        The publication.
    made_of
        Its components, by their names in this library.
    departs
        Differences from the paper.
    arguments
        Function that makes the arguments of ``ContrastiveVI``, with new components each time.
    """

    paper: str
    made_of: str
    departs: str
    arguments: Callable[[Sizes], dict[str, Any]]


def _contrastive_vi(sizes: Sizes) -> dict[str, Any]:
    return {"use_observed_lib_size": False}


def _mm_cvae(sizes: Sizes) -> dict[str, Any]:
    return {"penalties": [MMD(30.0, "z"), MMD(30.0, "s")]}


def _contrastive_vi_plus(sizes: Sizes) -> dict[str, Any]:
    prior = EscapingPerturbation(sizes.n_conditions, sizes.n_salient_latent)
    return {"salient_prior": prior, "penalties": [Wasserstein(1.0), MMD(30.0, "z")]}


def _multi_group_vi(sizes: Sizes) -> dict[str, Any]:
    total = sizes.n_salient_latent * (sizes.n_conditions - 1)
    return {
        "n_salient_latent": total,
        "salient_prior": PrivateSalient(sizes.n_conditions, total),
        "penalties": [Wasserstein(1.0)],
    }


def _sep_vae(sizes: Sizes) -> dict[str, Any]:
    return {
        "penalties": [
            NarrowSalient(),
            SalientClassifier(n_salient_latent=sizes.n_salient_latent),
            TotalCorrelation(1.0, sizes.n_background_latent, sizes.n_salient_latent),
        ]
    }


def _cvae(sizes: Sizes) -> dict[str, Any]:
    penalty = TotalCorrelation(1.0, sizes.n_background_latent, sizes.n_salient_latent)
    return {"penalties": [penalty]}


def _cplvm(sizes: Sizes) -> dict[str, Any]:
    return {
        "likelihood": AdditivePoisson(),
        "background_prior": dist.Gamma(1.0, 1.0),
        "salient_prior": dist.Gamma(1.0, 1.0),
        "n_layers_decoder": 0,
    }


def _separated(sizes: Sizes) -> dict[str, Any]:
    # Not annealed: which latent takes which variation is decided early, during the KL warm-up.
    kinds = ((Wasserstein, 1.0), (partial(MMD, site="z"), 30.0), (HSIC, 30.0))
    lasting = [kind(weight, annealed=False) for kind, weight in kinds]
    # Two hidden layers in the encoders: their posteriors of held-out cells are closer to the best.
    layers = {"n_layers": 2, "n_layers_decoder": 1}
    return {"penalties": [*lasting, LateSalient()]} | layers


def _log_linear(sizes: Sizes) -> dict[str, Any]:
    return {"likelihood": ZeroInflatedNegativeBinomial(), "n_layers_decoder": 0}


PRESETS: dict[str, Preset] = {
    "contrastiveVI": Preset(
        "Weinberger, Lin & Lee, Nature Methods 2023",
        "latent library size; the rest are the defaults",
        "the weight of the KL divergence warms up over a quarter of the run",
        _contrastive_vi,
    ),
    "MM-cVAE": Preset(
        "Weinberger, Beebe-Wang & Lee, AISTATS 2022",
        'MMD(30, "z") between the populations; MMD(30, "s")',
        "a likelihood of counts instead of pixels; the weights are ours",
        _mm_cvae,
    ),
    "contrastiveVI+": Preset(
        "Weinberger, Conrad & Ashuach, arXiv 2411.08072, 2024",
        'EscapingPerturbation (a mean per perturbation, cells may escape); MMD(30, "z"); '
        "Wasserstein(1)",
        "the escape variable is summed out, its probability learned per perturbation; the weights "
        "are ours",
        _contrastive_vi_plus,
    ),
    "multiGroupVI": Preset(
        "Weinberger, Lopez, Hütter & Regev, MLCB 2022",
        "PrivateSalient: n_salient_latent dimensions for each treatment; Wasserstein(1)",
        "the background group has no dimensions of its own; the dimensions of other groups are 0 "
        "in the guide too, where the paper uses a penalty",
        _multi_group_vi,
    ),
    "SepVAE": Preset(
        "Louiset, Duchesnay, Grigis, Dufumier & Gori, MIDL 2024",
        "NarrowSalient, SalientClassifier, TotalCorrelation, each of weight 1",
        "a likelihood of counts instead of pixels; the decoder sees s = 0 for background cells, "
        "not their narrow draw; the weights are ours",
        _sep_vae,
    ),
    "cVAE": Preset(
        "Abid & Zou, arXiv 1902.04601, 2019",
        "TotalCorrelation(1)",
        "a likelihood of counts instead of real numbers; the discriminator has hidden layers",
        _cvae,
    ),
    "CPLVM": Preset(
        "Jones, Townes, Li & Engelhardt, Annals of Applied Statistics 2022",
        "AdditivePoisson, Gamma(1, 1) priors of z and s, a decoder without hidden layers",
        "amortised posterior; loadings are point estimates; no scaling of genes between the "
        "populations",
        _cplvm,
    ),
    "separated": Preset(
        "this library; its components are from contrastiveVI, MM-cVAE and StrastiveVI",
        'Wasserstein(1), MMD(30, "z"), HSIC(30), from the first step on; LateSalient for the first '
        '50 steps; encoders of two hidden layers; train it with schedule="fast"',
        "not published; benchmarks/README.md says how it was chosen. Where the response depends on "
        "the cell type, HSIC moves that part of it to z: then give penalties= without HSIC",
        _separated,
    ),
    "log-linear": Preset(
        "as scVI's linear decoder: Svensson, Gayoso, Yosef & Pachter, Bioinformatics 2020",
        "a decoder without hidden layers: loadings per gene on the log scale",
        "there is a salient latent",
        _log_linear,
    ),
}
"""Presets by name."""


def preset_arguments(name: str, sizes: Sizes) -> dict[str, Any]:
    """Make the arguments of ``ContrastiveVI`` for a preset.

    Parameters
    ----------
    name
        One of :data:`PRESETS`, in any case.
    sizes
        Number of conditions and of latents.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    by_lower_case = {known.lower(): preset for known, preset in PRESETS.items()}
    if not isinstance(name, str) or name.lower() not in by_lower_case:
        msg = (
            f"There is no preset {shown(name)}; there are {list(PRESETS)}."
            f"{suggestion(name, PRESETS)}"
        )
        raise ValueError(msg)
    latents = {
        "n_background_latent": sizes.n_background_latent,
        "n_salient_latent": sizes.n_salient_latent,
    }
    return latents | by_lower_case[name.lower()].arguments(sizes)


def presets() -> pd.DataFrame:
    """Return a table of the presets: paper, components, and how each differs from its paper.

    Examples
    --------
    >>> list(presets().index)[:3]
    ['contrastiveVI', 'MM-cVAE', 'contrastiveVI+']
    """
    rows = {
        name: {"paper": p.paper, "made of": p.made_of, "departs in": p.departs}
        for name, p in PRESETS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("preset")


def check_conditions(components: Mapping[str, object], conditions: Sequence[str]) -> None:
    """Refuse components that were made for fewer conditions than the data have.

    Parameters
    ----------
    components
        Components by their keyword; those without an attribute ``n_conditions`` fit any number.
    conditions
        Names of the conditions, the background first; empty if they are not known yet.

    Raises
    ------
    ValueError
        Naming the keyword and both numbers.
    """
    for keyword, component in components.items():
        made_for = getattr(component, "n_conditions", len(conditions))
        if made_for < len(conditions):
            msg = (
                f"{keyword}: this {type(component).__name__} was made for {made_for} conditions, "
                f"and the data have {len(conditions)}, including the background {conditions[0]!r}. "
                f"Make it with n_conditions={len(conditions)}."
            )
            raise ValueError(msg)
