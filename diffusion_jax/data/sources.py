"""Where examples come from.

A source of examples is anything that has a length and, indexed with an array of n
integers, gives n examples: [n, *shape], uint8 for images, float32 for points. A NumPy
array is one as it stands; a source that reads files is a small class.

scikit-learn is imported where it is used: it takes a second, which other sources and
the library's users need not wait for.
"""

from typing import NamedTuple, Protocol

import numpy as np

SOURCES = ("digits", "swiss_roll", "two_moons", "eight_gaussians")
_NUM_HELD_OUT_DIGITS = 200
_NUM_POINTS = 20_000
_NUM_HELD_OUT_POINTS = 2_000


class Source(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


class DataSet(NamedTuple):
    """Two splits of examples.

    Attributes:
      train: what the network learns from.
      held_out: never trained on; its loss is logged.
      shape: shape of one example: (H, W, C) uint8, or (D,) float32.
    """

    train: Source
    held_out: Source
    shape: tuple[int, ...]


def open_data_set(source: str, seed: int = 0) -> DataSet:
    """A data set by its name in a config.

    Args:
      source: one of SOURCES.
      seed: of the points that a toy draws; the digits do not depend on it.

    Raises:
      ValueError: if there is no such source.
    """
    if source == "digits":
        return digits()
    toys = {
        "swiss_roll": swiss_roll,
        "two_moons": two_moons,
        "eight_gaussians": eight_gaussians,
    }
    if source not in toys:
        raise ValueError(f"there is no source {source!r}")
    points = toys[source](_NUM_POINTS + _NUM_HELD_OUT_POINTS, seed)
    return arrays(points[:_NUM_POINTS], points[_NUM_POINTS:])


def arrays(train: np.ndarray, held_out: np.ndarray) -> DataSet:
    """A data set of the caller's own.

    Args:
      train, held_out: images, uint8 [N, H, W, C], or points, float32 [N, D].

    Raises:
      ValueError: if they are not of such a form, or one is empty.
    """
    for name, array in (("train", train), ("held_out", held_out)):
        kind = (array.dtype, array.ndim)
        if kind not in ((np.uint8, 4), (np.float32, 2)) or not len(array):
            raise ValueError(
                f"{name} must be images, uint8 [N, H, W, C], or points, float32 [N, D], "
                f"and not empty; got {array.dtype} {array.shape}"
            )
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite")
    if train.shape[1:] != held_out.shape[1:] or train.dtype != held_out.dtype:
        raise ValueError(
            f"train {train.dtype} {train.shape[1:]} and held_out {held_out.dtype} "
            f"{held_out.shape[1:]} must hold examples of the same kind"
        )
    return DataSet(train, held_out, train.shape[1:])


def digits() -> DataSet:
    """scikit-learn's 1,797 real handwritten digits, 8x8, grey: 1,597 and 200 held out.

    Their 17 levels are put on the 256-level grid, as round(v * 255 / 16). The split is
    fixed: a permutation by a fixed seed, because the file groups them by writer.
    """
    from sklearn.datasets import load_digits

    levels = load_digits().images
    images = np.round(levels * 255 / 16).astype(np.uint8)[..., None]
    images = images[np.random.default_rng(0).permutation(len(images))]
    return arrays(images[:-_NUM_HELD_OUT_DIGITS], images[-_NUM_HELD_OUT_DIGITS:])


def swiss_roll(num: int, seed: int) -> np.ndarray:
    """Points along 1.5 turns of a spiral, with a little noise; float32 [num, 2]."""
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(num, noise=0.3, random_state=seed)
    return (points[:, [0, 2]] / 8).astype(np.float32)


def two_moons(num: int, seed: int) -> np.ndarray:
    """Points on two interleaving half circles, with a little noise; float32 [num, 2]."""
    from sklearn.datasets import make_moons

    points, _ = make_moons(num, noise=0.05, random_state=seed)
    return (points - np.array([0.5, 0.25])).astype(np.float32)


def eight_gaussians(num: int, seed: int) -> np.ndarray:
    """Eight Gaussians (std 0.1) evenly on a circle of radius 1.5; float32 [num, 2]."""
    from sklearn.datasets import make_blobs

    angle = np.arange(8) * np.pi / 4
    centres = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points, _ = make_blobs(num, centers=centres, cluster_std=0.1, random_state=seed)
    return points.astype(np.float32)
