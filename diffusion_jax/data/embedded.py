"""Data sets that come with scikit-learn: real digits, and toys of two coordinates.

scikit-learn is imported where it is used: it takes a second, which other sources and
the library's users need not wait for.
"""

import importlib.util
import pathlib

import numpy as np

NUM_POINTS = 20_000
NUM_HELD_OUT_POINTS = 2_000
NUM_HELD_OUT_DIGITS = 200


def digits() -> np.ndarray:
    """scikit-learn's 1,797 real handwritten digits; uint8 [1797, 8, 8, 1]."""
    return labelled_digits()[0]


def labelled_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, uint8 [1797, 8, 8, 1], and their labels, int32 [1797].

    Their 17 levels are put on the 256-level grid, as round(v * 255 / 16). The order is a
    permutation by a fixed seed, because the file groups them by writer; the last 200
    are held out. (`sklearn.datasets.load_digits` reads the same file, after an import that
    takes longer than anything else before the first step.)
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    path = pathlib.Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    rows = np.loadtxt(path, delimiter=",")  # The last column is the digit.
    levels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int32)
    images = np.round(levels * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], labels[order]


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
