"""Simulated counts with known truth."""

from pyro_contrastive.testing.simulation import SimulationSettings, simulate

__all__ = ["SimulationSettings", "simulate"]
