"""Pools over 3x3 places, as sums and maxima of shifted images.

On a CPU XLA's own windows take five to twenty times as long.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def average(x: jax.Array) -> jax.Array:
    """Return the mean of the up to nine neighbours that are there, [B, H, W, C].

    Places beyond the border count neither in the sum nor in the number, as in TensorFlow.
    """
    counts = np.outer(*(_count(n) for n in x.shape[1:3])).astype(np.float32)
    return _pooled(x, jnp.add, 1, 0.0) / counts[None, :, :, None]


def largest(x: jax.Array, stride: int) -> jax.Array:
    """Return the largest of nine neighbours.

    Args:
      x: [B, H, W, C].
      stride: 1, where places beyond the border count as nothing and the result has the size
        of x; or 2, where each window lies within x.
    """
    return _pooled(x, jnp.maximum, stride, -np.inf if stride == 1 else None)


def _pooled(
    x: jax.Array, combine: Callable, stride: int, border: float | None
) -> jax.Array:
    """Combine three rows and three columns, with a border of some value or without."""
    for axis in (1, 2):
        if border is not None:
            pads = [(int(i == axis),) * 2 for i in range(4)]
            x = jnp.pad(x, pads, constant_values=border)
        last = (x.shape[axis] - 3) // stride * stride + 1
        shifted = (lax.slice_in_dim(x, i, i + last, stride, axis=axis) for i in range(3))
        x = functools.reduce(combine, shifted)
    return x


def _count(size: int) -> np.ndarray:
    """Neighbours of each place in a row that are there, itself included."""
    place = np.arange(size)
    return 3.0 - (place == 0) - (place == size - 1)
