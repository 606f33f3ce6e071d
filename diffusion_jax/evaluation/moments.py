"""Mean and covariance of many examples, batch by batch in float64 (Chan et al. 1979).

Each batch is centred on its own mean before anything is squared, so that a mean far from
0 takes no digits from the covariance.
"""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """First two moments of a set of examples.

    Attributes:
      num: n, the number of examples.
      mean: float64 [D].
      scatter: float64 [D, D], the sum over the examples of (x - mean)(x - mean)^T.
    """

    num: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, scatter / (n - 1); float64 [D, D].

        Raises:
          ValueError: for one example, which has no covariance.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs 2 examples or more, not {self.num}")
        return self.scatter / (self.num - 1)


def moments_of(x: np.ndarray) -> Moments:
    """Return the moments of a batch, by one matrix product.

    Args:
      x: [N, D] of any real type, N >= 1.

    Raises:
      ValueError: for another shape.
    """
    if x.ndim != 2 or not len(x):
        raise ValueError(f"moments are those of examples [N, D], not of {x.shape}")
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    deviations = x - mean
    return Moments(len(x), mean, _scatter(deviations))


def merged(*parts: Moments) -> Moments:
    """Return the moments of the union of disjoint sets.

        scatter = sum_i scatter_i + sum_i n_i (mean_i - mean)(mean_i - mean)^T

    This is the pairwise update of Chan et al. (1979), for any number of sets. A stream is
    `total = merged(total, moments_of(batch))`; a set with some blocks left out is the
    union of the other blocks.

    Raises:
      ValueError: for no set, and for sets of different dimensions.
    """
    if len({len(part.mean) for part in parts}) != 1:
        sizes = [len(part.mean) for part in parts]
        raise ValueError(f"sets of the dimensions {sizes} have no common moments")
    nums = np.array([part.num for part in parts])
    means = np.stack([part.mean for part in parts])
    mean = nums @ means / nums.sum()
    offsets = np.sqrt(nums)[:, None] * (means - mean)
    scatter = _scatter(offsets)
    for part in parts:
        scatter += part.scatter
    return Moments(int(nums.sum()), mean, scatter)


def _scatter(x: np.ndarray) -> np.ndarray:
    """Return x^T x; float64 [D, D]."""
    # Of one array NumPy computes a triangle and mirrors it, which takes longer.
    return x.T @ x.copy()
