"""Sounds as a kind of example: values of one or two channels over time."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import UNetConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.kind import Kind


@dataclasses.dataclass(frozen=True)
class Sounds(Kind):
    """Sounds, which a network sees times their gain, in [-1, 1].

    Attributes:
      sample_rate: values per second and channel, in Hz.
      gain: factor before the network.
    """

    sample_rate: int = 16000
    gain: float = 1.0

    name: ClassVar[str] = "sounds"
    form: ClassVar[str] = "sounds, float32 [N, L, C]"
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    ndim: ClassVar[int] = 3
    network: ClassVar[type] = UNetConfig
    is_bounded: ClassVar[bool] = True
    has_levels: ClassVar[bool] = False
    can_flip: ClassVar[bool] = False
    num_forward: ClassVar[int] = 1

    def _remedy(self, array: np.ndarray) -> str:
        return ""

    def to_network(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) * jnp.float32(self.gain)

    def from_network(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x) / np.float32(self.gain)).astype(np.float32)

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        figure = drawing.figure(6, 0.8 * len(x))
        for i, sound in enumerate(x):
            axes = figure.add_subplot(len(x), 1, i + 1)
            axes.plot(sound, lw=0.5)
            axes.set(xticks=[], yticks=[])
        return drawing.render(figure)

    def draw_side_by_side(self, sets: Mapping[str, np.ndarray]) -> Image.Image:
        return drawing.side_by_side({name: self.draw(x) for name, x in sets.items()})

    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        return drawing.grid({name: self.draw(x[:4]) for name, x in sets.items()}, columns)

    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        return self.draw(frames[:, 0])

    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        return [self.draw(frame[:4]) for frame in frames]
