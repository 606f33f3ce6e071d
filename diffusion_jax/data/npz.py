"""Arrays in an .npz of the field's form: arr_0 the examples, arr_1 their labels."""

import math
import os
import pathlib
import zipfile
from typing import IO

import numpy as np

from diffusion_jax.config import DataConfig
from diffusion_jax.data import formats
from diffusion_jax.data.example_files import existing
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.unreadable import reason
from diffusion_jax.runtime import files as regular
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import shown

_ARRAY = ".npy"
_PIECE = 2**24  # Bytes that are read at a time.
# An array of more bytes must not be packed more tightly than any real examples.
_MAX_BYTES, _MAX_RATIO = 2**28, 100


class _Refused(ValueError):
    """An array that cannot be used; str() is the reason."""


def read_npz(
    path: str, field: str, config: DataConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the examples and labels of a file; `sample.py` writes files of this form.

    Args:
      path: of the .npz; or of a .npy, which has examples alone.
      field: of the config that names it, for messages.
      config: decides the kind of the examples, and their shape.

    Returns:
      The examples, in the form of their kind; and int32 [N], or None if it has no arr_1.

    Raises:
      BadRequest: if there is no such file, or it holds something else.
    """
    if not path:
        raise BadRequest(f"{field} is empty; give the file: --config.{field}=FILE.npz")
    examples, labels = read_arrays(path, field, config)
    where = f"{field} ({path!r})"
    examples = kind_of(config).from_file(examples, where, config)
    if labels is not None:
        labels = _checked_labels(labels, where, len(examples))
    return examples, labels


def read_arrays(
    path: str, field: str, config: DataConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return arr_0 and arr_1 of a file as they are; see `read_npz`.

    Raises:
      BadRequest: if there is no such file, or it holds no arrays.
    """
    where = f"{field} ({path!r})"
    file = existing(path, field, "file")
    if file.is_dir():
        raise BadRequest(f"{where} is a folder; for images: --config.data.source=folder")
    try:
        return _arrays(file, config.memory_gib * 2**30)
    except _Refused as error:
        raise BadRequest(f"{where} {error}") from error
    except Exception as error:  # Whatever damaged or hostile bytes lead to.
        raise BadRequest(f"{where} cannot be read: {reason(error)}") from error


def _arrays(path: pathlib.Path, most: float) -> tuple[np.ndarray, np.ndarray | None]:
    with regular.open_regular(path) as file:
        head = file.read(formats.HEAD)
        file.seek(0)
        if head.startswith(b"\x93NUMPY"):
            status = os.fstat(file.fileno())
            on_disk = status.st_blocks * 512
            return _read_array(file, "it", status.st_size, on_disk, most), None
        if not zipfile.is_zipfile(file):
            raise _Refused(_what_else(head))
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            for name in ("arr_0", "arr_1"):
                if name in names:
                    raise _Refused(
                        "has no arrays: arr_0 and arr_1 must be arrays, as np.savez "
                        "writes them"
                    )
            if "arr_0.npy" not in names:
                raise _Refused(_without_examples(names))
            read = [
                _read_member(archive, name, most) if name + _ARRAY in names else None
                for name in ("arr_0", "arr_1")
            ]
    assert read[0] is not None
    return read[0], read[1]


def _what_else(head: bytes) -> str:
    other = formats.other_kind(head)
    if not head:
        return "is empty"
    if head.startswith(b"PK\x03\x04"):
        return "is not an .npz: it is a zip whose end is missing"
    if other:
        return f"is not an .npz: it is {other.name}; {other.remedy}"
    if formats.image_kind(head):
        return (
            "is one image, not an .npz; for a folder of them: --config.data.source=folder"
        )
    return "is not an .npz; write it with np.savez"


def _without_examples(names: list[str]) -> str:
    if any(name.lower().endswith(formats.SUFFIXES) for name in names):
        return "is a zip of images; train on them with --config.data.source=folder"
    arrays = ", ".join(name.removesuffix(_ARRAY) for name in names[:5])
    return f"has no arr_0; it has {shown(arrays) or 'nothing'}"


def _read_member(archive: zipfile.ZipFile, name: str, most: float) -> np.ndarray:
    info = archive.getinfo(name + _ARRAY)
    if info.flag_bits & 1:
        raise _Refused("is encrypted; unpack the zip with its password")
    with archive.open(info) as member:
        return _read_array(member, name, info.file_size, info.compress_size, most)


def _read_array(
    file: IO[bytes], name: str, num_bytes: int, packed: int, most: float
) -> np.ndarray:
    """Read an array as `np.save` writes it, of no more bytes than are there.

    Args:
      file: of `num_bytes`, for which `packed` lie on the disk.
      most: bytes that any array may have; a larger one must not be packed too tightly.
    """
    if num_bytes > max(_MAX_BYTES, most, _MAX_RATIO * packed):
        raise _Refused(
            f"has {num_bytes:,} bytes packed into {packed:,}, and is taken for a bomb; if "
            "it is not one, raise data.memory_gib"
        )
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise _Refused(f"has {name} in version {version} of .npy, which is not supported")
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise _Refused(
            f"has objects in {name}, which can run programs and are not read "
            "(allow_pickle=False); save numbers"
        )
    size = math.prod(shape) * dtype.itemsize
    there = num_bytes - file.tell()
    if size != there or min(shape, default=0) < 0:
        raise _Refused(f"is damaged: {name} claims {size:,} bytes and has {there:,}")
    content = np.empty(size, np.uint8)
    for begin in range(0, size, _PIECE):
        piece = file.read(min(_PIECE, size - begin))
        content[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
        if len(piece) < min(_PIECE, size - begin):
            raise _Refused(f"is damaged: {name} is truncated")
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def _checked_labels(labels: np.ndarray, where: str, count: int) -> np.ndarray:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        first = f" (the first is {labels.flat[0]})" if labels.size else ""
        raise BadRequest(
            f"{where}: arr_1 is {labels.dtype} {list(labels.shape)}{shown(first)}, but "
            f"must hold one whole number for each of the {count} examples"
        )
    low, high = int(labels.min()), int(labels.max())
    limits = np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise BadRequest(
            f"{where}: arr_1 has labels from {low} to {high}, but they must fit into "
            "int32; number the classes from 0 on"
        )
    return labels.astype(np.int32)
