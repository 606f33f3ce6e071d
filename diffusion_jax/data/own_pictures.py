"""Pictures and masks that a flag names, in the shape that a run has."""

import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import formats
from diffusion_jax.data.example_files import Files, existing, find_files
from diffusion_jax.data.images import decode_whole, fit, fit_mask
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.npz import read_arrays
from diffusion_jax.data.unreadable import Unreadable
from diffusion_jax.runtime import files as regular
from diffusion_jax.runtime.errors import BadRequest

_WHAT = "image, folder or zip of images, or .npz"
_PAINTED = 128  # Masks are white from this level on.


class OwnPictures(NamedTuple):
    """Pictures of the user's.

    Attributes:
      pixels: uint8 [N, H, W, C], in the shape of the run.
      sizes: (height, width) that they had, each once.
    """

    pixels: np.ndarray
    sizes: frozenset[tuple[int, int]]


def read_pictures(path: str, flag: str, config: DataConfig, most: int) -> OwnPictures:
    """Return the first pictures of a file or folder, resized as training data are.

    Args:
      path: of one image, a folder or zip of images in the order of their names, or an
        .npz whose arr_0 has images.
      flag: that named it, for messages.
      config: of the run's data.
      most: pictures that are read, at most.

    Raises:
      BadRequest: if there is no such thing, or a picture cannot be read.
    """
    where = f"{flag} ({path!r})"
    if not path:
        raise BadRequest(f"{flag} is empty; give an {_WHAT}")
    found = existing(path, flag, _WHAT)
    if found.suffix in (".npz", ".npy") and not found.is_dir():
        images = read_arrays(path, flag, config)[0][:most]
        pixels = kind_of(config).from_file(images, where, config)
        return OwnPictures(pixels, frozenset([images.shape[1:3]]))
    height, width, channels = shape = config.shape[0], config.shape[1], config.shape[2]
    if channels not in (1, 3):
        raise BadRequest(
            f"{where}: the run's images have {channels} channels; give an .npz, with arr_0 "
            f"uint8 [N, {height}, {width}, {channels}]"
        )
    fitted, sizes = [], set()
    for name, content in _contents(path, flag, most):
        whole = _decoded(content, channels, f"{flag} ({name!r})")
        flat = whole[..., 0] if channels == 1 else whole
        how = (config.resize, config.reduced_from)
        fitted.append(fit(Image.fromarray(flat), shape, *how))
        sizes.add((whole.shape[0], whole.shape[1]))
    return OwnPictures(np.stack(fitted), frozenset(sizes))


def read_mask(
    path: str, flag: str, config: DataConfig, sizes: frozenset[tuple[int, int]]
) -> np.ndarray:
    """Return where a picture is known: where the mask is black alone; bool [H, W].

    Args:
      path: of an image; white is to be painted, from level 128 on.
      flag: that named it, for messages.
      config: of the run's data; the mask is resized as the pictures are.
      sizes: (height, width) of the pictures; the mask has their size, or the run's.

    Raises:
      BadRequest: if it is no image of such a size, or all or nothing would be painted.
    """
    where = f"{flag} ({path!r})"
    file = existing(path, flag, "image") if path else None
    if file is None or file.is_dir():
        raise BadRequest(f"{where} must be an image")
    content = _read(Files(file.parent, [file.name], []), 0, where)
    white = _decoded(content, 1, where)[..., 0] >= _PAINTED
    own = (config.shape[0], config.shape[1])
    if white.shape != own and frozenset([white.shape]) != sizes:
        named = ", ".join(_named(size) for size in sorted(sizes)[:3])
        raise BadRequest(
            f"{where} has {_named(white.shape)} pixels, and the picture {named}; it needs "
            f"the same, or the {_named(own)} of the run"
        )
    is_known = ~fit_mask(white, own, config.resize)
    if is_known.all():
        raise BadRequest(f"{where} is black alone, so that nothing is painted; paint white")
    if not is_known.any():
        raise BadRequest(
            f"{where} leaves nothing known: none of the {_named(own)} pixels of the run is "
            "entirely black; black is kept, and white is painted"
        )
    return is_known


def _named(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"


def _contents(path: str, flag: str, most: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each image file."""
    found = existing(path, flag, _WHAT)
    if not found.is_dir() and not _is_zip(found):
        one = Files(found.parent, [found.name], [])
        yield path, _read(one, 0, f"{flag} ({path!r})")
        return
    files = find_files(path, flag)
    for i in range(min(len(files), most)):
        name = os.path.join(path, files.name(i))
        yield name, _read(files, i, f"{flag} ({name!r})")


def _is_zip(path: pathlib.Path) -> bool:
    with regular.open_regular(path) as file:
        head = file.read(formats.HEAD)
        return formats.image_kind(head) is None and zipfile.is_zipfile(file)


def _read(files: Files, index: int, where: str) -> bytes:
    try:
        return files.read(index)
    except Unreadable as error:
        raise BadRequest(f"{where} cannot be read: {error}") from error


def _decoded(content: bytes, channels: int, where: str) -> np.ndarray:
    try:
        return decode_whole(content, channels)
    except Unreadable as error:
        raise BadRequest(f"{where} cannot be read: {error}") from error
