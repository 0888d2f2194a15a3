"""Losses and optimizers beside vectorised numpy, bare matrix products and the memory's bandwidth."""
