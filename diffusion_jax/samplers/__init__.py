"""Samplers: which timesteps, what happens at each of them, and the scan that runs it."""

from diffusion_jax.samplers import chain, rows, steps, tables, thresholding

__all__ = ["chain", "rows", "steps", "tables", "thresholding"]
