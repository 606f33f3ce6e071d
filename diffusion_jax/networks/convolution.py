"""The convolution of the networks, in forms that XLA's CPU backend is fast on.

That backend is fast on convolutions only in the forms that a forward pass uses. The
gradients that `lax.conv_general_dilated` derives are not of that form, and inside a
loop (several train steps per dispatch) they fall back to code that is 13 to 33 times
slower. Here both gradients are written as ordinary convolutions, so a train step
costs the same inside `lax.scan` as outside, with the same bits. Wide 3x3 convolutions
and their gradients are products of matrices (winograd.py).

All of this was measured on CPU only, and other compilers recognise the stock forms. So
`for_platform`, called when a network is built, is the one place that chooses, and a
network for another platform has nothing of this module in it.

The convolution and its two gradients are three primitives of JAX, each bilinear, and each
the transpose of the others. That gives both modes of differentiation, of any order, and
every derivative is again in a fast form. (`jax.custom_vjp` has no forward mode, and
`jax.custom_derivatives.linear_call` no `jax.vmap`.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from diffusion_jax.networks import winograd

_NHWC = ("NHWC", "HWIO", "NHWC")

Pair = tuple[int, int]


class _Form(NamedTuple):
    """Shapes and strides of a convolution, except batch and channels."""

    strides: Pair
    pads: tuple[Pair, Pair]  # Low and high, of H and of W.
    size: Pair  # H and W of the images.
    taps: Pair  # H and W of the kernel.
    out: Pair  # H' and W' of the results.
    wide: bool  # Whether it is computed by products of matrices.


def for_platform(platform: str) -> Callable[..., jax.Array]:
    """Return the convolution for programs of a platform, for `nn.Conv`.

    Args:
      platform: a name that JAX has for it: "cpu", "gpu", "cuda", "rocm" or "tpu".

    Returns:
      `conv_general_dilated` of this module for "cpu", that of `jax.lax` for all others.
      Either is right on every platform; the choice is of speed.
    """
    return conv_general_dilated if platform == "cpu" else lax.conv_general_dilated


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
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    (h, w), (kh, kw) = lhs.shape[1:3], rhs.shape[:2]
    size, taps = (h, w), (kh, kw)
    out = [(size[i] + sum(pads[i]) - taps[i]) // strides[i] + 1 for i in range(2)]
    wide = winograd.applies(lhs, rhs, strides, pads)
    form = _Form(strides, pads, size, taps, (out[0], out[1]), wide)
    y: jax.Array = _convolution_p.bind(lhs, rhs, form=form)
    return y


def _convolution(x: jax.Array, kernel: jax.Array, *, form: _Form) -> jax.Array:
    """[B, H, W, C], [kh, kw, C, K] -> [B, H', W', K]."""
    if form.wide:
        return winograd.convolution(x, kernel)
    return lax.conv_general_dilated(
        x, kernel, form.strides, form.pads, dimension_numbers=_NHWC
    )


def _input_gradient(cotangent: jax.Array, kernel: jax.Array, *, form: _Form) -> jax.Array:
    """[B, H', W', K], [kh, kw, C, K] -> [B, H, W, C].

    The cotangent, with stride - 1 zeros between its rows, meets the flipped kernel with
    its channels exchanged.
    """
    if form.wide:
        return winograd.input_gradient(cotangent, kernel)
    strides, pads, size, taps, out, _ = form
    return lax.conv_general_dilated(
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


def _kernel_gradient(x: jax.Array, cotangent: jax.Array, *, form: _Form) -> jax.Array:
    """[B, H, W, C], [B, H', W', K] -> [kh, kw, C, K].

    y[p] reads x[p * stride + tap - low], so this is the convolution of x with the
    cotangent spread out by the stride.
    """
    if form.wide:
        return winograd.kernel_gradient(x, cotangent)
    strides, pads, size, taps, out, _ = form
    # The last rows of x that no output reads are cut off by a smaller (even negative)
    # high padding.
    high = [(out[i] - 1) * strides[i] + taps[i] - size[i] - pads[i][0] for i in range(2)]
    # The sum is over the batch N: x is transposed to [C, H, W, N] and the cotangent to
    # [H, W, N, K] (saying so by dimension_numbers would be the slow form again), and
    # the result [C, kh, kw, K] moves to [kh, kw, C, K].
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=[(pads[i][0], high[i]) for i in range(2)],
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
    ).transpose(1, 2, 0, 3)


# The primitives. Each has two operands and `form`, and is linear in either operand.


def _primitive(
    name: str,
    function: Callable[..., jax.Array],
    shape: Callable[..., tuple[int, ...]],
    *,
    of_images: bool,
) -> Primitive:
    """Return a primitive that computes `function`.

    Args:
      name: its name in a jaxpr.
      function: of two arrays and `form`.
      shape: of its result, by the shapes of the arrays and `form`.
      of_images: the first array and the result are images, one by one: further examples
        are put into their batch by `jax.vmap`. In every other case the primitive becomes
        its function under `jax.vmap`, which JAX differentiates by its stock rules.
    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames="form"))
    primitive.def_abstract_eval(
        lambda a, b, form: jax.core.ShapedArray(shape(a.shape, b.shape, form), a.dtype)
    )
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

    def batched(arrays, axes, *, form):
        a, b = arrays
        if of_images and axes[1] is None:
            a = jnp.moveaxis(a, axes[0], 0)
            y = primitive.bind(a.reshape(-1, *a.shape[2:]), b, form=form)
            return y.reshape(*a.shape[:2], *y.shape[1:]), 0
        return jax.vmap(functools.partial(function, form=form), axes)(a, b), 0

    batching.primitive_batchers[primitive] = batched
    return primitive


_convolution_p = _primitive(
    "cpu_convolution",
    _convolution,
    lambda x, kernel, form: (x[0], *form.out, kernel[3]),
    of_images=True,
)
_input_gradient_p = _primitive(
    "cpu_convolution_input_gradient",
    _input_gradient,
    lambda cotangent, kernel, form: (cotangent[0], *form.size, kernel[2]),
    of_images=True,
)
_kernel_gradient_p = _primitive(
    "cpu_convolution_kernel_gradient",
    _kernel_gradient,
    lambda x, cotangent, form: (*form.taps, x[3], cotangent[3]),
    of_images=False,
)

# By <y, convolution(x, k)> = <input_gradient(y, k), x> = <kernel_gradient(x, y), k>, the
# transposes of each in its first operand and in its second.
ad.defbilinear(
    _convolution_p,
    lambda y, x, k, form: _input_gradient_p.bind(y, k, form=form),
    lambda y, x, k, form: _kernel_gradient_p.bind(x, y, form=form),
)
ad.defbilinear(
    _input_gradient_p,
    lambda x, y, k, form: _convolution_p.bind(x, k, form=form),
    lambda x, y, k, form: _kernel_gradient_p.bind(x, y, form=form),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda k, x, y, form: _input_gradient_p.bind(y, k, form=form),
    lambda k, x, y, form: _convolution_p.bind(x, k, form=form),
)
