"""Image files in a folder or a zip: which ones, of which class, and their bytes."""

import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from diffusion_jax.data.images import SUFFIXES, Unreadable
from diffusion_jax.validation import BadRequest

_MAX_BYTES = 2**29  # A larger file, unpacked, is taken for a bomb.


class Files:
    """Image files in the order of their names.

    Attributes:
      names: path of each file below the folder, with "/".
      class_names: the sub-folders, if all files lie in two or more of them; else ().
      labels: which of them each file lies in, int32; all 0 if there are none.
    """

    def __init__(self, root: pathlib.Path, names: Sequence[str]):
        self.root, self.names = root, sorted(names)
        self.class_names, self.labels = _classes(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """How a message names this image; it can be printed, whatever the bytes are."""
        return self.names[index].encode("utf-8", "backslashreplace").decode()

    def open(self, index: int) -> IO[bytes]:
        """The file, to read its header from."""
        return (self.root / self.names[index]).open("rb")

    def read(self, index: int) -> bytes:
        """The whole file.

        Raises:
          Unreadable: if it is gone, too large, or the zip is damaged there.
        """
        try:
            with self.open(index) as file:
                content = file.read(_MAX_BYTES + 1)
        except Unreadable:
            raise
        except Exception as error:  # Whatever the disk or the zip does.
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        if len(content) > _MAX_BYTES:
            raise Unreadable(f"it has more than {_MAX_BYTES:,} bytes")
        return content


class ZippedFiles(Files):
    """The same inside a zip, which is not unpacked."""

    _archive: zipfile.ZipFile | None = None

    def open(self, index: int) -> IO[bytes]:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.root)
        return self._archive.open(self.names[index])

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which opens the zip itself."""
        return {**self.__dict__, "_archive": None}


def find_files(path: str, field: str = "data.path") -> Files:
    """The image files below a folder, or in a zip.

    Args:
      path: of the folder or zip.
      field: of the config that names it, for messages.

    Raises:
      BadRequest: if there is no such thing, or no image in it.
    """
    root = pathlib.Path(os.path.expanduser(path))
    if not path:
        raise BadRequest(f"{field} is empty; give the folder: --config.{field}=DIR")
    if not (root.is_dir() or root.is_file()):
        raise BadRequest(f"{field} ({path!r}): there is no such folder or zip")
    if root.is_dir():
        kind, names = Files, _names_below(root, field)
    else:
        kind = ZippedFiles
        try:
            with zipfile.ZipFile(root) as archive:
                names = [i.filename for i in archive.infolist() if not i.is_dir()]
        except Exception as error:  # Damaged bytes make zipfile raise nearly any kind.
            hint = (
                "; for an .npz: --config.data.source=npz" if root.suffix == ".npz" else ""
            )
            raise BadRequest(
                f"{field} ({path!r}) is neither a folder nor a zip: {error}{hint}"
            ) from error
    hidden = (".", "__MACOSX")  # What a Mac leaves beside the real files.
    images = [
        name
        for name in names
        if name.lower().endswith(SUFFIXES)
        and not any(part.startswith(hidden) for part in name.split("/"))
    ]
    if not images:
        others = f"; it holds {names[0]}" if names else "; it is empty"
        raise BadRequest(f"{field} ({path!r}) has no images ({' '.join(SUFFIXES)}){others}")
    return kind(root, images)


def _names_below(root: pathlib.Path, field: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise BadRequest(f"{field}: {error.filename} cannot be read: {error.strerror}")

    found, seen = [], {os.path.realpath(root)}
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        found += [pathlib.Path(folder, n).relative_to(root).as_posix() for n in names]
        # Links count as the folders that they lead to, but each folder once.
        fresh = []
        for name in sorted(below):
            place = os.path.realpath(os.path.join(folder, name))
            if place not in seen:
                seen.add(place)
                fresh.append(name)
        below[:] = fresh
    return found


def _classes(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes by the first sub-folder below what all names have in common."""
    parts = [name.split("/") for name in names]
    depth = 0
    while all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts):
        depth += 1
    if all(len(p) > depth + 1 for p in parts):
        folders = [p[depth] for p in parts]
        class_names = tuple(sorted(set(folders)))
        number = {name: i for i, name in enumerate(class_names)}
        return class_names, np.array([number[f] for f in folders], np.int32)
    return (), np.zeros(len(names), np.int32)
