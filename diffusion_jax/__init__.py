"""Pixel-space diffusion models in JAX: DDPM, DDIM, exact and proven against closed forms.

The packages `diffusion` (the maths), `samplers` and `networks` are imported when they are
first used.
"""

import importlib
from types import ModuleType

__all__ = ["diffusion", "networks", "samplers"]
__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"diffusion_jax.{name}")
    raise AttributeError(f"module 'diffusion_jax' has no attribute {name!r}")
