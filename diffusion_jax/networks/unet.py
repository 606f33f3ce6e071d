"""The DDPM U-Net (Ho et al. 2020, appendix B), block for block as in the authors' code.

For clips it is that of "Video Diffusion Models" (Ho et al. 2022): frames go through it as
images, also where a GroupNorm takes its statistics, and meet only in attention over time.
So a clip whose frames attend to themselves alone is learned from as single images are, and
a network of images fits into one of clips. Attention over time follows every residual block
(and its attention over space, if any), at each level: convolutions are 1x3x3, so that
without it nothing would move at the finest level.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.networks import blocks
from diffusion_jax.networks.embeddings import of_aug_level, of_label, timestep_embedding


class UNet(nn.Module):
    """Network that predicts eps, x0 or v from a noised example and its timestep.

    Examples are images, sounds or clips, by the number of their axes: the params of a
    network of images are also those of one of clips, except for what attends over time.
    With the defaults and three channels this is the paper's CIFAR-10 network:
    35,746,307 parameters.

    Attributes:
      out_channels: channels of the prediction: those of the image, or twice as many with
        a learned variance.
      base_channels: width of the first level.
      channel_mults: width of each level in units of base_channels; each level after the
        first halves height and width, or the length of a sound, which must divide by
        2**(levels - 1).
      num_res_blocks: residual blocks per level going down; one more going up.
      attn_resolutions: heights of the feature maps that get attention (for images that
        are not square too: the height decides); for sounds their lengths. Those in the
        middle always do, and over the frames of clips there is attention after each block.
      num_heads: attention heads.
      dropout: rate in each residual block, while training.
      num_groups: groups of each GroupNorm; divides every width.
      scale_shift_norm: the time scales and shifts a GroupNorm's output in each residual
        block, as in IDDPM, instead of being added before it, as in DDPM.
      dtype: compute dtype, "float32" or "bfloat16". Parameters and output are float32.
      num_classes: classes that an example may be of; 0 is none. See `embeddings.of_label`.
      remat: keep only the inputs of each residual and attention block for the backward
        pass, which computes the blocks again: the same gradient with less memory.
      platform: platform that the programs with this network are for, JAX's default
        backend if not given: "cpu" takes the convolutions of convolution.py, any other
        the stock ones of JAX.
    """

    out_channels: int = 3
    base_channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.1
    num_groups: int = 32
    scale_shift_norm: bool = False
    dtype: Any = "float32"
    num_classes: int = 0
    remat: bool = False
    platform: str = dataclasses.field(default_factory=jax.default_backend)

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """x_t in about [-1, 1], t [B] -> float32, x_t with out_channels for its channels.

        Args:
          x_t: [B, H, W, C], [B, L, C] or [B, F, H, W, C].
          t: [B].
          cond: may have, of each example, "label", int32 [B], the class, see
            `embeddings.of_label`; "low_res", of fewer pixels than x_t and as many axes, and
            "aug_level" [B], how much noise is in it, 0 .. 1; "focus", bool [B], see
            `blocks.TimeAttention`.
          train: switches the dropout on.
        """
        cond, dtype = cond or {}, jnp.dtype(self.dtype)
        num_levels, is_sound = len(self.channel_mults), x_t.ndim == 3
        num_frames = x_t.shape[1] if x_t.ndim == 5 else 1
        form = blocks.Form((1, 3) if is_sound else (3, 3), dtype, self.platform)
        res, attn, over_time = (
            blocks.ResBlock,
            blocks.AttentionBlock,
            blocks.TimeAttention,
        )
        if self.remat:
            res, attn = nn.remat(res, static_argnums=(3,)), nn.remat(attn)
            over_time = nn.remat(over_time)

        def res_block(h: jax.Array, level: int, name: str) -> jax.Array:
            features = self.base_channels * self.channel_mults[level]
            return res(
                features,
                self.dropout,
                self.num_groups,
                self.scale_shift_norm,
                form,
                name=name,
            )(h, temb, train)

        def attention(h: jax.Array, name: str, *, always: bool = False) -> jax.Array:
            size = h.shape[2 if is_sound else 1]
            if always or size in self.attn_resolutions:
                h = attn(self.num_heads, self.num_groups, dtype, name=name)(h)
            if x_t.ndim != 5:
                return h
            heads = (self.num_heads, self.num_groups, dtype)
            time = over_time(num_frames, *heads, name=name.replace("attn", "time"))
            return time(h, cond.get("focus"))

        temb = self._embedding(t, cond, dtype)
        temb = jnp.repeat(temb, num_frames, axis=0) if num_frames > 1 else temb
        h = _with_low_res(x_t, cond.get("low_res"))
        h = h[:, None] if is_sound else h.reshape(-1, *h.shape[-3:])
        h = blocks.conv(h, self.base_channels, name="conv_in", form=form)
        skips = [h]
        for level in range(num_levels):
            for i in range(self.num_res_blocks):
                h = res_block(h, level, f"down{level}_res{i}")
                h = attention(h, f"down{level}_attn{i}")
                skips.append(h)
            if level != num_levels - 1:
                h = blocks.downsample(h, name=f"down{level}_conv", form=form)
                skips.append(h)

        h = res_block(h, num_levels - 1, "mid_res0")
        h = attention(h, "mid_attn", always=True)
        h = res_block(h, num_levels - 1, "mid_res1")

        for level in reversed(range(num_levels)):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res_block(h, level, f"up{level}_res{i}")
                h = attention(h, f"up{level}_attn{i}")
            if level != 0:
                h = blocks.upsample(h, name=f"up{level}_conv", form=form)

        h = nn.swish(blocks.GroupNorm(self.num_groups, dtype, name="norm_out")(h))
        h = blocks.conv(h, self.out_channels, name="conv_out", form=form, scale=0.0)
        return h.reshape(*x_t.shape[:-1], self.out_channels).astype(jnp.float32)

    @nn.nowrap
    def _embedding(
        self, t: jax.Array, cond: Mapping[str, jax.Array], dtype: Any
    ) -> jax.Array:
        """Return the embedding of all but x_t, [B, 4 base_channels]."""
        width = 4 * self.base_channels
        temb = timestep_embedding(t, self.base_channels)
        temb = blocks.dense(width, name="temb1", dtype=dtype)(temb)
        temb = blocks.dense(width, name="temb2", dtype=dtype)(nn.swish(temb))
        if self.num_classes:
            temb = temb + of_label(cond, t, self.num_classes, width, dtype)
        if "aug_level" in cond:
            temb = temb + of_aug_level(cond["aug_level"], self.base_channels, width, dtype)
        return temb


def _with_low_res(x_t: jax.Array, low_res: jax.Array | None) -> jax.Array:
    """Return x_t with the channels of `low_res`, resized to its grid, behind its own."""
    if low_res is None:
        return x_t
    shape = (*x_t.shape[:-1], low_res.shape[-1])
    return jnp.concatenate([x_t, jax.image.resize(low_res, shape, "cubic")], axis=-1)
