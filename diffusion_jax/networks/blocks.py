"""The blocks of the DDPM U-Net (Ho et al. 2020, appendix B, and their code).

Each is written once, for images [N, H, W, C]. A sound [B, L, C] is an image of height 1
whose convolutions have one row of taps, and a clip [B, F, H, W, C] is F images, which only
`TimeAttention` sees together ("Video Diffusion Models", Ho et al. 2022: convolutions 1x3x3,
attention over space, then over time).
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.networks import convolution


def ddpm_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform initialiser by the mean of fan-in and fan-out.

    `scale=0` means 1e-10, as in the code.
    """
    return nn.initializers.variance_scaling(
        max(scale, 1e-10), mode="fan_avg", distribution="uniform"
    )


class Form(NamedTuple):
    """Form of the convolutions of a network.

    Attributes:
      taps: rows and columns of each kernel, (3, 3); (1, 3) for sounds.
      dtype: of the computations.
      platform: of the programs, see convolution.py.
    """

    taps: tuple[int, int]
    dtype: Any
    platform: str


def conv(
    x: jax.Array,
    features: int,
    *,
    name: str,
    form: Form,
    stride: int = 1,
    scale: float = 1.0,
) -> jax.Array:
    """[N, H, W, C] -> [N, H', W', features]: convolution of 3 taps per axis, padding SAME.

    The stride is that of each axis that has 3 taps.
    """
    layer = nn.Conv(
        features,
        form.taps,
        strides=tuple(stride if taps > 1 else 1 for taps in form.taps),
        kernel_init=ddpm_init(scale),
        dtype=form.dtype,
        conv_general_dilated=convolution.for_platform(form.platform),
        name=name,
    )
    return layer(x)


def dense(features: int, *, name: str, dtype: Any, scale: float = 1.0) -> nn.Dense:
    """Dense layer over the last axis; over an image it is the code's 1x1 "nin"."""
    return nn.Dense(features, kernel_init=ddpm_init(scale), dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Normalisation of groups of channels over all positions (Wu and He 2018).

    Each group gets mean 0 and variance 1; each channel is then multiplied by its `scale`
    and increased by its `bias`. Statistics are float32. They are sums by channel first, so
    that each element takes one multiplication and one addition.
    """

    num_groups: int
    dtype: Any
    epsilon: float = 1e-6  # The value of the DDPM code; PyTorch has 1e-5.

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        b, height, width, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = x.astype(jnp.float32)
        size = c // self.num_groups

        def mean(of: jax.Array) -> jax.Array:
            """[B, H, W, C] -> [B, C], the mean of each channel's group."""
            groups = of.sum((1, 2)).reshape(b, self.num_groups, size).mean(axis=2)
            return jnp.repeat(groups / (height * width), size, axis=1)

        center = mean(x)
        variance = jnp.maximum(mean(jnp.square(x)) - jnp.square(center), 0)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale[None]
        offset = bias[None] - center * factor
        return (x * factor[:, None, None] + offset[:, None, None]).astype(self.dtype)


def downsample(x: jax.Array, *, name: str, form: Form) -> jax.Array:
    """[N, H, W, C] -> [N, H/2, W/2, C]: convolution of stride 2; a sound keeps H = 1."""
    return conv(x, x.shape[-1], name=name, form=form, stride=2)


def upsample(x: jax.Array, *, name: str, form: Form) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, C]: nearest neighbour, then a convolution.

    A sound keeps H = 1.
    """
    n, h, w, c = x.shape
    rows, columns = (2 if taps > 1 else 1 for taps in form.taps)
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, rows, w, columns, c))
    x = x.reshape(n, rows * h, columns * w, c)
    return conv(x, c, name=name, form=form)


class ResBlock(nn.Module):
    """GN, swish, conv, + time, GN, swish, dropout, conv (zero), + shortcut.

    With `scale_shift_norm` the time scales and shifts what the second GN gives instead
    (Nichol and Dhariwal 2021).
    """

    features: int
    dropout: float
    num_groups: int
    scale_shift_norm: bool
    form: Form

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, train: bool) -> jax.Array:
        """x [N, H, W, C], temb [N, E] -> [N, H, W, features]."""
        dtype = self.form.dtype
        norm = functools.partial(GroupNorm, self.num_groups, dtype)
        h = nn.swish(norm(name="norm1")(x))
        h = conv(h, self.features, name="conv1", form=self.form)
        norm2 = norm(name="norm2")
        num_outputs = self.features * (2 if self.scale_shift_norm else 1)
        time = dense(num_outputs, name="temb", dtype=dtype)(nn.swish(temb))
        if self.scale_shift_norm:
            scale, shift = jnp.split(time[:, None, None, :], 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + time[:, None, None, :])
        h = nn.swish(h)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(h, self.features, name="conv2", form=self.form, scale=0.0)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="shortcut", dtype=dtype)(x)
        return x + h


def _queries_keys_values(h: jax.Array, dtype: Any) -> list[jax.Array]:
    """Return three dense layers of h, of its shape, named "q", "k" and "v"."""
    return [dense(h.shape[-1], name=name, dtype=dtype)(h) for name in "qkv"]


class AttentionBlock(nn.Module):
    """Self-attention over all positions of each feature map, added to its input."""

    num_heads: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]; the softmax is taken in float32."""
        n, height, width, c = x.shape
        h = GroupNorm(self.num_groups, self.dtype, name="norm")(x)
        heads = (n, height * width, self.num_heads, c // self.num_heads)
        q, k, v = (part.reshape(heads) for part in _queries_keys_values(h, self.dtype))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * heads[-1] ** -0.5
        weights = nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
        h = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return x + dense(c, name="out", dtype=self.dtype, scale=0.0)(h)


class TimeAttention(nn.Module):
    """Self-attention over the frames of a clip at each position, added to its input.

    A learned bias for each head and distance i - j of two frames, -F < i - j < F, is added
    to the logits: few frames need no buckets of distances. The output begins at zero, so
    that a network begins as that of its single frames.
    """

    num_frames: int
    num_heads: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, focus: jax.Array | None = None) -> jax.Array:
        """[B F, H, W, C] -> [B F, H, W, C]; the softmax is taken in float32.

        Args:
          x: the frames, those of a clip one after another.
          focus: bool [B]; frames of such clips attend to themselves alone.
        """
        *_, height, width, c = x.shape
        frames = self.num_frames
        h = GroupNorm(self.num_groups, self.dtype, name="norm")(x)
        heads = (-1, frames, height * width, self.num_heads, c // self.num_heads)
        q, k, v = (part.reshape(heads) for part in _queries_keys_values(h, self.dtype))
        table = self.param("bias", nn.initializers.zeros, (self.num_heads, 2 * frames - 1))
        distance = np.arange(frames)[:, None] - np.arange(frames)[None]
        bias = table[:, distance + frames - 1]
        logits = jnp.einsum("bipnd,bjpnd->bpnij", q, k) * heads[-1] ** -0.5
        logits = logits.astype(jnp.float32) + bias[None, None]
        if focus is not None:
            is_other = (distance != 0)[None] & focus[:, None, None]
            logits = jnp.where(is_other[:, None, None], -jnp.inf, logits)
        weights = nn.softmax(logits).astype(v.dtype)
        h = jnp.einsum("bpnij,bjpnd->bipnd", weights, v).reshape(x.shape)
        return x + dense(c, name="out", dtype=self.dtype, scale=0.0)(h)
