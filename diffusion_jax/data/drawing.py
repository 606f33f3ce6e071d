"""Arrays as pictures: images side by side, points as scatter plots."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 2  # Pixels between images.
_GREY = 64  # Level of these.
_TITLE = 16  # Pixels above a sheet that has a name.
_APART = 8  # Pixels between sheets.
_MIN_SIDE = 48  # Smaller images are enlarged to about this, by whole factors.
_ROW = 512  # Pixels of a row of images.
_LIMIT = 2.5  # Half the side of a scatter plot.


def tile(images: np.ndarray, columns: int = 0, turns: int = 0) -> Image.Image:
    """Return images in rows, from left to right and then down.

    Args:
      images: uint8 [N, H, W, C]; if C is neither 1 nor 3, the first channel is shown.
      columns: images in a row; 0 is about as many across as down.
      turns: number of rows that take images in turn, image i in row i mod turns; 0 is
        row after row.
    """
    n, h, w, c = images.shape
    turns = min(turns, n)
    columns = -(-n // turns) if turns else columns or int(np.ceil(np.sqrt(n)))
    if c not in (1, 3):
        images, c = images[..., :1], 1
    factor = max(1, round(_MIN_SIDE / max(h, w)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    h, w = h * factor, w * factor
    rows = turns or -(-n // columns)
    sheet = np.full(
        (rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, c), _GREY, np.uint8
    )
    for i, image in enumerate(images):
        row, column = (i % turns, i // turns) if turns else divmod(i, columns)
        top, left = _GAP + row * (h + _GAP), _GAP + column * (w + _GAP)
        sheet[top : top + h, left : left + w] = image
    return Image.fromarray(sheet[..., 0] if c == 1 else sheet)


def film_strips(clips: np.ndarray) -> np.ndarray:
    """Return the frames of each clip from left to right, as one image for each clip.

    Args:
      clips: uint8 [N, F, H, W, C]; small frames are enlarged as `tile` does.

    Returns:
      uint8 [N, H', W', C], with gaps between the frames.
    """
    factor = max(1, round(_MIN_SIDE / max(clips.shape[2:4])))
    frames = clips.repeat(factor, axis=2).repeat(factor, axis=3)
    around = ((0, 0), (0, 0), (0, 0), (0, _GAP), (0, 0))
    spaced = np.pad(frames, around, constant_values=_GREY)
    n, _, height, _, channels = spaced.shape
    strips = spaced.transpose(0, 2, 1, 3, 4).reshape(n, height, -1, channels)
    return strips[:, :, :-_GAP]


def write_gif(
    file: BinaryIO, frames: Sequence[Image.Image], milliseconds: Sequence[int]
) -> None:
    """Write pictures as an animated GIF that begins again without end.

    Args:
      file: to write to.
      frames: the pictures, of one size.
      milliseconds: that each of them is shown for.
    """
    frames[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=list(milliseconds),
        loop=0,
    )


def side_by_side(sheets: Mapping[str, Image.Image]) -> Image.Image:
    """Return sheets from left to right, each with its name above it."""
    first = next(iter(sheets.values()))
    width = sum(sheet.width for sheet in sheets.values()) + _APART * (len(sheets) - 1)
    height = max(sheet.height for sheet in sheets.values())
    whole = Image.new(first.mode, (width, height + _TITLE), "white")
    draw = ImageDraw.Draw(whole)
    left = 0
    for name, sheet in sheets.items():
        draw.text((left + 4, 2), name, fill="black")
        whole.paste(sheet, (left, _TITLE))
        left += sheet.width + _APART
    return whole


def grid(sheets: Mapping[str, Image.Image], columns: int) -> Image.Image:
    """Return sheets of one size in rows of `columns`, each with its name above it."""
    first = next(iter(sheets.values()))
    rows = -(-len(sheets) // columns)
    width = max(first.width, *map(_width, sheets)) + _APART
    height = _TITLE + first.height + _APART
    whole = Image.new(
        first.mode, (columns * width - _APART, rows * height - _APART), "white"
    )
    draw = ImageDraw.Draw(whole)
    for i, (name, sheet) in enumerate(sheets.items()):
        left, top = i % columns * width, i // columns * height
        draw.text((left + 4, top + 2), name, fill="black")
        whole.paste(sheet, (left, top + _TITLE))
    return whole


def _width(name: str) -> int:
    return round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) + 8


def in_a_row(images: np.ndarray) -> Image.Image:
    """Return the first images in a row of about 512 pixels, of two or more."""
    side = max(images.shape[1:3])
    shown = max(2, _ROW // (max(1, round(_MIN_SIDE / side)) * side + _GAP))
    return tile(images[:shown], min(shown, len(images)))


def scatter(frames: Sequence[np.ndarray], titles: Sequence[str]) -> Image.Image:
    """Return scatter plots from left to right, of the first and the last coordinate.

    Args:
      frames: points, [N, D] each.
      titles: one for each frame.
    """
    drawn = figure(2.4 * len(frames), 2.8)
    for i, (points, title) in enumerate(zip(frames, titles, strict=True)):
        axes = drawn.add_subplot(1, len(frames), i + 1)
        axes.scatter(points[:, 0], points[:, -1], s=1.5, lw=0, color="tab:blue")
        axes.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), title=title)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    return render(drawn)


def figure(width: float, height: float) -> "Figure":
    """Return an empty figure of Matplotlib, in inches."""
    # Imported where it is used: it is a quarter of what a command takes to start.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def render(figure: "Figure") -> Image.Image:
    """Return the figure as an RGB image."""
    # The canvas is given, so that no display and no global state are involved.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
