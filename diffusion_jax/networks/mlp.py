"""A residual multilayer perceptron for points, such as the 2-D toys."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.networks.embeddings import of_label, timestep_embedding


class MLP(nn.Module):
    """Network that predicts eps, x0 or v from a noised point and its timestep.

    Attributes:
      out_channels: coordinates of a point.
      width: width of the residual stream and of the time embedding.
      num_blocks: residual blocks; each is layer norm, + time, swish, dense, swish, dense.
      num_classes: classes that a point may be of; 0 is none. See `embeddings.of_label`.
      dtype: compute dtype, "float32" or "bfloat16". Parameters and output are float32.
    """

    out_channels: int = 2
    width: int = 128
    num_blocks: int = 3
    dtype: Any = "float32"
    num_classes: int = 0

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        cond: Mapping[str, jax.Array] | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """x_t [B, D], t [B] -> float32 [B, out_channels]; cond may have "label" [B]."""
        del train  # No dropout.
        dtype = jnp.dtype(self.dtype)
        temb = timestep_embedding(t, self.width)
        temb = nn.swish(nn.Dense(self.width, dtype=dtype, name="temb")(temb))
        if self.num_classes:
            temb = temb + of_label(cond, t, self.num_classes, self.width, dtype)
        h = nn.Dense(self.width, dtype=dtype, name="dense_in")(x_t)
        for i in range(self.num_blocks):
            r = nn.LayerNorm(dtype=dtype, name=f"norm{i}")(h)
            r = r + nn.Dense(self.width, dtype=dtype, name=f"temb{i}")(temb)
            r = nn.Dense(self.width, dtype=dtype, name=f"dense{i}a")(nn.swish(r))
            r = nn.Dense(self.width, dtype=dtype, name=f"dense{i}b")(nn.swish(r))
            h = h + r
        h = nn.swish(nn.LayerNorm(dtype=dtype, name="norm_out")(h))
        h = nn.Dense(self.out_channels, dtype=dtype, name="dense_out")(h)
        return h.astype(jnp.float32)
