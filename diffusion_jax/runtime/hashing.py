"""SHA-256 of texts, bytes and arrays, one after the other."""

import hashlib
from collections.abc import Iterable

import numpy as np


def sha256(parts: Iterable[str | bytes | np.ndarray]) -> str:
    """Return the digest of all parts in their order, in 64 hexadecimal digits.

    Args:
      parts: texts as UTF-8, and arrays as their elements in C order, without their shape.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
