"""Simulated counts with known truth."""

from pyro_contrastive.testing.simulation import (
    SimulationSettings,
    TreatmentSettings,
    simulate,
    simulate_treatment,
)

__all__ = ["SimulationSettings", "TreatmentSettings", "simulate", "simulate_treatment"]
