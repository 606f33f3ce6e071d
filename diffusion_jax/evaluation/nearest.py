"""Nearest neighbours, and whether samples are copies of the training set.

A model that learned its training set by heart draws samples that are nearer to it than
examples are that the model has not seen; a perfect model draws samples that are as near.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffusion_jax.evaluation.estimate import Estimate
from diffusion_jax.evaluation.feature_blocks import blocks_of

# Distances below 1e-6 of the norms are 0: float32 features have no more digits.
# Unseen: nothing lies near this bound.
_SMALLEST = 1e-12


class Neighbours(NamedTuple):
    """The nearest neighbour of each of some examples.

    Attributes:
      distance: float64 [N], the Euclidean distance.
      position: int64 [N], of the neighbour in the other set; the first of several.
    """

    distance: np.ndarray
    position: np.ndarray


class Memorisation(NamedTuple):
    """Distances of samples to the training set, against those of held-out examples.

    Attributes:
      share_nearer: the share of samples that are nearer than half of the held-out
        examples are: 1/2 for a perfect model, 1 for copies.
      share_nearest: the share that is nearer than all but the nearest 1 % of the held-out
        examples: 0.01 for a perfect model, 1 for copies.
      median_ratio: the median distance of samples over that of held-out examples: 1 for a
        perfect model, 0 for copies.
    """

    share_nearer: Estimate
    share_nearest: Estimate
    median_ratio: Estimate


def squared_distances(
    x: np.ndarray, y: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield |x_i - y_j|^2 = |x_i|^2 + |y_j|^2 - 2 x_i . y_j in blocks.

    What is common to all of y is subtracted first. A difference below the rounding of
    float32 features is 0, so that equal examples have the distance 0.

    Args:
      x: [M, D], which may be a memory-mapped file.
      y: [N, D].

    Yields:
      the rows of x, the rows of y, and float64 [B, B'].

    Raises:
      ValueError: for sets of different dimensions, and for NaN and infinite numbers.
    """
    if x.ndim != 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"examples of {x.shape} and {y.shape} have no distances")
    # Unseen: any centre gives the same distances.
    centre = sum(b.sum(axis=0) for _, b in blocks_of(y)) / max(len(y), 1)
    for rows, a in blocks_of(x):
        a = a - centre
        norms = np.square(a).sum(axis=1)[:, None]
        for columns, b in blocks_of(y):
            b = b - centre
            sums = norms + np.square(b).sum(axis=1)
            squares = a @ b.T
            squares *= -2
            squares += sums
            squares[squares < _SMALLEST * sums] = 0
            yield rows, columns, squares


def nearest(x: np.ndarray, y: np.ndarray) -> Neighbours:
    """Return the nearest of y to each of x, exactly, by all distances in blocks.

    Args:
      x: [M, D], which may be a memory-mapped file.
      y: [N, D], N >= 1.

    Raises:
      ValueError: for an empty y, and as `squared_distances`.
    """
    if not len(y):
        raise ValueError("an empty set has no nearest example")
    # Unseen (np.full ...): infinity.
    least, position = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    for rows, columns, squares in squared_distances(x, y):
        found = squares.argmin(axis=1)
        values = squares[np.arange(len(squares)), found]
        nearer = values < least[rows]
        position[rows] = np.where(nearer, found + columns.start, position[rows])
        least[rows] = np.minimum(values, least[rows])
    return Neighbours(np.sqrt(least), position)


def memorisation(
    samples: np.ndarray, held_out: np.ndarray, *, num_resamples: int = 200, seed: int = 0
) -> Memorisation:
    """Compare two sets of distances to the training set.

    Standard errors are those of the bootstrap of both sets, with the training set and the
    model fixed. The nearest 1 % of fewer than about 1,000 held-out examples is a handful,
    of which the bootstrap says little.

    Args:
      samples: [N], the distance of each sample to the nearest training example.
      held_out: [M], that of each held-out example, drawn as the training set was.
      num_resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: for fewer than 2 distances, for NaN, and where half of the held-out
        examples are in the training set.
    """
    if min(len(samples), len(held_out)) < 2 or np.isnan([*samples, *held_out]).any():
        raise ValueError("memorisation needs 2 distances or more of each set, and no NaN")
    if np.median(held_out) <= 0:
        raise ValueError("half of the held-out examples are in the training set")
    rng = np.random.default_rng(seed)
    # Unseen: drawn at random, and seen by a statistical test.
    again = [
        _compared(*(rng.choice(of, len(of)) for of in (samples, held_out)))
        for _ in range(num_resamples)
    ]
    values = _compared(samples, held_out)
    # Unseen: as `again`.
    errors = np.std(again, axis=0, ddof=1)
    pairs = zip(values, errors, strict=True)
    return Memorisation(*(Estimate(float(v), float(e)) for v, e in pairs))


def _compared(samples: np.ndarray, held_out: np.ndarray) -> tuple[float, float, float]:
    one_percent, half = np.quantile(held_out, [0.01, 0.5])
    nearer, nearest_ones = (np.mean(samples < at) for at in (half, one_percent))
    return float(nearer), float(nearest_ones), float(np.median(samples) / half)
