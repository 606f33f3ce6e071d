"""Encoded examples, one per file: decoded when asked for, or once and for all."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.unreadable import Unreadable

Progress = Callable[[str, int, int], None]  # (what, done, of how many)
_CHUNK = 256


class Encoded(Protocol):
    """Examples as the bytes of their files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


class Form(NamedTuple):
    """The form that an example is brought into.

    Attributes:
      format: of the files.
      shape: of an example.
      skip: an example that cannot be read is replaced by the next one that can, instead of
        being an error.
    """

    format: FileFormat
    shape: tuple[int, ...]
    skip: bool = False


class EncodedExamples:
    """A source of examples that decodes at each access; [n, *form.shape].

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
        """Bytes of all examples, decoded."""
        itemsize = np.dtype(self.form.format.dtype).itemsize
        return len(self) * int(np.prod(self.form.shape)) * itemsize

    def __getitem__(self, wanted: np.ndarray, /) -> np.ndarray:
        """Return the examples.

        Raises:
          Unreadable: naming a file, unless `form.skip`; with it if no file can be read.
        """
        return self.read(wanted)[0]

    def read(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return examples and their indices; with `form.skip` others may replace some.

        Raises:
          Unreadable: naming the file.
        """
        examples, indices = zip(*(self._next_readable(int(i)) for i in wanted), strict=True)
        return np.stack(examples), np.array(indices)

    def decode(self, index: int) -> np.ndarray:
        """Return example `index`, decoded; [*form.shape].

        Raises:
          Unreadable: naming the file.
        """
        where = int(self.indices[index])
        try:
            content = self.encoded.read(where)
            return self.form.format.decode(content, self.form.shape)
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
    source: EncodedExamples, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode all examples at once, with one thread per core.

    Returns:
      [N, *form.shape] and int [N], the same as `source.read(np.arange(N))` would give, and
      what could not be read ("NAME: REASON"): then with `form.skip` unset the values are
      void.
    """
    form = source.form
    examples = np.empty((len(source), *form.shape), form.format.dtype)
    bad: dict[int, str] = {}

    def one(i: int) -> None:
        try:
            examples[i] = source.decode(i)
        except Unreadable as error:
            bad[i] = str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for begin in range(0, len(source), _CHUNK):
            end = min(begin + _CHUNK, len(source))
            list(threads.map(one, range(begin, end)))
            if progress:
                progress(f"decoding {form.format.name}", end, len(source))
    which = np.arange(len(source))
    if len(bad) < len(source):
        for i in bad:
            while which[i] in bad:
                which[i] = (which[i] + 1) % len(source)
            examples[i] = examples[which[i]]
    return examples, which, [bad[i] for i in sorted(bad)]
