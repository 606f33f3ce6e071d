"""Tensors from files that `torch.save` has written, without torch and without running code.

Such a file is a pickle, and a pickle is a program: it may call any function that it names.
The unpickler here knows the few names that a tree of dicts, lists, numbers, texts and
tensors needs, and refuses every other. The tensors' elements lie beside the pickle: as
members of a zip (torch 1.6 and later), or one after the other behind it (before 1.6).
"""

import collections
import io
import math
import os
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason, shown

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # Of the form before 1.6.
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_DTYPES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64"}
_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2")

# (key, dtype, number of elements) -> the elements, or None while they are not known yet.
FindStorage = Callable[[str, str, int], np.ndarray | None]


class _Refused(ValueError):
    """A file that is not read; str() is the reason."""


def read(path: pathlib.Path) -> Any:
    """Return what `torch.save` has written to a file, its tensors as arrays.

    Args:
      path: of the file, in either form.

    Returns:
      The object: dicts, lists, tuples, numbers, texts, and for each tensor or parameter a
      read-only array of its dtype; bfloat16 becomes float32, of the same values. Arrays
      share memory where tensors did.

    Raises:
      BadRequest: for a file that is not there, holds other objects or code, is damaged, or
        is not of torch.
    """
    try:
        with files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _read_zip(file, size) if is_zip else _read_in_a_row(file.read())
    except _Refused as error:
        raise BadRequest(f"{shown(path)} {shown(error)}") from error
    except OSError as error:
        raise BadRequest(
            f"{shown(path)} cannot be read: {shown(error.strerror or reason(error))}"
        ) from error
    except Exception as error:  # Whatever damaged or hostile bytes lead to.
        raise BadRequest(
            f"{shown(path)} is damaged, or not a file of torch.save: {shown(reason(error))}"
        ) from error


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file that holds one dict of tensors, a state dict, by name.

    Raises:
      BadRequest: as `read`, and for a file that holds anything else.
    """
    found = read(path)
    if not isinstance(found, dict):
        raise BadRequest(
            f"{shown(path)} holds no dict of tensors, but a {type(found).__name__}; save a "
            "network's state_dict()"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise BadRequest(
                f"{shown(path)} is no dict of tensors by name: {shown(repr(name))} is a "
                f"{type(value).__name__}; save a network's state_dict()"
            )
    return dict(found)


def _load(file: io.BytesIO, find_storage: FindStorage) -> Any:
    """Return the object of the next pickle, after a look at its opcodes.

    The unpickler allocates what a few bytes claim: a bytearray of some length, or a memo
    with a place of some number. `genops` refuses lengths beyond the end, and this function
    places that are not numbered in their order.
    """
    start = file.tell()
    for opcode, place, position in pickletools.genops(file):
        if opcode.name.endswith("PUT") and int(place or 0) > (position or 0):
            raise _Refused(f"is damaged: its pickle numbers an object {place}")
    file.seek(start)
    return _Unpickler(file, find_storage).load()


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, numbers, texts and arrays; nothing else is made or called."""

    def __init__(self, file: IO[bytes], find_storage: FindStorage):
        super().__init__(file, encoding="utf-8")
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch._utils" and name in _TENSORS:
            return _MakeTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _MakeParameter()
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and _is_dtype(name):
            return _DTYPES.get(name, name)
        raise _Refused(
            f"holds {module}.{name}, which is code or an object of a program, and is not "
            "read; save tensors alone, such as a network's state_dict()"
        )

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise _Refused("is damaged: it refers to something that is no storage")
        _, dtype, key, _, count = pid[:5]
        if any(part is not None for part in pid[5:]):
            raise _Refused(
                "has storages that are views of others, which torch has not written since "
                "0.4; load it there and save it again"
            )
        if (
            dtype not in _STORAGES.values()
            or not isinstance(key, str)
            or not _is_count(count)
        ):
            raise _Refused("is damaged: a storage has no dtype, name or size")
        return self._find_storage(key, dtype, count)


def _is_dtype(name: str) -> bool:
    return name in _STORAGES.values() or name in _DTYPES


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


class _MakeTensor:
    """Makes a view of a storage; all that it reads lies within.

    It has no attributes, so that no pickle can change it.
    """

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
        if storage is None:  # The first pass through the form before 1.6.
            return None
        if not (isinstance(storage, np.ndarray) and storage.ndim == 1):
            raise _Refused("is damaged: a tensor has no storage")
        if not (isinstance(size, tuple) and isinstance(stride, tuple)):
            raise _Refused("is damaged: a tensor has no size or stride")
        if len(size) != len(stride) or not all(map(_is_count, (offset, *size, *stride))):
            raise _Refused(f"is damaged: a tensor of size {size} has the stride {stride}")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        count = math.prod(size)
        if count > storage.size or (count and last >= storage.size):
            raise _Refused(
                f"is damaged: a tensor of size {size} does not fit into its storage of "
                f"{storage.size} elements"
            )
        if not count:
            return np.empty(size, storage.dtype)
        width = storage.itemsize
        return np.lib.stride_tricks.as_strided(
            storage[offset:], size, [s * width for s in stride], writeable=False
        )


class _MakeParameter:
    """Gives the tensor of a parameter; it has no attributes either."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


def _no_storage(key: str, dtype: str, count: int) -> None:
    raise _Refused("is damaged: it has a storage where none can be")


def _elements(content: bytes, dtype: str) -> np.ndarray:
    """Bytes, little endian, as elements."""
    if dtype != _BFLOAT16:
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<"))
    # The upper half of a float32 of the same value.
    upper = np.frombuffer(content, "<u2").astype(np.uint32)
    return (upper << 16).view(np.float32)


def _width(dtype: str) -> int:
    return 2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize


def _read_zip(file: IO[bytes], size: int) -> Any:
    """Read the form since 1.6: NAME/data.pkl, and NAME/data/KEY for each storage."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise _Refused("is a zip, but not one of torch.save: it has no data.pkl")
        if any(m.compress_type or m.file_size > size for m in members.values()):
            raise _Refused("has compressed parts, which torch.save does not write")
        folder = pickles[0].removesuffix("data.pkl")
        if members.get(f"{folder}byteorder"):
            _check_order(archive.read(f"{folder}byteorder") == b"little")
        left = size  # Parts that overlap would be more than the file.
        storages: dict[str, np.ndarray] = {}

        def find(key: str, dtype: str, count: int) -> np.ndarray:
            nonlocal left
            if key not in storages:
                info = members.get(f"{folder}data/{key}")
                num_bytes = count * _width(dtype)
                if info is None or info.file_size != num_bytes or num_bytes > left:
                    raise _Refused(
                        f"is damaged: storage {key} has {info.file_size if info else 0:,} "
                        f"bytes and not {num_bytes:,}"
                    )
                left -= num_bytes
                storages[key] = _elements(archive.read(info), dtype)
            return storages[key]

        return _load(io.BytesIO(archive.read(pickles[0])), find)


def _read_in_a_row(content: bytes) -> Any:
    """Read the form before 1.6: five pickles, then each storage behind its length.

    The pickle of the object comes before the storages, so it is read twice.
    """
    if not content.startswith(b"\x80"):
        raise _Refused("is not a file of torch.save")
    file = io.BytesIO(content)
    if _load(file, _no_storage) != _MAGIC:
        raise _Refused("is a pickle, but not one of torch.save")
    if _load(file, _no_storage) != _PROTOCOL:
        raise _Refused("is of a form of torch.save that is not known")
    _check_order(_load(file, _no_storage)["little_endian"])
    kinds: dict[str, tuple[str, int]] = {}
    start = file.tell()
    _load(file, lambda key, *kind: kinds.__setitem__(key, kind))
    keys = _load(file, _no_storage)
    storages = {}
    for key in keys:
        dtype, count = kinds[key]
        head = file.read(8)
        num_bytes = count * _width(dtype)
        if (
            int.from_bytes(head, "little") != count
            or num_bytes > len(content) - file.tell()
        ):
            raise _Refused(
                f"is damaged: it ends within storage {key}, or has another length"
            )
        storages[key] = _elements(file.read(num_bytes), dtype)
    if file.read(1):
        raise _Refused("is damaged: it goes on behind its last storage")
    file.seek(start)
    return _load(file, lambda key, *_: storages[key])


def _check_order(is_little: bool) -> None:
    if not is_little:
        raise _Refused("was written by a big-endian machine; save it again on another")
