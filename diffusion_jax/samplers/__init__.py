"""Samplers: which timesteps, what happens at each of them, and the scan that runs it."""

from diffusion_jax.samplers import chain, methods, table, thresholding, timesteps

__all__ = ["chain", "methods", "table", "thresholding", "timesteps"]
