"""Between the pixels of a file and what a network sees."""

import jax
import jax.numpy as jnp
import numpy as np

_LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)


def to_model_range(examples: jax.Array) -> jax.Array:
    """uint8 images to float32 k / 127.5 - 1, in [-1, 1]; float32 points as they are."""
    if examples.dtype == jnp.uint8:
        # From a table: a compiler may turn the division into a product, one ulp off.
        return jnp.asarray(_LEVELS)[examples]
    return examples.astype(jnp.float32)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] to uint8 by rounding; what lies outside is clipped."""
    return np.clip(np.rint((np.asarray(images) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def to_examples(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_model_range`: uint8 if `shape` is that of an image (H, W, C)."""
    return to_uint8(x) if len(shape) == 3 else np.asarray(x, np.float32)


def training_examples(key: jax.Array, examples: jax.Array, *, flip: bool) -> jax.Array:
    """What a train step learns from: `to_model_range`, and flips if wanted.

    Args:
      key: decides the flips.
      examples: uint8 [B, H, W, C] or float32 [B, D].
      flip: mirror each image left to right with probability 1/2.
    """
    x0 = to_model_range(examples)
    if not flip:
        return x0
    mirrored = jax.random.bernoulli(key, shape=(x0.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x0[:, :, ::-1, :], x0)
