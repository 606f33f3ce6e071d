"""Files of examples in a folder or a zip: which ones, of which class, and their bytes."""

import os
import pathlib
import stat
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from diffusion_jax.data import formats
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.images import ImageFormat
from diffusion_jax.data.report import by_suffix, named
from diffusion_jax.data.unreadable import Unreadable, reason
from diffusion_jax.runtime import files as regular
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import shown

_MAX_BYTES = 2**29  # A larger file, unpacked, is taken for a bomb.
# A file that is larger, and packed more tightly than any image, is taken for a bomb too.
_MAX_PACKED_BYTES, _MAX_RATIO = 2**26, 100
_IMAGES = ImageFormat()


class Files:
    """Files of examples in the order of their names.

    Attributes:
      format: of the files that count.
      names: path of each file below the folder, with "/".
      others: the same of the files that are left out, since they hold no examples.
      class_names: the sub-folders, if all files lie in two or more of them; else ().
      labels: which of them each file lies in, int32; all 0 if there are none.
    """

    def __init__(
        self,
        root: pathlib.Path,
        names: Sequence[str],
        others: Sequence[str],
        format: FileFormat = _IMAGES,
    ):
        self.root, self.names, self.others = root, sorted(names), others
        self.format = format
        self.class_names, self.labels = _classes(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the name of a file for messages; it can be printed, whatever it is."""
        return shown(self.names[index])

    def open(self, index: int) -> IO[bytes]:
        """Open the file.

        Raises:
          Unreadable: if it is too large to be read, or cannot be.
          OSError: if it is gone, or no regular file.
        """
        file = regular.open_regular(self.root / self.names[index])
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            file.close()
            raise _too_large()
        return file

    def identity(self, index: int, file: IO[bytes]) -> tuple[tuple[int, ...], int]:
        """Return a key that a file has under each of its names, and the file's size."""
        return _identity(file)

    def read(self, index: int) -> bytes:
        """Return the whole file.

        Raises:
          Unreadable: if it is gone, too large, or the zip is damaged there.
        """
        try:
            with self.open(index) as file:
                content = file.read(_MAX_BYTES + 1)
        except Exception as error:  # Whatever the disk or the zip does.
            raise Unreadable(reason(error)) from error
        if len(content) > _MAX_BYTES:
            raise _too_large()
        return content


class ZippedFiles(Files):
    """Files of examples inside a zip, which is not unpacked."""

    _archive: zipfile.ZipFile | None = None

    def __init__(
        self,
        root: pathlib.Path,
        entries: Sequence[tuple[str, int, int]],
        others: Sequence[str],
        format: FileFormat = _IMAGES,
    ):
        """Take entries as (name, position in the zip's table, place in the zip)."""
        self._entries = sorted(entries)
        super().__init__(root, [name for name, *_ in entries], others, format)

    def _entry(self, index: int) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
        if self._archive is None:
            self._archive = zipfile.ZipFile(regular.open_regular(self.root))
        infos = self._archive.infolist()
        _, position, offset = self._entries[index]
        if position >= len(infos) or infos[position].header_offset != offset:
            raise Unreadable("the zip has been replaced by another one")
        return self._archive, infos[position]

    def open(self, index: int) -> IO[bytes]:
        """Open an entry; it gives no more bytes than the zip claims, which are bounded."""
        archive, info = self._entry(index)
        if info.flag_bits & 1:
            raise Unreadable("it is encrypted; unpack the zip with its password")
        if info.file_size > _MAX_BYTES:
            raise _too_large()
        if info.file_size > max(_MAX_PACKED_BYTES, _MAX_RATIO * info.compress_size):
            raise Unreadable(
                f"it unpacks to {info.file_size:,} bytes from {info.compress_size:,}, and "
                "is taken for a bomb"
            )
        # Opened by the entry, since a name can be there twice.
        return archive.open(info)

    def identity(self, index: int, file: IO[bytes]) -> tuple[tuple[int, ...], int]:
        """Return the place of the entry in the zip, and its unpacked size."""
        archive, info = self._entry(index)
        assert archive.fp is not None
        whole, _ = _identity(archive.fp)
        return (*whole, info.header_offset), info.file_size

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process gets, which opens the zip itself."""
        return {**self.__dict__, "_archive": None}


def _too_large() -> Unreadable:
    return Unreadable(f"it has more than {_MAX_BYTES:,} bytes")


def _identity(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
    status = os.fstat(file.fileno())
    # Some network file systems use a number of an inode again.
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return key, status.st_size


def existing(path: str, field: str, what: str) -> pathlib.Path:
    """Return the path of a folder or regular file that is there.

    Args:
      path: of it; "~" is the user's home.
      field: of the config that names it, for messages.
      what: "folder or zip", for messages.

    Raises:
      BadRequest: if there is no such thing.
    """
    found = pathlib.Path(os.path.expanduser(path))
    try:
        if not stat.S_ISDIR(os.stat(found).st_mode):
            regular.check_regular(found)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadRequest(f"{field} ({path!r}): there is no such {what}") from error
    except regular.NotRegular as error:
        raise BadRequest(f"{field} ({path!r}) {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise BadRequest(f"{field} ({path!r}) cannot be read: {reason(error)}") from error
    return found


def find_files(path: str, field: str = "data.path", format: FileFormat = _IMAGES) -> Files:
    """Return the files of examples below a folder, or in a zip.

    Args:
      path: of the folder or zip.
      field: of the config that names it, for messages.
      format: of the files that count.

    Raises:
      BadRequest: if there is no such thing, no such file in it, files of other kinds of
        example beside them, or no library that reads them.
    """
    if not path:
        raise BadRequest(f"{field} is empty; give the folder: --config.{field}=DIR")
    root = existing(path, field, "folder or zip")
    entries: list[tuple[str, int, int]] = []
    if root.is_dir():
        names = _names_below(root, field)
    else:
        entries = _entries(root, f"{field} ({path!r})")
        names = [name for name, *_ in entries]
    seen = [name for name in names if not _is_hidden(name)]
    wanted = [name for name in seen if format.has(name)]
    others = [name for name in seen if not format.has(name)]
    if not wanted:
        said = f"it holds {by_suffix(others)}" if others else "it is empty"
        if any(name.endswith(".npy") for name in others):
            said += "; for arrays: --config.data.source=npz"
        kinds = {kind for name in others if (kind := formats.kind_of_name(name))}
        said += "".join(
            f"; for {kind} take a config such as {kind[:-1]}_folder"
            for kind in sorted(kinds & {"sounds", "clips"})
        )
        known = " ".join(format.suffixes)
        raise BadRequest(f"{field} ({path!r}) has no {format.name} ({known}); {said}")
    _check_one_kind(others, format, f"{field} ({path!r})")
    format.check_installed(wanted)
    if root.is_dir():
        return Files(root, wanted, others, format)
    chosen = [e for e in entries if not _is_hidden(e[0]) and format.has(e[0])]
    return ZippedFiles(root, chosen, others, format)


def _check_one_kind(others: Sequence[str], format: FileFormat, where: str) -> None:
    """Refuse files of examples of other kinds beside those that count."""
    mixed = [name for name in others if formats.kind_of_name(name)]
    if mixed:
        kinds = sorted({formats.kind_of_name(name) or "" for name in mixed})
        raise BadRequest(
            f"{where} mixes {format.name} with {' and '.join(kinds)}: {named(mixed)}; move "
            "one kind to a folder of its own"
        )


def _is_hidden(name: str) -> bool:
    hidden = (".", "__MACOSX")  # Files that a Mac leaves beside the real ones.
    return any(part.startswith(hidden) for part in name.split("/"))


def _entries(root: pathlib.Path, where: str) -> list[tuple[str, int, int]]:
    """Name, position and place of the files in a zip.

    No file is ever written under such a name; "/" at its beginning and ".." mean nothing.
    """
    head = b""
    try:
        with regular.open_regular(root) as file:
            head = file.read(formats.HEAD)
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
    except Exception as error:  # Damaged bytes make zipfile raise nearly any kind.
        raise BadRequest(f"{where} {_what_else(head, error)}") from error
    # Some programs of Windows separate folders by a backslash.
    windows = not any("/" in info.filename for info in infos)
    entries = []
    for position, info in enumerate(infos):
        name = info.filename.replace("\\", "/") if windows else info.filename
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        if parts and not name.endswith("/"):
            entries.append(("/".join(parts), position, info.header_offset))
    return entries


def _what_else(head: bytes, error: Exception) -> str:
    other = formats.other_kind(head)
    if head.startswith(b"PK\x03\x04"):
        return f"is a damaged zip: {reason(error)}"
    if other:
        return f"is {other.name}, neither a folder nor a zip; {other.remedy}"
    if formats.image_kind(head):
        return "is one image, neither a folder nor a zip; give the folder it lies in"
    return f"is neither a folder nor a zip: {reason(error)}"


def _names_below(root: pathlib.Path, field: str) -> list[str]:
    def refuse(error: OSError) -> None:
        place = shown(os.fsdecode(error.filename))
        raise BadRequest(f"{field}: {place} cannot be read: {error.strerror}")

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
