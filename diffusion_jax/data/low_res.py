"""Images of low resolution, by one filter for every stage of a cascade."""

import numpy as np


def reduced(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return images of fewer pixels: the mean of each block, rounded (half up).

    Args:
      images: uint8 [..., H, W, C].
      size: (h, w), which divide H and W.

    Returns:
      uint8 [..., h, w, C].
    """
    *lead, height, width, channels = images.shape
    rows, columns = height // size[0], width // size[1]
    blocks = images.reshape(*lead, size[0], rows, size[1], columns, channels)
    count = rows * columns
    total = blocks.sum(axis=(-4, -2), dtype=np.uint32)
    return ((2 * total + count) // (2 * count)).astype(np.uint8)
