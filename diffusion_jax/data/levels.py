"""The 256 levels of images and clips, and the numbers that a network sees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)


def from_levels(x: jax.Array) -> jax.Array:
    """Return k / 127.5 - 1 of levels k, uint8; float32."""
    # From a table: a compiler may turn the division into a product, one ulp off.
    return jnp.asarray(_LEVELS)[x]


def to_levels(x: Any) -> np.ndarray:
    """Return the nearest levels; uint8. Numbers outside of [-1, 1] are clipped."""
    return np.clip(np.rint((np.asarray(x) + 1.0) * 127.5), 0, 255).astype(np.uint8)
