"""Pixel-space diffusion models in JAX: DDPM, DDIM, exact and proven against closed forms.

The pure core is imported with the package: `schedules`, `process`, `losses`, `samplers`.
Networks, data, training and reports are imported where they are used.
"""

from diffusion_jax import losses, process, samplers, schedules

__all__ = ["losses", "process", "samplers", "schedules"]
__version__ = "0.1.0"
