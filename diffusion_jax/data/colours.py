"""Colours by an embedded ICC profile, converted to sRGB."""

import functools
import io

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


def transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return what converts an image to sRGB, by the profile in its info.

    None if it has no profile, if that is sRGB itself, or if it is broken or not for such
    images; then it is ignored.
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
    converted = transform.apply(image.convert(transform.input_mode))
    if alpha:
        converted.putalpha(alpha)
    return converted


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From images of a mode to sRGB; None where that changes nothing, or cannot be done."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    if mode == "L":
        grid = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    image = Image.fromarray(grid).convert(mode)
    moved = np.asarray(transform.apply(image)).astype(int)
    return None if abs(moved - grid).max() <= _IDENTICAL else transform
