"""Small tools around torch, Pyro and file systems."""
