"""Pixel-space diffusion models in JAX: DDPM, DDIM, exact and proven against closed forms.

The pure core is imported with the package: `schedules`, `process`, `predictions`,
`likelihood`, `weightings`, `timestep_sampling`, `losses`, `samplers`, `oracle`.
Networks, data, training and reports are imported where they are used.
"""

from diffusion_jax import (
    likelihood,
    losses,
    oracle,
    predictions,
    process,
    samplers,
    schedules,
    timestep_sampling,
    weightings,
)

__all__ = [
    "likelihood",
    "losses",
    "oracle",
    "predictions",
    "process",
    "samplers",
    "schedules",
    "timestep_sampling",
    "weightings",
]
__version__ = "0.1.0"
