"""Sets of examples that a flag names, as they are: nothing is resized."""

from typing import NamedTuple

import numpy as np

from diffusion_jax.config import DataConfig
from diffusion_jax.data.example_files import Files, existing, find_files
from diffusion_jax.data.headers import read_headers
from diffusion_jax.data.images import decode_whole, size_of
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.kinds import KINDS, PICTURES
from diffusion_jax.data.npz import read_arrays
from diffusion_jax.data.sources import Source
from diffusion_jax.data.unreadable import Unreadable
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.hashing import sha256

_WHAT = "folder or zip of images, or .npz"


class OwnExamples(NamedTuple):
    """A set of examples of the user's.

    Attributes:
      kind: of the examples.
      source: of the examples.
      shape: of one.
      identity: SHA-256 of all of them.
    """

    kind: Kind
    source: Source
    shape: tuple[int, ...]
    identity: str


class _Images:
    """Images of one size, decoded at each access; uint8 [n, H, W, C]."""

    def __init__(self, files: Files, indices: np.ndarray, shape: tuple[int, int, int]):
        self._files, self._indices, self._shape = files, indices, shape

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, wanted: np.ndarray, /) -> np.ndarray:
        return np.stack([self._decoded(int(self._indices[i])) for i in wanted])

    def _decoded(self, index: int) -> np.ndarray:
        name = self._files.name(index)
        try:
            pixels = decode_whole(self._files.read(index), self._shape[2])
        except Unreadable as error:
            raise BadRequest(f"{name} cannot be read: {error}") from error
        if pixels.shape != self._shape:
            raise BadRequest(_other_size(name, pixels.shape, self._shape))
        return pixels


def read_examples(path: str, flag: str) -> OwnExamples:
    """Return the examples of an .npz (arr_0), or the images of a folder or zip.

    Args:
      path: of the file or folder.
      flag: that named it, for messages.

    Raises:
      BadRequest: if there is no such thing, it holds something else or nothing, an image
        cannot be read, or images have different sizes.
    """
    where = f"{flag} ({path!r})"
    if not path:
        raise BadRequest(f"{flag} is empty; give a {_WHAT}")
    found = existing(path, flag, _WHAT)
    if found.suffix in (".npz", ".npy") and not found.is_dir():
        return _of_array(read_arrays(path, flag, DataConfig())[0], where)
    return _of_images(find_files(path, flag), where)


def _of_array(array: np.ndarray, where: str) -> OwnExamples:
    kind = next((kind for kind in KINDS if kind.fits(array)), None)
    if kind is None:
        meant = next((kind for kind in KINDS if kind.ndim == array.ndim), PICTURES)
        meant.check_form(array, where)
        raise AssertionError("the form was refused")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"{where} has values that are not finite")
    identity = sha256([f"{array.dtype} {array.shape}", array])
    return OwnExamples(kind, array, array.shape[1:], identity)


def _of_images(files: Files, where: str) -> OwnExamples:
    headers = read_headers(files)
    if headers.bad:
        raise BadRequest(f"{where}: an image cannot be read: {headers.bad[0]}")
    channels = int(headers.channels.max())
    digests, shape = [], None
    for index in headers.indices:
        name = files.name(int(index))
        try:
            content = files.read(int(index))
            size = size_of(content)
            shape = shape or decode_whole(content, channels).shape
        except Unreadable as error:
            raise BadRequest(f"{name} cannot be read: {error}") from error
        if sorted(size) != sorted(shape[:2]):  # EXIF may turn it.
            raise BadRequest(_other_size(name, size, shape))
        digests.append(sha256([content]))
    assert shape is not None
    source = _Images(files, headers.indices, (shape[0], shape[1], channels))
    return OwnExamples(PICTURES, source, (*shape[:2], channels), sha256(digests))


def _other_size(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> str:
    return (
        f"{name} has {one[1]} x {one[0]} pixels, and others of the set {other[1]} x "
        f"{other[0]}; a set has images of one size, and none is resized here"
    )
