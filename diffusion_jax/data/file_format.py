"""A format of files with one example each: suffixes, headers and contents."""

import abc
from collections.abc import Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np


class FileFormat(abc.ABC):
    """Files that hold one example each, of one kind.

    An object also holds the options of reading that a config sets; it is a small value
    that processes can send to each other.

    Attributes:
      name, one: an example in messages, in the plural and in the singular: "images",
        "image".
      suffixes: of the files, in lower case.
      dtype: of an example.
      channels: numbers of channels that an example can have, the smaller one first, with
        the word for an example of that many.
      widened: the word for what has the larger number of channels: "coloured".
    """

    name: ClassVar[str]
    one: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    dtype: ClassVar[Any]
    channels: ClassVar[Mapping[int, str]]
    widened: ClassVar[str]

    def has(self, name: str) -> bool:
        """Return whether a file counts as one of these, by its suffix."""
        return name.lower().endswith(self.suffixes)

    def check_installed(self, names: Sequence[str]) -> None:
        """Raise BadRequest if a library that is needed for these files is missing."""
        del names

    @abc.abstractmethod
    def num_channels(self, file: IO[bytes], size: int | None = None) -> int:
        """Return the number of channels of an example; only the header is read.

        Args:
          file: that can be sought in.
          size: of it, if that is known.

        Raises:
          Unreadable: if the header is not that of such a file, or tells of an example that
            cannot be used.
        """

    @abc.abstractmethod
    def decode(self, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """Return the example in a file of this content, in this shape.

        Raises:
          Unreadable: if there is none.
        """
