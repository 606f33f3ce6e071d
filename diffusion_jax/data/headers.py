"""The examples among files, by their headers, and what two sets have in common."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.encoded import Progress
from diffusion_jax.data.example_files import Files
from diffusion_jax.data.unreadable import reason
from diffusion_jax.runtime.hashing import sha256

_HEAD_BYTES = 2**16


class Headers(NamedTuple):
    """The contents of the headers of some files.

    Attributes:
      files: the files.
      indices: those of them that hold examples, each file once; int [n].
      channels: of each of these; int [n].
      identities: for each of these what is the same for one file under two names.
      sizes: of each of these in bytes, unpacked.
      bad: "NAME: REASON" for what holds no example that can be used.
      again: the names that are other names (links) of a file that counts.
    """

    files: Files
    indices: np.ndarray
    channels: np.ndarray
    identities: list[tuple[int, ...]]
    sizes: list[int]
    bad: list[str]
    again: list[str]


def read_headers(files: Files, progress: Progress | None = None) -> Headers:
    """Return the contents of the headers of files; nothing behind them is looked at."""
    good: dict[tuple[int, ...], tuple[int, int, int]] = {}
    bad, again = [], []
    for i in range(len(files)):
        try:
            with files.open(i) as file:
                identity, size = files.identity(i, file)
                if identity in good:
                    again.append(files.name(i))
                else:
                    good[identity] = (i, files.format.num_channels(file, size), size)
        except Exception as error:  # Whatever the disk or the zip does.
            bad.append(f"{files.name(i)}: {reason(error)}")
        if progress and (i % 256 == 255 or i + 1 == len(files)):
            progress("reading headers", i + 1, len(files))
    table = np.array(list(good.values()), np.int64).reshape(-1, 3)
    return Headers(
        files, table[:, 0], table[:, 1], list(good), table[:, 2].tolist(), bad, again
    )


def in_common(mine: Headers, theirs: Headers) -> list[str]:
    """Return "A is B" for the files of two sets that are the same, by whatever name.

    Two names of one file or of one entry of a zip are the same, and so are two files of
    the same bytes. Contents are read only where sizes agree, and to the end only where
    the first 64 KiB do.
    """
    known = {identity: i for i, identity in enumerate(mine.identities)}
    pairs = [
        (known[identity], j)
        for j, identity in enumerate(theirs.identities)
        if identity in known
    ]
    if not pairs:
        pairs = _of_same_content(mine, theirs)
    return [
        f"{theirs.files.name(int(theirs.indices[j]))} is "
        f"{mine.files.name(int(mine.indices[i]))}"
        for i, j in pairs
    ]


def _of_same_content(mine: Headers, theirs: Headers) -> list[tuple[int, int]]:
    a: dict[int, Hashable] = dict(enumerate(mine.sizes))
    b: dict[int, Hashable] = dict(enumerate(theirs.sizes))
    for most in (_HEAD_BYTES, None):
        common = set(a.values()) & set(b.values())
        a = {i: _digest(mine, i, most) for i, key in a.items() if key in common}
        b = {i: _digest(theirs, i, most) for i, key in b.items() if key in common}
    known = {key: i for i, key in a.items()}
    return [(known[key], j) for j, key in b.items() if key in known]


def _digest(headers: Headers, i: int, most: int | None) -> Hashable:
    """Digest of a file's first bytes, or of all; like no other, if it cannot be read."""
    index = int(headers.indices[i])
    try:
        if most is None:
            content = headers.files.read(index)
        else:
            with headers.files.open(index) as file:
                content = file.read(most)
    except Exception:  # Whatever the disk or the zip does: decoding will tell.
        return object()
    return sha256([content])
