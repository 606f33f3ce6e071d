"""From the bytes of an image file to uint8 pixels of the shape that is wanted."""

import io
import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MAX_PIXELS = 90_000_000  # More in one picture is taken for a decompression bomb.
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")


class Unreadable(ValueError):
    """An image cannot be read; str() is the reason."""


def num_channels(file: IO[bytes]) -> int:
    """1 if an image is grey, 3 if it is in colour; only the header is read.

    Raises:
      Unreadable: if the header is not that of a PNG, JPEG or WebP of a sane size.
    """
    return 1 if _is_grey(_open(file)) else 3


def decode(content: bytes, shape: tuple[int, int, int], resize: str) -> np.ndarray:
    """The pixels of an image file; uint8 [H, W, C].

    A rotation that EXIF asks for is done; what is transparent lies on white; 16 bits of
    grey become 8 by rounding v / 257, those of colour by their upper byte (Pillow has no
    16-bit colour), which is less than one level lower; colour becomes grey as
    0.299 R + 0.587 G + 0.114 B. Of an animation the first frame counts.

    Args:
      content: of a PNG, JPEG or WebP file.
      shape: (H, W, C) with C 1 or 3.
      resize: "crop" or "squash"; see `fit`.

    Raises:
      Unreadable: if it is none of these, truncated, or larger than 90 million pixels.
    """
    image = _open(io.BytesIO(content))
    try:
        return fit(ImageOps.exif_transpose(image), shape, resize)
    except Exception as error:  # Damaged bytes make Pillow raise nearly any kind.
        raise Unreadable(str(error) or type(error).__name__) from error


def fit(image: Image.Image, shape: tuple[int, int, int], resize: str) -> np.ndarray:
    """An image of any mode and size as uint8 [H, W, C].

    Args:
      image: with any mode.
      shape: (H, W, C). An image that has it already is not resampled.
      resize: "crop" keeps the aspect and cuts the middle out; "squash" keeps all of the
        image. Both by one Lanczos filter that is as wide as the pixels that it averages.
    """
    height, width, channels = shape
    image = _on_white(image).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        box = (0.0, 0.0, float(image.width), float(image.height))
        if resize == "crop":
            scale = min(image.width / width, image.height / height)
            left = (image.width - width * scale) / 2
            top = (image.height - height * scale) / 2
            box = (left, top, left + width * scale, top + height * scale)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image).reshape(shape)


def _open(file: IO[bytes]) -> Image.Image:
    if not file.read(1):
        raise Unreadable("the file is empty")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, of large or odd pictures.
            image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise Unreadable("it is a decompression bomb") from error
    except Exception as error:
        raise Unreadable("it is not a PNG, JPEG or WebP image") from error
    if image.width * image.height > _MAX_PIXELS:
        raise Unreadable(
            f"{image.width} x {image.height} pixels are taken for a decompression bomb"
        )
    return image


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette:
        # Not getpalette(), which would decode the image.
        raw = bytes(image.palette.palette or b"")
        colours = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GREY_MODES


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency, in a mode of 8 bits a channel."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip((wide + 128) // 257, 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image)
