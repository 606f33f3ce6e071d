"""Clips as a kind of example: images one after another, of 8 bits."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import UNetConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.levels import from_levels, to_levels

_STRIP_ROWS = 8  # Clips of a trajectory, a row for each.


class _Clips(Kind):
    """Clips of 8 bits, which a network sees as k / 127.5 - 1."""

    name = "clips"
    form = "clips, uint8 [N, F, H, W, C]"
    dtype, ndim = np.dtype(np.uint8), 5
    network = UNetConfig
    is_bounded = has_levels = can_flip = True
    num_forward = 1

    def _remedy(self, array: np.ndarray) -> str:
        return ""

    def to_network(self, x: jax.Array) -> jax.Array:
        return from_levels(x)

    def from_network(self, x: np.ndarray) -> np.ndarray:
        return to_levels(x)

    def flipped(self, key: jax.Array, x: jax.Array) -> jax.Array:
        mirrored = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1, 1))
        return jnp.where(mirrored, x[..., ::-1, :], x)

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        return drawing.tile(x[:, 0], columns, turns)

    def draw_side_by_side(self, sets: Mapping[str, np.ndarray]) -> Image.Image:
        return drawing.side_by_side({name: self.draw(x) for name, x in sets.items()})

    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        rows = {name: drawing.in_a_row(x[:, 0]) for name, x in sets.items()}
        return drawing.grid(rows, columns)

    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        rows = frames[:, :_STRIP_ROWS, 0].swapaxes(0, 1)
        return drawing.tile(rows.reshape(-1, *frames.shape[3:]), len(frames))

    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        return [self.draw(frame) for frame in frames]


CLIPS = _Clips()
