"""Arrays in an .npz of the field's form: arr_0 the examples, arr_1 their labels."""

import math
import os
import pathlib
import zipfile
from typing import IO

import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import formats
from diffusion_jax.data.files import existing
from diffusion_jax.data.images import fit
from diffusion_jax.data.unreadable import reason
from diffusion_jax.runtime import files as regular
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import shown

_ARRAY = ".npy"
_PIECE = 2**24  # Bytes that are read at a time.
# An array of more bytes must not be packed more tightly than any real examples.
_MAX_BYTES, _MAX_RATIO = 2**28, 100


class _Refused(ValueError):
    """An array cannot be used; str() is the reason."""


def read_npz(
    path: str, field: str, config: DataConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the examples and labels of a file; `sample.py` writes files of this form.

    Args:
      path: of the .npz; or of a .npy, which has examples alone.
      field: of the config that names it, for messages.
      config: decides whether images or points are wanted, and the shape of images.

    Returns:
      uint8 [N, H, W, C] or float32 [N, D]; and int32 [N], or None if it has no arr_1.

    Raises:
      BadRequest: if there is no such file, or it holds something else.
    """
    where = f"{field} ({path!r})"
    if not path:
        raise BadRequest(f"{field} is empty; give the file: --config.{field}=FILE.npz")
    file = existing(path, field, "file")
    if file.is_dir():
        raise BadRequest(f"{where} is a folder; of images: --config.data.source=folder")
    try:
        examples, labels = _arrays(file, config.memory_gib * 2**30)
    except _Refused as error:
        raise BadRequest(f"{where} {error}") from error
    except Exception as error:  # Whatever damaged or hostile bytes lead to.
        raise BadRequest(f"{where} cannot be read: {reason(error)}") from error
    _check_examples(examples, where, config)
    if labels is not None:
        labels = _checked_labels(labels, where, len(examples))
    if examples.ndim == 4:
        examples = _fitted(examples, where, config)
    return examples, labels


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
        raise _Refused("is encrypted; unpack the zip by its password")
    with archive.open(info) as member:
        return _read_array(member, name, info.file_size, info.compress_size, most)


def _read_array(
    file: IO[bytes], name: str, num_bytes: int, packed: int, most: float
) -> np.ndarray:
    """An array as `np.save` writes it, of no more bytes than are there.

    Args:
      file: of `num_bytes`, for which `packed` lie on the disk.
      most: bytes that any array may have; a larger one must not be packed too tightly.
    """
    if num_bytes > max(_MAX_BYTES, most, _MAX_RATIO * packed):
        raise _Refused(
            f"has {num_bytes:,} bytes packed into {packed:,}, and is taken for a bomb; if "
            "that is meant, data.memory_gib allows it"
        )
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise _Refused(f"has {name} in a form that is not read: version {version}")
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


def _check_examples(examples: np.ndarray, where: str, config: DataConfig) -> None:
    kind, ndim = (np.uint8, 4) if config.image_size else (np.float32, 2)
    shape = examples.shape
    remedy = _remedy(examples, ndim)
    if ndim == len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        if shape[3] != config.channels:
            raise BadRequest(
                f"{where}: arr_0 is {examples.dtype} {list(shape)}, which looks like "
                "[N, C, H, W], but must be uint8 [N, H, W, C]: save arr_0.transpose(0, 2, "
                f"3, 1){remedy}"
            )
    if (examples.dtype, examples.ndim) == (kind, ndim) and examples.size:
        return
    wanted = "images, uint8 [N, H, W, C]" if ndim == 4 else "points, float32 [N, D]"
    raise BadRequest(
        f"{where}: arr_0 is {examples.dtype} {list(shape)}, but must be {wanted}, and not "
        f"empty{remedy}"
    )


def _remedy(examples: np.ndarray, ndim: int) -> str:
    kind, name = examples.dtype.kind, examples.dtype.name
    if not examples.size:
        return ""
    if examples.ndim == 3 and ndim == 4 and examples.shape[-1] not in (1, 3):
        return "; if it holds grey images [N, H, W], save arr_0[..., None]"
    if examples.ndim == 4 and ndim == 2:
        return "; for images set data.image_size"
    if examples.ndim != ndim:
        return ""
    if ndim == 2:
        return f"; {name} becomes it by arr_0.astype(np.float32)" if kind in "fiu" else ""
    if kind == "f" and np.isfinite(examples).all():
        low, high = float(examples.min()), float(examples.max())
        if 0 <= low and high <= 1:
            return "; values from 0 to 1 become it by np.rint(arr_0 * 255).astype(np.uint8)"
        if -1 <= low and high <= 1:
            return (
                "; values from -1 to 1 become it by "
                "np.rint((arr_0 + 1) * 127.5).astype(np.uint8)"
            )
        return "; scale it to 0 to 255, and save np.rint(arr_0).astype(np.uint8)"
    if kind == "b":
        return "; save arr_0.astype(np.uint8) * 255"
    if name == "uint8":
        return ""
    if kind in "iu" and examples.min() >= 0 and examples.max() <= 255:
        return "; its values fit: save arr_0.astype(np.uint8)"
    if name == "uint16":
        return "; save np.rint(arr_0 / 257).astype(np.uint8)"
    return ""


def _checked_labels(labels: np.ndarray, where: str, count: int) -> np.ndarray:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise BadRequest(
            f"{where}: arr_1 is {labels.dtype} {list(labels.shape)}, but must hold "
            f"one whole number for each of the {count} examples"
        )
    low, high = int(labels.min()), int(labels.max())
    limits = np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise BadRequest(
            f"{where}: arr_1 has labels from {low} to {high}, but they must fit into "
            "int32; number the classes from 0 on"
        )
    return labels.astype(np.int32)


def _fitted(images: np.ndarray, where: str, config: DataConfig) -> np.ndarray:
    channels = images.shape[-1]
    if channels not in (1, 3) and channels != config.channels:
        raise BadRequest(f"{where}: arr_0 has {channels} channels, not 1 or 3")
    height, width = (*config.image_size, *config.image_size)[:2]
    shape = (height, width, config.channels or channels)
    if images.shape[1:] == shape:
        return images
    if channels not in (1, 3) or shape[-1] not in (1, 3):
        raise BadRequest(
            f"{where}: arr_0 has {list(images.shape[1:])}, the config {list(shape)}"
        )
    flat = images[..., 0] if channels == 1 else images
    return np.stack([fit(Image.fromarray(x), shape, config.resize) for x in flat])
