"""Pixel-space diffusion models in JAX: DDPM, DDIM, exact and proven against closed forms.

The pure core is imported when it is first used: `schedules`, `process`, `predictions`,
`likelihood`, `weightings`, `timestep_sampling`, `losses`, `samplers`, `oracle`.
"""

import importlib
from types import ModuleType

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


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"diffusion_jax.{name}")
    raise AttributeError(f"module 'diffusion_jax' has no attribute {name!r}")
