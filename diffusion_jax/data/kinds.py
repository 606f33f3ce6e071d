"""The kinds of example: points and pictures, and all that differs between them.

`kind_of` chooses the kind of a run from its config. What only one kind of example has
(levels, bounds, flips) is a property of the kind, so that no other module looks at shapes
or dtypes to tell kinds apart. A new kind is a new object in `KINDS`.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig, MLPConfig, UNetConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.images import fit
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.runtime.errors import BadRequest

_LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)
_STRIP_ROWS = 8  # Images of a trajectory, a row for each.
_PLOTS = 4  # Scatter plots in a row.
_ANIMATED = 25  # Images of an animation: GIF compresses noise badly.


class Kind(abc.ABC):
    """Examples of one kind: their form in files, in the network and in pictures.

    Attributes:
      name: the kind in messages, in the plural.
      form: dtype and axes of an array of examples, in words.
      dtype, ndim: of an array of examples, the axis of the batch included.
      network: the class of config of the networks that take such examples.
      is_bounded: whether x_0 lies in [-1, 1], so that a predicted x_0 is thresholded.
      has_levels: whether values lie on 256 levels, which the L_0 of the likelihood needs.
      can_flip: whether an example can be mirrored left to right.
      num_forward: examples that a forward trajectory shows.
    """

    name: str
    form: str
    dtype: np.dtype
    ndim: int
    network: Any
    is_bounded: bool
    has_levels: bool
    can_flip: bool
    num_forward: int

    def fits(self, array: np.ndarray) -> bool:
        """Return whether a non-empty array has the dtype and axes of such examples."""
        return (array.dtype, array.ndim) == (self.dtype, self.ndim) and array.size > 0

    def from_file(self, array: np.ndarray, where: str, config: DataConfig) -> np.ndarray:
        """Return the examples that a file's array holds, in the shape of the config.

        Args:
          array: as the file has it.
          where: the file, for messages.
          config: has the shape, and how examples get it.

        Raises:
          BadRequest: if the array holds something else; with a remedy, if one is known.
        """
        self.check_form(array, where)
        return array

    def check_form(self, array: np.ndarray, where: str) -> None:
        """Raise BadRequest, with a remedy if one is known, unless `fits`."""
        if not self.fits(array):
            raise BadRequest(
                f"{where}: arr_0 is {array.dtype} {list(array.shape)}, but must be "
                f"{self.form}, and not empty{self._remedy(array)}"
            )

    @abc.abstractmethod
    def _remedy(self, array: np.ndarray) -> str:
        """Return how an array that does not fit could be saved; begins with "; "."""

    @abc.abstractmethod
    def to_network(self, x: jax.Array) -> jax.Array:
        """Return examples as the network sees them; float32."""

    @abc.abstractmethod
    def from_network(self, x: np.ndarray) -> np.ndarray:
        """Return examples as a file has them: the inverse of `to_network`."""

    def flipped(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Return examples of the network, each mirrored with probability 1/2."""
        raise ValueError(f"{self.name} cannot be flipped")

    def network_batch(self, batch: Batch) -> Batch:
        """Return the batch with x as the network sees it."""
        return batch._replace(x=self.to_network(batch.x))

    def training_batch(self, key: jax.Array, batch: Batch, *, flip: bool) -> Batch:
        """Return the batch that a train step learns from.

        Args:
          key: of the augmentation.
          batch: x as the files have it.
          flip: whether to mirror x at random.
        """
        batch = self.network_batch(batch)
        return batch._replace(x=self.flipped(key, batch.x)) if flip else batch

    @abc.abstractmethod
    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        """Return a picture of examples as files have them.

        Args:
          x: [N, ...].
          columns: of images, in a row; 0 is as fits.
          turns: number of rows of images that take the examples in turn; 0 is row after
            row.
        """

    @abc.abstractmethod
    def draw_side_by_side(self, sets: Mapping[str, np.ndarray]) -> Image.Image:
        """Return a picture of several sets of examples, each with its name above it."""

    @abc.abstractmethod
    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        """Return a picture of many sets, `columns` in a row, each with its name above it.

        Of images the first ones of each set are shown.
        """

    @abc.abstractmethod
    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        """Return a picture of a trajectory, time from left to right.

        Args:
          frames: examples as files have them, [F, N, ...].
          titles: one for each frame; not every kind shows them.
        """

    @abc.abstractmethod
    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        """Return the pictures of an animation of a trajectory [F, N, ...]."""


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


class _Pictures(Kind):
    """Images of 8 bits, which a network sees as k / 127.5 - 1; grids of images."""

    name = "images"
    form = "images, uint8 [N, H, W, C]"
    dtype, ndim = np.dtype(np.uint8), 4
    network = UNetConfig
    is_bounded = has_levels = can_flip = True
    num_forward = 1

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

    def _remedy(self, array: np.ndarray) -> str:
        if not array.size:
            return ""
        if array.ndim == 3 and array.shape[-1] not in (1, 3):
            return "; if it holds grey images [N, H, W], save arr_0[..., None]"
        if array.ndim != self.ndim:
            return ""
        return _to_8_bits(array)

    def to_network(self, x: jax.Array) -> jax.Array:
        # From a table: a compiler may turn the division into a product, one ulp off.
        return jnp.asarray(_LEVELS)[x]

    def from_network(self, x: np.ndarray) -> np.ndarray:
        # Rounded; what lies outside of [-1, 1] is clipped.
        return np.clip(np.rint((np.asarray(x) + 1.0) * 127.5), 0, 255).astype(np.uint8)

    def flipped(self, key: jax.Array, x: jax.Array) -> jax.Array:
        mirrored = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
        return jnp.where(mirrored, x[:, :, ::-1, :], x)

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        return drawing.tile(x, columns, turns)

    def draw_side_by_side(self, sets: Mapping[str, np.ndarray]) -> Image.Image:
        return drawing.side_by_side({name: self.draw(x) for name, x in sets.items()})

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


def _to_8_bits(images: np.ndarray) -> str:
    kind, name = images.dtype.kind, images.dtype.name
    if kind == "f" and np.isfinite(images).all():
        low, high = float(images.min()), float(images.max())
        if 0 <= low and high <= 1:
            return "; convert values from 0 to 1 with np.rint(arr_0 * 255).astype(np.uint8)"
        if -1 <= low and high <= 1:
            return (
                "; convert values from -1 to 1 with "
                "np.rint((arr_0 + 1) * 127.5).astype(np.uint8)"
            )
        return "; scale it to 0 to 255, and save np.rint(arr_0).astype(np.uint8)"
    if kind == "b":
        return "; save arr_0.astype(np.uint8) * 255"
    if name == "uint8":
        return ""
    if kind in "iu" and images.min() >= 0 and images.max() <= 255:
        return "; its values fit: save arr_0.astype(np.uint8)"
    if name == "uint16":
        return "; save np.rint(arr_0 / 257).astype(np.uint8)"
    return ""


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
    return np.stack([fit(Image.fromarray(x), shape, config.resize) for x in flat])


POINTS, PICTURES = _Points(), _Pictures()
KINDS: tuple[Kind, ...] = (PICTURES, POINTS)


def kind_of(config: DataConfig) -> Kind:
    """Return the kind of the examples of a config."""
    return PICTURES if config.image_size else POINTS
