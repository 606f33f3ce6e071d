"""Clips as a kind of example: images one after another, of 8 bits."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.clip_files import ClipFormat, reads_mp4, write_mp4
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.levels import OfLevels, how_to_save
from diffusion_jax.runtime import files

_DRAWN = 16  # Clips of a picture, a row of frames each.
_SHOWN = 64  # Clips of an animated sheet.
_IN_A_GRID = 2  # Clips of each set among many.
_ANIMATED = 8  # Clips of an animation of a trajectory.
_STRIP_ROWS = 8  # Frames of the clip of a trajectory, a row for each.
_SECONDS = 0.12  # A frame is shown for, in what is written.


class _Clips(OfLevels):
    """Clips of 8 bits."""

    name = "clips"
    form = "clips, uint8 [N, F, H, W, C]"
    ndim = 5
    sizes, space = ("image_size", "num_frames"), slice(1, 3)
    suffixes = (".gif", ".mp4")

    def file_format(self, config: DataConfig) -> FileFormat:
        return ClipFormat(config.num_frames, config.resize)

    def _remedy(self, array: np.ndarray) -> str:
        if not array.size:
            return ""
        if array.ndim == self.ndim - 1:
            return "; for images set data.num_frames=0, and save one clip as arr_0[None]"
        return how_to_save(array) if array.ndim == self.ndim else ""

    def draw(self, x: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
        """Return a row of frames for each of the first clips, up to 16."""
        shown = drawing.film_strips(x[: max(_DRAWN, turns)])
        return drawing.tile(shown, columns or 1, turns)

    def draw_grid(self, sets: Mapping[str, np.ndarray], columns: int) -> Image.Image:
        rows = {name: self.draw(x[:_IN_A_GRID]) for name, x in sets.items()}
        return drawing.grid(rows, columns)

    def draw_strip(self, frames: np.ndarray, titles: Sequence[str]) -> Image.Image:
        """Return a row for each of up to 8 frames of the first clip; no titles."""
        length = frames.shape[2]
        shown = np.linspace(0, length - 1, min(length, _STRIP_ROWS)).round().astype(int)
        rows = frames[:, 0, shown].swapaxes(0, 1)
        return drawing.tile(rows.reshape(-1, *frames.shape[3:]), len(frames))

    def draw_frames(self, frames: np.ndarray) -> list[Image.Image]:
        """Return the rows of frames of up to 8 clips."""
        return [self.draw(frame[:_ANIMATED]) for frame in frames]

    def draw_animated(self, x: np.ndarray) -> list[Image.Image]:
        """Return a sheet of the first clips, up to 64, at each of their frames."""
        return [drawing.tile(frame) for frame in x[:_SHOWN].swapaxes(0, 1)]

    def save(self, paths: Mapping[str, pathlib.Path], x: np.ndarray) -> None:
        """Write an animated sheet of the clips as a GIF, and as an MP4 if PyAV is there."""
        sheets = self.draw_animated(x)
        for suffix, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".gif":
                durations = [round(1000 * _SECONDS)] * len(sheets)
                with files.replacing(path) as file:
                    drawing.write_gif(file, sheets, durations)
            elif reads_mp4():
                with files.replacing(path) as file:
                    write_mp4(file, sheets, _SECONDS)


CLIPS = _Clips()
