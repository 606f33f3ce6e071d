"""A convolution that brings its own gradients.

XLA's CPU backend is fast on convolutions only in the forms that a forward pass uses.
The gradients that `lax.conv_general_dilated` derives are not of that form, and inside a
loop (several train steps per dispatch) they fall back to code that is 13 to 33 times
slower. Here both gradients are written as ordinary convolutions, so a train step
costs the same inside `lax.scan` as outside, with the same bits. (Having its own reverse
mode it has no forward mode: `jax.jvp` through it is an error.)

On a CPU, wide 3x3 convolutions and their gradients are products of matrices (winograd.py).
What was measured on CPU only stays on CPU: other compilers recognise the stock forms, so
`_on_cpu` is the one place that chooses.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from diffusion_jax.networks import winograd

_NHWC = ("NHWC", "HWIO", "NHWC")

Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    *,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated` for NHWC images, for `nn.Conv(conv_general_dilated=)`.

    Args:
      lhs: images [B, H, W, C].
      rhs: kernel [kh, kw, C, K].
      window_strides: one stride for each of H and W.
      padding: "SAME", "VALID", or ((top, bottom), (left, right)).
      lhs_dilation, rhs_dilation, feature_group_count: only the undilated, ungrouped
        convolution is implemented.
      dimension_numbers: what nn.Conv passes, which is NHWC, HWIO, NHWC.
      precision: must be None: the matmul precision is set for the whole program.

    Returns:
      [B, H', W', K].

    Raises:
      NotImplementedError: for a dilated or grouped convolution, or one not 2-D.
    """
    del dimension_numbers
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if lhs.ndim != 4 or dilated or feature_group_count != 1 or precision is not None:
        raise NotImplementedError(
            "conv_general_dilated with own gradients takes [B, H, W, C], no dilation, "
            f"no groups and the default precision; got a lhs of shape {lhs.shape}"
        )
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, strides, pads)  # type: ignore[arg-type]


def _plain(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Padding):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)


def _on_cpu(own: Callable[..., Any], stock: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`own` of the arrays in a program for a CPU, else `stock`."""
    return lax.platform_dependent(*arrays, cpu=own, default=stock)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Padding):
    stock = functools.partial(_plain, strides=strides, pads=pads)
    if winograd.applies(x, kernel, strides, pads):
        return _on_cpu(winograd.convolution, stock, x, kernel)
    return stock(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Padding):
    return _conv(x, kernel, strides, pads), (x, kernel)


def _stock_gradients(x, kernel, cotangent, strides, pads):
    _, vjp = jax.vjp(lambda x, k: _plain(x, k, strides, pads), x, kernel)
    return vjp(cotangent)


def _own_gradients(x, kernel, cotangent, strides, pads):
    if winograd.applies(x, kernel, strides, pads):
        return (
            winograd.input_gradient(cotangent, kernel),
            winograd.kernel_gradient(x, cotangent),
        )
    size, taps, out = x.shape[1:3], kernel.shape[:2], cotangent.shape[1:3]
    # Kernel: y[p] reads x[p * stride + tap - low], so the kernel's gradient is the
    # convolution of x with the cotangent spread out by the stride. The last rows of x
    # that no output reads are cut off by a smaller (even negative) high padding.
    high = [(out[i] - 1) * strides[i] + taps[i] - size[i] - pads[i][0] for i in range(2)]
    # It contracts over the batch N: x is transposed to [C, H, W, N] and the cotangent to
    # [H, W, N, K] (saying so by dimension_numbers would be the slow form again), and
    # the result [C, kh, kw, K] moves to [kh, kw, C, K].
    kernel_gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=[(pads[i][0], high[i]) for i in range(2)],
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
    ).transpose(1, 2, 0, 3)
    # Input: the cotangent, with stride - 1 zeros between its rows, meets the flipped
    # kernel with its channels exchanged.
    x_gradient = lax.conv_general_dilated(
        cotangent,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        window_strides=(1, 1),
        padding=[
            (
                taps[i] - 1 - pads[i][0],
                size[i] + pads[i][0] - 1 - (out[i] - 1) * strides[i],
            )
            for i in range(2)
        ],
        lhs_dilation=strides,
        dimension_numbers=_NHWC,
    )
    return x_gradient, kernel_gradient


def _backward(strides: Strides, pads: Padding, residuals, cotangent):
    form = {"strides": strides, "pads": pads}
    own, stock = (functools.partial(f, **form) for f in (_own_gradients, _stock_gradients))
    return _on_cpu(own, stock, *residuals, cotangent)


_conv.defvjp(_forward, _backward)
