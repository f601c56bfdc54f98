"""Families of the posterior q(z, s, l | x), besides the mean-field one that is their base.

To add one to the library, write it in a file of this folder and name it here: in the import, in
``__all__`` and, where it needs no arguments, in ``SHORT_NAMES``. The package exports what
``__all__`` names, a saved model may name it, and the command line offers the short names.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pyro_contrastive.guide import ContrastiveGuide
from pyro_contrastive.guides.conditional import ConditionalGuide
from pyro_contrastive.guides.flow import FlowGuide
from pyro_contrastive.guides.full_covariance import FullCovarianceGuide
from pyro_contrastive.guides.low_rank import LowRankGuide

__all__ = [
    "ConditionalGuide",
    "ContrastiveGuide",
    "FlowGuide",
    "FullCovarianceGuide",
    "LowRankGuide",
]

LIBRARY: Mapping[str, type[ContrastiveGuide]] = MappingProxyType(
    {name: globals()[name] for name in __all__}
)
"""The library's own guides by name: the only ones that are made because a file names them."""

SHORT_NAMES: Mapping[str, type[ContrastiveGuide]] = MappingProxyType(
    {
        "mean-field": ContrastiveGuide,
        "full": FullCovarianceGuide,
        "low-rank": LowRankGuide,
        "flow": FlowGuide,
        "conditional": ConditionalGuide,
    }
)
"""Guides that can be chosen on the command line, where they are made without arguments."""
