"""Colours by an embedded ICC profile, converted to sRGB."""

import functools
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

# Modes of images by the colour space of a profile that fits them.
_MODES = {
    "RGB": ("RGB", "RGBA", "RGBX", "P", "PA"),
    "L": ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"),
    "CMYK": ("CMYK",),
}
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_IDENTICAL = 1  # Levels by which a profile may differ from sRGB and be taken for it.


class Transform(NamedTuple):
    """A conversion of images to sRGB.

    Attributes:
      source: the mode of the images: L, RGB or CMYK.
      apply: gives another image, in mode L or RGB.
    """

    source: str
    apply: Callable[[Image.Image], Image.Image]


def transform_of(image: Image.Image) -> Transform | None:
    """Return the conversion of an image to sRGB, by the profile in its info.

    It is None if the image has no profile, or if that is sRGB itself, broken, or not for
    such images; then the profile is ignored.
    """
    profile = image.info.get("icc_profile")
    for source, modes in _MODES.items():
        if profile and image.mode in modes:
            return _transform(bytes(profile), source)
    return None


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits by `transform_of`; its transparency stays."""
    transform = transform_of(image)
    if transform is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = transform.apply(image.convert(transform.source))
    if alpha:
        converted.putalpha(alpha)
    return converted


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, source: str) -> Transform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != _SPACES[source]:
            return None
        # The transform is exact where only a table is made of it.
        flags = ImageCms.Flags.NOOPTIMIZE if source == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), source, "RGB", flags=flags
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if source == "CMYK":
        return Transform(source, transform.apply)
    levels = np.arange(256, dtype=np.uint8)[None] if source == "L" else _grid()
    moved = np.asarray(transform.apply(Image.fromarray(levels))).astype(int)
    if source == "L":
        moved = moved[..., 1]
    if abs(moved - levels).max() <= _IDENTICAL:
        return None
    if source == "L":
        table = moved.ravel().tolist()
        return Transform(source, lambda image: image.point(table))
    return Transform(source, transform.apply)


def _grid() -> np.ndarray:
    """Colours all over the cube; uint8 [1, N, 3]."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
