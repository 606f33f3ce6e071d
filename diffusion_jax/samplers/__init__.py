"""Samplers: which timesteps, what happens at each of them, and the scan that runs it."""

from diffusion_jax.samplers import chain, steps, tables

__all__ = ["chain", "steps", "tables"]
