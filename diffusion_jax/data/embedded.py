"""Data sets made of what scikit-learn has: real digits, moving or not, and toys of points.

scikit-learn is imported where it is used: it takes a second, which other sources and
the library's users need not wait for.
"""

import importlib.util
import pathlib

import numpy as np

NUM_POINTS = 20_000
NUM_HELD_OUT_POINTS = 2_000
NUM_HELD_OUT_DIGITS = 200
NUM_CLIP_FRAMES, CANVAS_SIZE = 8, 12  # Of `moving`.


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


def moving(images: np.ndarray, seed: int) -> np.ndarray:
    """Return clips of images that move over a black canvas and bounce off its edges.

    Each image starts at a place drawn uniformly from those inside the canvas. Along each
    side it moves by -1, 0 or 1 pixels per frame, drawn uniformly: one image in nine stands
    still. Places are whole numbers, so that the pixels of an image are the same in all
    frames. In frame f the coordinate is
    m - |(p + f v) mod 2m - m|, which a mirror at 0 and at m, the last place, gives.

    Args:
      images: uint8 [N, h, w, C], smaller than the canvas.
      seed: of the places and velocities.

    Returns:
      uint8 [N, 8, 12, 12, C].
    """
    n, *size, channels = images.shape
    rng = np.random.default_rng(seed)
    last = CANVAS_SIZE - np.array(size)
    start = rng.integers(0, last + 1, (n, 2))
    velocity = rng.integers(-1, 2, (n, 2))
    path = start[:, None] + np.arange(NUM_CLIP_FRAMES)[:, None] * velocity[:, None]
    places = last - np.abs(path % (2 * last) - last)
    clips = np.zeros((n, NUM_CLIP_FRAMES, CANVAS_SIZE, CANVAS_SIZE, channels), np.uint8)
    for clip, image, clip_places in zip(clips, images, places, strict=True):
        for frame, (top, left) in zip(clip, clip_places, strict=True):
            frame[top : top + size[0], left : left + size[1]] = image
    return clips


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
