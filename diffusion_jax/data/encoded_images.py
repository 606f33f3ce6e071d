"""Encoded images as a source of examples: decoded when asked for, or once and for all."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from diffusion_jax.data.images import Unreadable, decode

Progress = Callable[[str, int, int], None]  # (what, done, of how many)
_CHUNK = 256


class Encoded(Protocol):
    """Images as the bytes of their files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


class Form(NamedTuple):
    """The form that an image is brought into.

    Attributes:
      shape: (H, W, C).
      resize: "crop" or "squash".
      skip: an image that cannot be read is replaced by the next one that can, instead of
        being an error.
    """

    shape: tuple[int, int, int]
    resize: str = "crop"
    skip: bool = False


class Pictures:
    """A source of examples that decodes at each access; uint8 [n, H, W, C].

    Attributes:
      encoded: the files.
      indices: which of them, in this order.
      form: what they become.
    """

    def __init__(self, encoded: Encoded, indices: np.ndarray, form: Form):
        self.encoded, self.indices, self.form = encoded, np.asarray(indices), form

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pixels, decoded."""
        return len(self) * int(np.prod(self.form.shape))

    def __getitem__(self, wanted: np.ndarray, /) -> np.ndarray:
        """Return the examples.

        Raises:
          Unreadable: naming an image, unless `form.skip`; with it if no image can be read.
        """
        return self.read(wanted)[0]

    def read(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return examples and their indices; with `form.skip` others may replace some.

        Raises:
          Unreadable: naming the image.
        """
        images, indices = zip(*(self._next_readable(int(i)) for i in wanted), strict=True)
        return np.stack(images), np.array(indices)

    def decode(self, index: int) -> np.ndarray:
        """Return example `index`, decoded; uint8 [H, W, C].

        Raises:
          Unreadable: naming the image.
        """
        where = int(self.indices[index])
        try:
            content = self.encoded.read(where)
            return decode(content, self.form.shape, self.form.resize)
        except Unreadable as error:
            raise Unreadable(f"{self.encoded.name(where)}: {error}") from error

    def _next_readable(self, index: int) -> tuple[np.ndarray, int]:
        for i in range(index, index + len(self)):
            try:
                return self.decode(i % len(self)), i % len(self)
            except Unreadable:
                if not self.form.skip or i + 1 == index + len(self):
                    raise
        raise AssertionError("a source is not empty")


def decode_all(
    pictures: Pictures, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode all examples at once, with one thread per core.

    Returns:
      uint8 [N, H, W, C] and int [N], the same as `pictures.read(np.arange(N))` would give,
      and what could not be read ("NAME: REASON"): then with `form.skip` unset the pixels
      are void.
    """
    pixels = np.empty((len(pictures), *pictures.form.shape), np.uint8)
    bad: dict[int, str] = {}

    def one(i: int) -> None:
        try:
            pixels[i] = pictures.decode(i)
        except Unreadable as error:
            bad[i] = str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for begin in range(0, len(pictures), _CHUNK):
            end = min(begin + _CHUNK, len(pictures))
            list(threads.map(one, range(begin, end)))
            if progress:
                progress("decoding images", end, len(pictures))
    which = np.arange(len(pictures))
    if len(bad) < len(pictures):
        for i in bad:
            while which[i] in bad:
                which[i] = (which[i] + 1) % len(pictures)
            pixels[i] = pixels[which[i]]
    return pixels, which, [bad[i] for i in sorted(bad)]
