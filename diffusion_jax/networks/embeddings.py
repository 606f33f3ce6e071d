"""The time embedding of the DDPM code: sin and cos of t at geometric frequencies."""

import math

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
