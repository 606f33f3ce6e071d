"""The kinds of example: points, pictures, sounds and clips, and how they differ.

`kind_of` chooses the kind of a run from its config. What only one kind of example has
(levels, bounds, flips) is a property of the kind, so that no other module looks at shapes
or dtypes to tell kinds apart. A new kind is a new object in `KINDS`.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig, MLPConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.clips import CLIPS
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.images import ImageFormat, fit
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.levels import OfLevels, how_to_save
from diffusion_jax.data.sounds import Sounds
from diffusion_jax.runtime.errors import BadRequest

_STRIP_ROWS = 8  # Images of a trajectory, a row for each.
_PLOTS = 4  # Scatter plots in a row.
_ANIMATED = 25  # Images of an animation: GIF compresses noise badly.


class _Points(Kind):
    """Points, which a network sees as they are; scatter plots of two coordinates."""

    name = "points"
    form = "points, float32 [N, D]"
    dtype, ndim = np.dtype(np.float32), 2
    network = MLPConfig
    is_bounded = has_levels = can_flip = False
    num_forward = 1000

    def _remedy(self, array: np.ndarray) -> str:
        if not array.size:
            return ""
        if array.ndim == PICTURES.ndim:
            return "; for images set data.image_size"
        if array.ndim != self.ndim or array.dtype.kind not in "fiu":
            return ""
        return f"; convert {array.dtype.name} with arr_0.astype(np.float32)"

    def to_network(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32)

    def from_network(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32)

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        return drawing.scatter([x], [""])

    def draw_side_by_side(self, sets: Mapping[str, np.ndarray]) -> Image.Image:
        return drawing.scatter(list(sets.values()), list(sets))

    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        columns = min(columns if columns > 1 else _PLOTS, len(sets))
        return drawing.grid({name: self.draw(x) for name, x in sets.items()}, columns)

    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        return drawing.scatter(list(frames), titles)

    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        return [self.draw(frame) for frame in frames]


class _Pictures(OfLevels):
    """Images of 8 bits; grids of images."""

    name = "images"
    form = "images, uint8 [N, H, W, C]"
    ndim = 4

    def from_file(self, array: np.ndarray, where: str, config: DataConfig) -> np.ndarray:
        shape = array.shape
        if len(shape) == self.ndim and shape[1] in (1, 3) and shape[3] not in (1, 3):
            if shape[3] != config.channels:
                raise BadRequest(
                    f"{where}: arr_0 is {array.dtype} {list(shape)}, which looks like "
                    "[N, C, H, W], but must be uint8 [N, H, W, C]: save arr_0.transpose(0, "
                    f"2, 3, 1){self._remedy(array)}"
                )
        return _fitted(super().from_file(array, where, config), where, config)

    def file_format(self, config: DataConfig) -> FileFormat:
        return ImageFormat(config.resize, config.reduced_from)

    def _remedy(self, array: np.ndarray) -> str:
        if not array.size:
            return ""
        if array.ndim == 3 and array.shape[-1] not in (1, 3):
            return "; if it holds grey images [N, H, W], save arr_0[..., None]"
        if array.ndim != self.ndim:
            return ""
        return how_to_save(array)

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        return drawing.tile(x, columns, turns)

    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        rows = {name: drawing.in_a_row(x) for name, x in sets.items()}
        return drawing.grid(rows, columns)

    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        """Return a row for each of up to 8 images; the titles are not shown."""
        rows = frames[:, :_STRIP_ROWS].swapaxes(0, 1)
        return drawing.tile(rows.reshape(-1, *frames.shape[2:]), len(frames))

    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        """Return the frames of up to 25 images."""
        return [self.draw(frame) for frame in frames[:, :_ANIMATED]]


def _fitted(images: np.ndarray, where: str, config: DataConfig) -> np.ndarray:
    channels = images.shape[-1]
    if channels not in (1, 3) and channels != config.channels:
        raise BadRequest(f"{where}: arr_0 has {channels} channels, not 1 or 3")
    height, width = config.shape[:2]
    shape = (height, width, config.channels or channels)
    if images.shape[1:] == shape:
        return images
    if channels not in (1, 3) or shape[-1] not in (1, 3):
        raise BadRequest(
            f"{where}: arr_0 has images of {list(images.shape[1:])}, but data.image_size "
            f"and data.channels say {list(shape)}"
        )
    flat = images[..., 0] if channels == 1 else images
    how = (config.resize, config.reduced_from)
    return np.stack([fit(Image.fromarray(x), shape, *how) for x in flat])


POINTS, PICTURES = _Points(), _Pictures()
KINDS: tuple[Kind, ...] = (PICTURES, POINTS, Sounds(), CLIPS)


def kind_of(config: DataConfig) -> Kind:
    """Return the kind of the examples of a config."""
    if config.sound_length:
        return Sounds(config.sample_rate, config.gain or 1.0)
    if config.num_frames:
        return CLIPS
    return PICTURES if config.image_size else POINTS
