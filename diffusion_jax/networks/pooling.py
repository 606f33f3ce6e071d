"""Pools over 3x3 places, as the feature networks have them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def average(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same: the mean of the up to nine neighbours that are there.

    Places beyond the border count neither in the sum nor in the number, as TensorFlow's.
    """
    _, height, width, _ = x.shape
    for axis in (1, 2):
        pads = [(int(i == axis),) * 2 for i in range(4)]
        size = x.shape[axis]
        padded = jnp.pad(x, pads)
        first, second, third = (
            lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)
        )
        x = first + second + third
    counts = np.outer(_count(height), _count(width)).astype(np.float32)
    return x / counts[None, :, :, None]


def _count(size: int) -> np.ndarray:
    """Neighbours of each place that are there, itself included."""
    place = np.arange(size)
    return 3.0 - (place == 0) - (place == size - 1)


def largest(x: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, C] -> the largest of nine: with stride 1 of the same size, else within."""
    padding = "SAME" if stride == 1 else "VALID"
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
