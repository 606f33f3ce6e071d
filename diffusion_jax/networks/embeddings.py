"""The embeddings of the timestep, as in the DDPM code, of a class, and of a level."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def timestep_embedding(t: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal embedding, `sin || cos`, with the DDPM code's divisor.

    Frequencies are exp(-ln(10000) * i / (dim/2 - 1)) for i = 0 .. dim/2 - 1 (the
    divisor is half - 1, not half: it decides whether weights of other code fit).

    Args:
      t: [B] timesteps, 0 .. T-1; integers, or float32 between them.
      dim: width of the embedding; at least 4; an odd one is padded with a zero.

    Returns:
      float32 [B, dim].
    """
    half = dim // 2
    frequencies = jnp.exp(
        -math.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32)
    )
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def of_label(
    cond: Mapping[str, jax.Array] | None,
    t: jax.Array,
    num_classes: int,
    dim: int,
    dtype: Any,
) -> jax.Array:
    """Return the learned embedding of each example's class, to be added to that of time.

    A network calls it within its own `__call__`, as it would a module.

    Args:
      cond: may have "label", int32 [B], 0 .. num_classes - 1; num_classes is the class of
        examples whose label was dropped. Without it, all are of that class. Others give
        NaN.
      t: [B], the timesteps.
      num_classes: of the data.
      dim: width of the embedding.
      dtype: of the result.

    Returns:
      [B, dim].
    """
    label = (cond or {}).get("label", jnp.full(t.shape, num_classes, jnp.int32))
    table = nn.Embed(num_classes + 1, dim, dtype=dtype, name="label_embedding")
    return table(label)


def of_aug_level(level: jax.Array, dim: int, width: int, dtype: Any) -> jax.Array:
    """Return the embedding of how much noise a condition has, made as that of time.

    A network calls it within its own `__call__`, as it would a module.

    Args:
      level: float32 [B], 0 .. 1.
      dim: width of the sinusoidal embedding of 1,000 times the level.
      width: of the result.
      dtype: of the result.

    Returns:
      [B, width].
    """
    h = timestep_embedding(1000 * level, dim)
    h = nn.swish(nn.Dense(width, dtype=dtype, name="aug1")(h))
    return nn.Dense(width, dtype=dtype, name="aug2")(h)
