"""Pictures in a run folder, saved whole or not at all; and the curves of a run."""

import pathlib

import numpy as np
from PIL import Image

from diffusion_jax.data.drawing import figure, render, write_gif
from diffusion_jax.runtime import files


def save_png(path: pathlib.Path, image: Image.Image) -> None:
    """Save a picture as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        image.save(file, format="PNG")


def save_gif(path: pathlib.Path, frames: list[Image.Image]) -> None:
    """Save pictures as an animated GIF, which rests on the last frame."""
    durations = [80] * (len(frames) - 1) + [2000]
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        write_gif(file, frames, durations)


def save_loss_curve(path: pathlib.Path, lines: list[dict[str, float]], title: str) -> None:
    """Save a PNG of the losses in the lines of a metrics.jsonl, logarithmic."""
    drawn = figure(7, 4)
    axes = drawn.add_subplot()
    for field, style in (("loss", "-"), ("held_out_loss", "o-")):
        points = [(line["step"], line[field]) for line in lines if field in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=3, lw=1, label=field)
    axes.set(xlabel="step", ylabel="loss", title=title)
    if any(line.get("loss", 0) > 0 for line in lines):
        axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    save_png(path, render(drawn))


def save_rate_distortion(
    path: pathlib.Path, t: np.ndarray, rate: np.ndarray, rmse: np.ndarray
) -> None:
    """Save a PNG: bits spent and error left over the reverse steps, and one by the other.

    Args:
      path: of the PNG.
      t: timesteps, falling.
      rate: bits per dimension spent before each.
      rmse: error of the x_0 predicted there, in levels of 0 .. 255.
    """
    drawn = figure(11, 3.4)
    steps, error, both = (drawn.add_subplot(1, 3, i) for i in (1, 2, 3))
    steps.plot(t, rate)
    steps.set(xlabel="t", ylabel="rate (bits/dim)", xlim=(t.max(), 0))
    error.plot(t, rmse)
    error.set(xlabel="t", ylabel="RMSE of x_0 (0 to 255)", xlim=(t.max(), 0))
    both.plot(rate, rmse)
    both.set(xlabel="rate (bits/dim)", ylabel="RMSE of x_0 (0 to 255)")
    for axes in (steps, error, both):
        axes.grid(alpha=0.3)
    save_png(path, render(drawn))
