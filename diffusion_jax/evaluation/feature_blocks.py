"""Features of many examples, read in blocks, so that a mapped file is never whole."""

from collections.abc import Iterator

import numpy as np

BLOCK = 1024  # Examples of a block.


def blocks_of(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the rows of each block and its features.

    Args:
      x: [N, D] of any real type, which may be a memory-mapped file.

    Yields:
      slice of at most `BLOCK` rows, in order, and float64 [B, D].

    Raises:
      ValueError: for NaN and infinite numbers.
    """
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        block = np.asarray(x[rows], np.float64)
        if not np.isfinite(block).all():
            raise ValueError("the features hold NaN or infinite numbers")
        yield rows, block
