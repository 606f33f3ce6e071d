"""Samples and trajectories as pictures: image grids for images, scatter plots for points.

Every function takes either images, uint8 [N, H, W, C] with 1 or 3 channels (of any
other number the first is shown), or points, float [N, D], of which the first two
coordinates are drawn. Trajectories have one more axis in front: [F, N, ...].
"""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 2  # Pixels between images.
_TITLE = 16  # Pixels above a set of images that has a name.
_MIN_SIDE = 48  # Smaller images are enlarged to about this, by whole factors.
_STRIP_ROWS = 8
_ANIMATED = 25  # GIF compresses noise badly.
_LIMIT = 2.5  # Half the side of a scatter plot.


def save_samples(path: pathlib.Path, samples: np.ndarray) -> None:
    """A PNG: images in rows, about as many across as down; points as one scatter plot."""
    if samples.ndim == 2:
        return _save_image(path, _scatter(samples[None], [""]))
    columns = int(np.ceil(np.sqrt(len(samples))))
    _save_image(path, _tile(samples, columns))


def save_side_by_side(path: pathlib.Path, samples: dict[str, np.ndarray]) -> None:
    """A PNG: each of several sets of samples as of `save_samples`, its name above it."""
    if next(iter(samples.values())).ndim == 2:
        sets = np.stack(list(samples.values()))
        return _save_image(path, _scatter(sets, list(samples)))
    sheets = [_tile(x, int(np.ceil(np.sqrt(len(x))))) for x in samples.values()]
    width, height = sheets[0].size
    whole = Image.new(
        sheets[0].mode, (len(sheets) * (width + 8) - 8, height + _TITLE), "white"
    )
    draw = ImageDraw.Draw(whole)
    for i, (name, sheet) in enumerate(zip(samples, sheets, strict=True)):
        left = i * (width + 8)
        draw.text((left + 4, 2), name, fill="black")
        whole.paste(sheet, (left, _TITLE))
    _save_image(path, whole)


def save_strip(path: pathlib.Path, frames: np.ndarray, titles: list[str]) -> None:
    """A PNG of a trajectory, time from left to right: a row for each of up to 8 images.

    Args:
      path: of the PNG.
      frames: [F, N, ...].
      titles: one for each frame; drawn above scatter plots only.
    """
    if frames.ndim == 3:
        return _save_image(path, _scatter(frames, titles))
    rows = frames[:, :_STRIP_ROWS].swapaxes(0, 1)
    _save_image(path, _tile(rows.reshape(-1, *frames.shape[2:]), len(frames)))


def save_animation(path: pathlib.Path, frames: np.ndarray) -> None:
    """A GIF of a trajectory [F, N, ...], of up to 25 images; it rests on the last frame."""
    if frames.ndim == 3:
        images = [_scatter(frame[None], [""]) for frame in frames]
    else:
        frames = frames[:, :_ANIMATED]
        columns = int(np.ceil(np.sqrt(frames.shape[1])))
        images = [_tile(frame, columns) for frame in frames]
    durations = [80] * (len(images) - 1) + [2000]
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        images[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
        )


def save_loss_curve(path: pathlib.Path, lines: list[dict[str, float]], title: str) -> None:
    """A PNG of the losses in the lines of a metrics.jsonl, logarithmic."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    for field, style in (("loss", "-"), ("held_out_loss", "o-")):
        points = [(line["step"], line[field]) for line in lines if field in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=3, lw=1, label=field)
    axes.set(xlabel="step", ylabel="loss", title=title)
    if any(line.get("loss", 0) > 0 for line in lines):
        axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    _save_image(path, _render(figure))


def save_rate_distortion(
    path: pathlib.Path, t: np.ndarray, rate: np.ndarray, rmse: np.ndarray
) -> None:
    """A PNG: bits spent and error left over the reverse steps, and one over the other.

    Args:
      path: of the PNG.
      t: timesteps, falling.
      rate: bits per dimension spent before each.
      rmse: error of the x_0 predicted there, in levels of 0 .. 255.
    """
    figure = _figure(11, 3.4)
    steps, error, both = (figure.add_subplot(1, 3, i) for i in (1, 2, 3))
    steps.plot(t, rate)
    steps.set(xlabel="t", ylabel="rate (bits/dim)", xlim=(t.max(), 0))
    error.plot(t, rmse)
    error.set(xlabel="t", ylabel="RMSE of x_0 (0 to 255)", xlim=(t.max(), 0))
    both.plot(rate, rmse)
    both.set(xlabel="rate (bits/dim)", ylabel="RMSE of x_0 (0 to 255)")
    for axes in (steps, error, both):
        axes.grid(alpha=0.3)
    _save_image(path, _render(figure))


def _tile(images: np.ndarray, columns: int) -> Image.Image:
    n, h, w, c = images.shape
    if c not in (1, 3):
        images, c = images[..., :1], 1
    factor = max(1, round(_MIN_SIDE / max(h, w)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    h, w = h * factor, w * factor
    rows = -(-n // columns)
    sheet = np.full(
        (rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, c), 64, np.uint8
    )
    for i, image in enumerate(images):
        top = _GAP + i // columns * (h + _GAP)
        left = _GAP + i % columns * (w + _GAP)
        sheet[top : top + h, left : left + w] = image
    return Image.fromarray(sheet[..., 0] if c == 1 else sheet)


def _scatter(frames: np.ndarray, titles: list[str]) -> Image.Image:
    figure = _figure(2.4 * len(frames), 2.8)
    for i, (points, title) in enumerate(zip(frames, titles, strict=True)):
        axes = figure.add_subplot(1, len(frames), i + 1)
        axes.scatter(points[:, 0], points[:, -1], s=1.5, lw=0, color="tab:blue")
        axes.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), title=title)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    return _render(figure)


def _figure(width: float, height: float) -> "Figure":
    # Imported where it is used: it is a quarter of what a command takes to start.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _render(figure: "Figure") -> Image.Image:
    # The canvas is given, so that no display and no global state are involved.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _save_image(path: pathlib.Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        image.save(file, format="PNG")
