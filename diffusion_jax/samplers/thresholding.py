"""Keeping the predicted x_0 of images in range: hooks between network and row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.noise_level import NoiseLevel

THRESHOLDS = ("static", "dynamic", "none")

# hook(x0 [B, ...], x_t [B, ...], level of x_t, cond) -> x0 [B, ...]
Hook = Callable[[jax.Array, jax.Array, NoiseLevel, Any], jax.Array]


def static_threshold(
    x0: jax.Array, x_t: jax.Array, level: NoiseLevel, cond: Any = None
) -> jax.Array:
    """Return the predicted x_0 clipped to [-1, 1], as DDPM's code does; a hook."""
    del x_t, level, cond
    return jnp.clip(x0, -1.0, 1.0)


def dynamic_threshold(
    x0: jax.Array,
    x_t: jax.Array,
    level: NoiseLevel,
    cond: Any = None,
    *,
    percentile: float = 0.995,
) -> jax.Array:
    """Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3).

    Each example is clipped to [-s, s] and divided by s, with s the percentile of its
    absolute values, but at least 1: so a few pixels out of range do not saturate.

    Args:
      x0: [B, ...].
      x_t, level, cond: of every hook; not used.
      percentile: 0 .. 1.
    """
    del x_t, level, cond
    absolute = jnp.abs(x0).reshape(x0.shape[0], -1)
    s = jnp.maximum(jnp.quantile(absolute, percentile, axis=1), 1.0)
    s = s.reshape((-1,) + (1,) * (x0.ndim - 1))
    return jnp.clip(x0, -s, s) / s
