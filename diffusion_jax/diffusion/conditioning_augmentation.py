"""Noise in the low-resolution image that a network refines (Ho et al. 2022, section 4).

The images of an earlier stage of a cascade are not those that the next stage was trained
on. Gaussian conditioning augmentation hides the difference: z = alpha c + sigma eps takes
the place of the low-resolution image c, and the network is told how much noise there is.
With a level s from 0 to 1,

    alpha = cos(pi s / 2),   sigma = sin(pi s / 2),

so that a level means the same whatever the noise process of x is, and z keeps the variance
of an image of variance 1.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.batch import AUG_LEVEL, LOW_RES, Batch


def with_noise(low_res: jax.Array, level: jax.Array, noise: jax.Array) -> jax.Array:
    """Return z, cos(pi s / 2) c + sin(pi s / 2) eps.

    Args:
      low_res: c, [B, ...].
      level: s, 0 .. 1, [B].
      noise: eps, the shape of `low_res`.
    """
    angle = (jnp.pi / 2 * level).reshape(-1, *(1,) * (low_res.ndim - 1))
    return jnp.cos(angle) * low_res + jnp.sin(angle) * noise


def augmented(key: jax.Array, batch: Batch, largest: float) -> Batch:
    """Return the batch with noise in its low-resolution images, for a train step.

    Args:
      key: of the levels and the noise.
      batch: its cond has "low_res" float32 [B, h, w, C], in [-1, 1].
      largest: levels are uniform in 0 .. largest.
    """
    k_level, k_noise = jax.random.split(key)
    low_res = batch.cond[LOW_RES]
    level = jax.random.uniform(k_level, low_res.shape[:1], maxval=largest)
    noise = jax.random.normal(k_noise, low_res.shape)
    noised = with_noise(low_res, level, noise)
    return batch._replace(cond={**batch.cond, LOW_RES: noised, AUG_LEVEL: level})


def augmented_samples(
    key: jax.Array, cond: Mapping[str, Any], level: float, indices: Any
) -> dict[str, Any]:
    """Return the conditions of samples with noise in their low-resolution images.

    Args:
      key: of the samples; the noise of a sample depends on it and its index alone.
      cond: has "low_res" float32 [B, h, w, C], in [-1, 1].
      level: of the noise, 0 .. 1.
      indices: int32 [B], of the samples.
    """
    low_res = jnp.asarray(cond[LOW_RES])
    key = jax.random.fold_in(key, 2**32 - 7)  # As in `init_state`.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices))
    noise = jax.vmap(lambda k: jax.random.normal(k, low_res.shape[1:]))(keys)
    levels = jnp.full(len(low_res), level, jnp.float32)
    noised = with_noise(low_res, levels, noise)
    return {**cond, LOW_RES: noised, AUG_LEVEL: levels}
