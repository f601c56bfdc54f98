"""Contrastive analysis of single-cell RNA-seq counts, as a Pyro program."""

# Each folder of parts lists its public names in `__all__`, so that a new part is named only there.
from pyro_contrastive import guides, likelihoods, penalties, priors
from pyro_contrastive._tools.invalid_file import InvalidFileError
from pyro_contrastive._tools.settings import settings
from pyro_contrastive._tools.threads import one_thread
from pyro_contrastive.analysis.ppc import PosteriorPredictiveCheck
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.contrastive_vi import ContrastiveVI
from pyro_contrastive.guides import *  # noqa: F403
from pyro_contrastive.likelihoods import *  # noqa: F403
from pyro_contrastive.methods.comparison import compare_models
from pyro_contrastive.model import ContrastiveModel
from pyro_contrastive.objective import ContrastiveELBO, ContrastiveMeanFieldELBO
from pyro_contrastive.penalties import *  # noqa: F403
from pyro_contrastive.presets import presets
from pyro_contrastive.priors import *  # noqa: F403
from pyro_contrastive.vae import ContrastiveVAE

__version__ = "0.1.0"

__all__ = [
    "CellBatch",
    "ContrastiveELBO",
    "ContrastiveMeanFieldELBO",
    "ContrastiveModel",
    "ContrastiveVAE",
    "ContrastiveVI",
    "InvalidFileError",
    "PosteriorPredictiveCheck",
    "compare_models",
    "one_thread",
    "presets",
    "settings",
]
__all__ += guides.__all__
__all__ += likelihoods.__all__
__all__ += penalties.__all__
__all__ += priors.__all__
