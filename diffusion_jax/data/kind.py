"""The abstract class of the kinds of example; kinds.py has the kinds."""

import abc
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.diffusion.batch import AUG_LEVEL, LOW_RES, Batch
from diffusion_jax.runtime.errors import BadRequest


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
      sizes: fields of DataConfig that give the shape of an example, with its channels.
      space: the axes of an example that the levels of a U-Net halve.
      side: the word for the sizes of the first of these, in the plural.
      suffixes: of the files of samples beside .png, .npz and .json; see `save`. One without
        a dot is that of a folder.
    """

    name: ClassVar[str]
    form: ClassVar[str]
    dtype: ClassVar[np.dtype]
    ndim: ClassVar[int]
    network: ClassVar[Any]
    is_bounded: ClassVar[bool]
    has_levels: ClassVar[bool]
    can_flip: ClassVar[bool]
    num_forward: ClassVar[int]
    sizes: ClassVar[tuple[str, ...]] = ("image_size",)
    space: ClassVar[slice] = slice(0, 2)
    side: ClassVar[str] = "heights"
    suffixes: ClassVar[tuple[str, ...]] = ()

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

    def file_format(self, config: DataConfig) -> FileFormat | None:
        """Return how files with one example each are read; None if there are no such."""
        del config
        return None

    def sizes_in_words(self, config: DataConfig) -> list[str]:
        """Return each of `sizes` with its value, for messages."""
        values = {name: getattr(config, name) for name in self.sizes}
        return [
            f"data.{name} {value if isinstance(value, tuple) else f'({value})'}"
            for name, value in values.items()
        ]

    @property
    def about(self) -> dict[str, Any]:
        """Return what run.json keeps of the way from files to the network and back."""
        return {}

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
        """Return the batch as the network sees it; a low-resolution image has no noise."""
        cond = batch.cond
        if LOW_RES in cond:
            no_noise = jnp.zeros(len(batch.x), jnp.float32)
            low_res = self.to_network(cond[LOW_RES])
            cond = {**cond, LOW_RES: low_res, AUG_LEVEL: no_noise}
        return Batch(self.to_network(batch.x), cond)

    def training_batch(self, key: jax.Array, batch: Batch, *, flip: bool) -> Batch:
        """Return the batch that a train step learns from.

        Args:
          key: of the augmentation.
          batch: x as the files have it.
          flip: whether to mirror x at random.
        """
        batch = self.network_batch(batch)
        if not flip:
            return batch
        cond = dict(batch.cond)
        if LOW_RES in cond:  # By the same key, and so the same ones.
            cond[LOW_RES] = self.flipped(key, cond[LOW_RES])
        return Batch(self.flipped(key, batch.x), cond)

    @abc.abstractmethod
    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        """Return a picture of examples as files have them.

        Args:
          x: [N, ...].
          columns: of images, in a row; 0 is as fits.
          turns: number of rows of images that take the examples in turn; 0 is row after
            row.
        """

    def draw_side_by_side(self, sets: Mapping[str, np.ndarray]) -> Image.Image:
        """Return a picture of several sets of examples, each with its name above it."""
        return drawing.side_by_side({name: self.draw(x) for name, x in sets.items()})

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

    def save(self, paths: Mapping[str, pathlib.Path], x: np.ndarray) -> None:
        """Write the further files of samples, such as sounds or an animation.

        Args:
          paths: the file or folder to write, for each of `suffixes`. A folder may be there,
            with files of the user's, which stay.
          x: the first samples, as files have them, [N, ...].
        """
        del paths, x
