"""The blocks of the DDPM U-Net (Ho et al. 2020, appendix B, and their code)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.networks import convolution


def ddpm_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform initialiser by the mean of fan-in and fan-out.

    `scale=0` means 1e-10, as in the code.
    """
    return nn.initializers.variance_scaling(
        max(scale, 1e-10), mode="fan_avg", distribution="uniform"
    )


def conv3x3(
    features: int,
    *,
    name: str,
    dtype: Any,
    platform: str,
    stride: int = 1,
    scale: float = 1.0,
) -> nn.Conv:
    """3x3 convolution, SAME padding, for programs of a platform."""
    return nn.Conv(
        features,
        (3, 3),
        strides=(stride, stride),
        kernel_init=ddpm_init(scale),
        dtype=dtype,
        conv_general_dilated=convolution.for_platform(platform),
        name=name,
    )


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


def downsample(x: jax.Array, *, name: str, dtype: Any, platform: str) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, W/2, C] by a 3x3 convolution of stride 2."""
    conv = conv3x3(x.shape[-1], name=name, dtype=dtype, platform=platform, stride=2)
    return conv(x)


def upsample(x: jax.Array, *, name: str, dtype: Any, platform: str) -> jax.Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: nearest neighbour, then a 3x3 convolution."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    conv = conv3x3(c, name=name, dtype=dtype, platform=platform)
    return conv(x.reshape(b, 2 * h, 2 * w, c))


class ResBlock(nn.Module):
    """GN, swish, conv, + time, GN, swish, dropout, conv (zero), + shortcut.

    With `scale_shift_norm` the time scales and shifts what the second GN gives instead
    (Nichol and Dhariwal 2021).
    """

    features: int
    dropout: float
    num_groups: int
    scale_shift_norm: bool
    dtype: Any
    platform: str

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, train: bool) -> jax.Array:
        """x [B, H, W, C], temb [B, E] -> [B, H, W, features]."""
        h = nn.swish(GroupNorm(self.num_groups, self.dtype, name="norm1")(x))
        conv = functools.partial(
            conv3x3, self.features, dtype=self.dtype, platform=self.platform
        )
        h = conv(name="conv1")(h)
        norm2 = GroupNorm(self.num_groups, self.dtype, name="norm2")
        num_outputs = self.features * (2 if self.scale_shift_norm else 1)
        time = dense(num_outputs, name="temb", dtype=self.dtype)(nn.swish(temb))
        if self.scale_shift_norm:
            scale, shift = jnp.split(time[:, None, None, :], 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + time[:, None, None, :])
        h = nn.swish(h)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(name="conv2", scale=0.0)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="shortcut", dtype=self.dtype)(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all positions of the feature map, added to its input."""

    num_heads: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; the softmax is taken in float32."""
        b, height, width, c = x.shape
        h = GroupNorm(self.num_groups, self.dtype, name="norm")(x)
        heads = (b, height * width, self.num_heads, c // self.num_heads)
        q = dense(c, name="q", dtype=self.dtype)(h).reshape(heads)
        k = dense(c, name="k", dtype=self.dtype)(h).reshape(heads)
        v = dense(c, name="v", dtype=self.dtype)(h).reshape(heads)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * heads[-1] ** -0.5
        weights = nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
        h = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return x + dense(c, name="out", dtype=self.dtype, scale=0.0)(h)
