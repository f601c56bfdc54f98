"""For tests: simulated counts with known truth, and contracts for parts of your own."""

from pyro_contrastive.testing.contracts import ContractError
from pyro_contrastive.testing.fitted import simulate_from
from pyro_contrastive.testing.guide_contract import check_guide
from pyro_contrastive.testing.likelihood_contract import check_likelihood
from pyro_contrastive.testing.penalty_contract import check_penalty
from pyro_contrastive.testing.prior_contract import check_prior
from pyro_contrastive.testing.simulation import (
    SimulationSettings,
    TreatmentSettings,
    simulate,
    simulate_treatment,
)

__all__ = [
    "ContractError",
    "SimulationSettings",
    "TreatmentSettings",
    "check_guide",
    "check_likelihood",
    "check_penalty",
    "check_prior",
    "simulate",
    "simulate_from",
    "simulate_treatment",
]
