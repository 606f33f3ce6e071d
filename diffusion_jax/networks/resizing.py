"""Bilinear resizing as TensorFlow 1 does it, on which published features depend."""

import jax
import jax.numpy as jnp
import numpy as np


def bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize images as `tf.image.resize_bilinear(align_corners=False)` of TensorFlow 1.

    Output row i reads between the rows around i * H / height, without the offset of half
    a pixel that newer functions have, and without smoothing before images get smaller:

        y_i = x_l + (x_r - x_l) (s - l),
        s = i H / height,  l = floor(s),  r = min(l + 1, H - 1),

    and the same for columns, which come first. s is float32, as there.

    Args:
      x: [B, H, W, C], of any numbers.
      size: (height, width) of the results.

    Returns:
      float32 [B, height, width, C].
    """
    rows, columns = (_places(x.shape[1 + i], size[i]) for i in range(2))
    x = x.astype(jnp.float32)
    x = _between(x, columns, axis=2)
    return _between(x, rows, axis=1)


def _places(num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each output, both indices and the weight of the second."""
    place = np.arange(num_out, dtype=np.float32) * np.float32(num_in / num_out)
    low = np.minimum(place.astype(np.int32), num_in - 1)
    return low, np.minimum(low + 1, num_in - 1), place - low.astype(np.float32)


def _between(x: jax.Array, places: tuple[np.ndarray, ...], axis: int) -> jax.Array:
    low, high, weight = places
    first, second = jnp.take(x, low, axis), jnp.take(x, high, axis)
    weight = np.expand_dims(weight, [i for i in range(x.ndim) if i != axis])
    return first + (second - first) * weight
