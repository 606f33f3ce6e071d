"""Convolutions of 3x3 kernels by matrix products (Winograd 1980; Lavin and Gray 2016).

Two outputs of a kernel of three, F(2, 3), take four products instead of six:

    y = A^T ((G g) * (B^T d)),   d four inputs, g the kernel, y two outputs,

and in two dimensions four outputs take 16 instead of 36. Here d and g have channels, so
each of the 16 is a product of matrices, [positions, C] by [C, K]. All are exact except for
rounding: the sums are those of the convolution in another order.

A tile is a square of 2x2 outputs; it reads 4x4 inputs, two of each shared with
the next tile. The 16 places of such a square are a list [4][4] of arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Square = list[list[jax.Array]]

# Each transform takes separate arrays: those of a row first, then those of a column.


def _b(d0: jax.Array, d1: jax.Array, d2: jax.Array, d3: jax.Array):
    """B^T d."""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _g(g0: jax.Array, g1: jax.Array, g2: jax.Array):
    """G g."""
    return g0, 0.5 * (g0 + g1 + g2), 0.5 * (g0 - g1 + g2), g2


def _g_transposed(u0: jax.Array, u1: jax.Array, u2: jax.Array, u3: jax.Array):
    """G^T u."""
    return u0 + 0.5 * (u1 + u2), 0.5 * (u1 - u2), 0.5 * (u1 + u2) + u3


def _a_transposed(m0: jax.Array, m1: jax.Array, m2: jax.Array, m3: jax.Array):
    """A^T m."""
    return m0 + m1 + m2, m1 - m2 - m3


def _a(y0: jax.Array, y1: jax.Array):
    """A y."""
    return y0, y0 + y1, y0 - y1, -y1


def _both(transform: Callable[..., tuple[jax.Array, ...]], square: Square) -> Square:
    """Transform each row, and each column of the result."""
    rows = [transform(*row) for row in square]
    columns = [transform(*column) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _padded(x: jax.Array) -> jax.Array:
    """Add a border of zeros: XLA computes what is padded once, and not for each place."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _inputs(x: jax.Array) -> Square:
    """B^T d B of each tile; [positions, C] each."""
    _, height, width, channels = x.shape
    x = _padded(x)
    square = [
        [x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)]
        for i in range(4)
    ]
    return [[d.reshape(-1, channels) for d in row] for row in _both(_b, square)]


def _kernels(kernel: jax.Array) -> Square:
    """G g G^T; [C, K] each."""
    return _both(_g, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _outputs(products: Square, shape: tuple[int, ...]) -> jax.Array:
    """A^T m A of each tile, put together to the array [B, H, W, K] of `shape`."""
    b, height, width, k = shape
    tiles = _both(_a_transposed, products)
    rows = [
        jnp.stack([y.reshape(b, height // 2, width // 2, k) for y in row], axis=3)
        for row in tiles
    ]
    return jnp.stack(rows, axis=2).reshape(shape)


def applies(x: jax.Array, kernel: jax.Array, strides: Any, pads: Any) -> bool:
    """Return whether `convolution` computes this one, and faster than otherwise.

    Below 64 channels what the products save is spent on the sums.
    """
    _, height, width, channels = x.shape
    return (
        kernel.shape[:2] == (3, 3)
        and strides == (1, 1)
        and pads == ((1, 1), (1, 1))
        and height % 2 == width % 2 == 0
        and min(channels, kernel.shape[3]) >= 64
        and x.dtype == jnp.float32
    )


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C] (H and W even), kernel [3, 3, C, K] -> [B, H, W, K], padding SAME."""
    d, u = _inputs(x), _kernels(kernel)
    products = [[d[i][j] @ u[i][j] for j in range(4)] for i in range(4)]
    return _outputs(products, (*x.shape[:3], kernel.shape[3]))


def input_gradient(cotangent: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, K], [3, 3, C, K] -> [B, H, W, C]: convolution with the kernel flipped.

    Flipping a kernel exchanges the first and the last row, and column, of G g G^T.
    """
    d, u = _inputs(cotangent), _kernels(kernel)
    flipped = (3, 1, 2, 0)
    over_outputs = (((1,), (1,)), ((), ()))
    products = [
        [
            lax.dot_general(d[i][j], u[flipped[i]][flipped[j]], over_outputs)
            for j in range(4)
        ]
        for i in range(4)
    ]
    return _outputs(products, (*cotangent.shape[:3], kernel.shape[2]))


def kernel_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """[B, H, W, C], [B, H, W, K] -> [3, 3, C, K]: G^T ((B^T d B) * (A y A^T)) G."""
    _, height, width, k = cotangent.shape
    d, cotangent = (
        _inputs(x),
        _padded(cotangent),
    )  # The padded array is the one that `input_gradient` has.
    outputs = [
        [cotangent[:, i : i + height : 2, j : j + width : 2] for j in (1, 2)]
        for i in (1, 2)
    ]
    y = [[a.reshape(-1, k) for a in row] for row in _both(_a, outputs)]
    over_positions = (((0,), (0,)), ((), ()))
    products = [
        [lax.dot_general(d[i][j], y[i][j], over_positions) for j in range(4)]
        for i in range(4)
    ]
    return jnp.stack([jnp.stack(row) for row in _both(_g_transposed, products)])
