"""Convolutions with the batch norm behind them folded in, for networks that are only used.

Batch norm that is not trained any more is an affine map of each channel,

    y = (conv(x, w) - mean) / sqrt(variance + epsilon) * scale + offset,

so both together are the convolution with another kernel and a bias,

    w' = w * f,   b' = offset - mean * f,   f = scale / sqrt(variance + epsilon),

the same function except for rounding. Params are folded in float64, from the arrays that a
network of torch has: kernels [out, in, h, w], the scale "weight" and the offset "bias".
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion_jax.networks import winograd

_IDLE = "num_batches_tracked"  # A count of train steps, which every batch norm keeps.


class Source(NamedTuple):
    """Names of a convolution in a network of torch, and of the batch norm behind it."""

    convolution: str
    norm: str


class Tensors:
    """Tensors of a network of torch, each of which is to be taken once."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._left = dict(tensors)

    def take(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """Return a tensor, as float64.

        Raises:
          ValueError: if it is not there, or has another shape.
        """
        if name not in self._left:
            raise ValueError(f"there is no tensor {name!r}")
        tensor = self._left.pop(name)
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"tensor {name!r} has the shape {tensor.shape}, not {tuple(shape)}"
            )
        return tensor.astype(np.float64)

    def check_all_taken(self) -> None:
        """Refuse tensors that nothing has taken; counts of train steps may be left.

        Raises:
          ValueError: naming one of them.
        """
        left = [name for name in self._left if not name.endswith(_IDLE)]
        if left:
            raise ValueError(f"there are {len(left)} further tensors, such as {left[0]!r}")


class Affine(nn.Module):
    """A kernel of a given shape, and a bias for each of its outputs, the last axis."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Return the kernel, and the bias with as many axes.

        `init` makes zeros of them, as they are not trained.
        """
        kernel = self.param("kernel", nn.initializers.zeros, self.shape)
        bias = self.param("bias", nn.initializers.zeros, self.shape[-1:])
        return kernel, jnp.expand_dims(bias, range(len(self.shape) - 1))


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    pads: tuple[tuple[int, int], tuple[int, int]],
    platform: str,
) -> jax.Array:
    """Convolve images, where no gradient is asked for.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, K].
      stride: of rows and columns.
      pads: rows above and below, columns to the left and to the right.
      platform: of the program; on a "cpu" wide 3x3 kernels are products of matrices.

    Returns:
      [B, H', W', K].
    """
    wide = kernel.shape[:2] == (3, 3) and stride == 1 and min(kernel.shape[2:]) >= 64
    if platform == "cpu" and wide:
        # `winograd` takes even sizes and a border of one pixel: a row and a column are put
        # behind an odd size, and the results that were not asked for are cut off.
        size = [n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], pads, strict=True)]
        first = [1 - pad[0] for pad in pads]
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        y = winograd.convolution(x, kernel)
        return y[:, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def fold(
    tensors: Tensors, source: Source, shape: tuple[int, ...], epsilon: float
) -> dict[str, np.ndarray]:
    """Return the params of a convolution, by the formula above.

    Args:
      tensors: of the network in torch.
      source: names of the convolution and its batch norm there.
      shape: of the kernel, [h, w, in, out].
      epsilon: of the batch norm.

    Returns:
      "kernel" [h, w, in, out] and "bias" [out], float32.

    Raises:
      ValueError: if a tensor is missing or has another shape.
    """
    h, w, num_inputs, num_outputs = shape
    kernel = tensors.take(f"{source.convolution}.weight", (num_outputs, num_inputs, h, w))
    scale, offset, mean, variance = (
        tensors.take(f"{source.norm}.{name}", (num_outputs,))
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + epsilon)
    return {
        "kernel": (kernel.transpose(2, 3, 1, 0) * factor).astype(np.float32),
        "bias": (offset - mean * factor).astype(np.float32),
    }
