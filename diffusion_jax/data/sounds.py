"""Sounds as a kind of example: values of one or two channels over time."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig, UNetConfig
from diffusion_jax.data import drawing, sound_drawing
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.sound_files import SoundFormat, fit_length, wav_of
from diffusion_jax.runtime import files, first_process
from diffusion_jax.runtime.errors import BadRequest

_FOLDER = "_sounds"
_OWN_NAME = re.compile(r"\d{4}\.wav")
_DRAWN = 16  # Sounds of a picture.
_IN_A_ROW = 3  # Sounds of each set in a grid.
_STRIP_ROWS = 4  # Sounds of a trajectory, a row for each.


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
    sizes: ClassVar[tuple[str, ...]] = ("sound_length",)
    space: ClassVar[slice] = slice(0, 1)
    side: ClassVar[str] = "lengths"
    num_forward: ClassVar[int] = 1
    suffixes: ClassVar[tuple[str, ...]] = (_FOLDER,)

    def from_file(self, array: np.ndarray, where: str, config: DataConfig) -> np.ndarray:
        self.check_form(array, where)
        channels = array.shape[-1]
        if channels != config.channels and (config.channels or channels > 2):
            wanted = config.channels or "1 or 2"
            raise BadRequest(
                f"{where}: arr_0 is {array.dtype} {list(array.shape)}, whose {channels:,} "
                f"channels must be {wanted}{self._transposed(array)}"
            )
        if not np.isfinite(array).all():
            raise BadRequest(f"{where}: arr_0 has values that are not finite")
        return fit_length(array, config.sound_length)

    def file_format(self, config: DataConfig) -> FileFormat:
        return SoundFormat(config.sample_rate)

    def _remedy(self, array: np.ndarray) -> str:
        if not array.size:
            return ""
        if array.ndim == self.ndim - 1:
            return "; if it holds mono sounds [N, L], save arr_0[..., None]"
        if array.ndim != self.ndim or array.dtype.kind not in "fiu":
            return ""
        if array.dtype == np.int16:
            return "; convert 16 bits with arr_0.astype(np.float32) / 32768"
        return f"; convert {array.dtype.name} with arr_0.astype(np.float32)"

    def _transposed(self, array: np.ndarray) -> str:
        if array.shape[1] in (1, 2):
            return "; if it holds [N, C, L], save arr_0.transpose(0, 2, 1)"
        return ""

    @property
    def about(self) -> dict[str, Any]:
        return {"sample_rate": self.sample_rate, "gain": self.gain}

    def to_network(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) * jnp.float32(self.gain)

    def from_network(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x) / np.float32(self.gain)).astype(np.float32)

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        """Return waveforms and spectrograms of the first 16 sounds, or of `turns`."""
        return drawing.tile(self._cells(x[: max(_DRAWN, turns)]), columns, turns)

    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        rows = {
            name: drawing.tile(self._cells(x[:_IN_A_ROW]), min(len(x), _IN_A_ROW))
            for name, x in sets.items()
        }
        return drawing.grid(rows, columns)

    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        """Return a row for each of up to 4 sounds; the titles are not shown."""
        rows = frames[:, :_STRIP_ROWS].swapaxes(0, 1)
        flat = rows.reshape(-1, *frames.shape[2:])
        return drawing.tile(self._cells(flat), len(frames))

    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        return [self.draw(frame) for frame in frames]

    def save(self, paths: Mapping[str, pathlib.Path], x: np.ndarray) -> None:
        """Write each sound as 0000.wav, 0001.wav, ...; louder ones than 1 by the gain."""
        folder = paths[_FOLDER]
        if not first_process.is_here():
            return
        folder.mkdir(parents=True, exist_ok=True)
        files.delete_unfinished(folder)
        files.delete(old for old in folder.iterdir() if _OWN_NAME.fullmatch(old.name))
        for i, sound in enumerate(x * min(self.gain, 1.0)):
            files.write_whole(folder / f"{i:04d}.wav", wav_of(sound, self.sample_rate))

    def _cells(self, x: np.ndarray) -> np.ndarray:
        return sound_drawing.cells(np.asarray(x) * np.float32(self.gain))
