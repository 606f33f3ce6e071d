"""Frechet distance between Gaussians with the moments of two sets (Heusel et al. 2017).

    FD = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))         (eq. 6; FID on features
                                                                      of Inception-v3)

S_a S_b has the eigenvalues of R^T S_b R with R R^T = S_a, a symmetric matrix, and the trace
of its root is the sum of their square roots (Dowson and Landau 1982). Estimated means and
covariances differ by chance even where the distributions are one, so FD is too large by
about c / n for n examples, with c independent of n: figures of different n do not compare,
and neither does the mean of figures of halves with the figure of the whole.
"""

from collections.abc import Callable, Sequence

import numpy as np

from diffusion_jax.evaluation.moments import Moments, merged


class FrechetDistance:
    """Distance to one reference, whose covariance is decomposed once."""

    def __init__(self, reference: Moments):
        """Decompose the reference.

        Raises:
          ValueError: as `__call__`.
        """
        _check(reference, len(reference.mean))
        covariance = reference.covariance
        values, vectors = np.linalg.eigh(covariance)
        self._mean, self._trace = reference.mean, np.trace(covariance)
        self._root = vectors * np.sqrt(np.maximum(values, 0))

    def __call__(self, moments: Moments) -> float:
        """Return the Frechet distance of a set to the reference; 0 or more.

        Raises:
          ValueError: for n <= D examples, whose covariance of rank n - 1 gives a wrong
            figure, for moments that are not finite, and for another D.
        """
        _check(moments, len(self._mean))
        covariance = moments.covariance
        product = self._root.T @ covariance @ self._root
        # eigvalsh reads one triangle; the other differs by rounding only.
        roots = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0))
        shift = np.square(moments.mean - self._mean).sum()
        # Unseen (0): the least value, below any that is tested.
        return float(max(0, shift + self._trace + np.trace(covariance) - 2 * roots.sum()))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), which is symmetric.

    Raises:
      ValueError: as `FrechetDistance.__call__`, for either set.
    """
    return FrechetDistance(a)(b)


def _check(moments: Moments, dimensions: int) -> None:
    num, d = moments.num, len(moments.mean)
    if d != dimensions:
        raise ValueError(f"a set of {d} dimensions has no distance to one of {dimensions}")
    if num <= d:
        raise ValueError(
            f"the Frechet distance in {d} dimensions needs more than {d} examples, not "
            f"{num}, whose covariance is singular; take more examples, the kernel distance "
            "(KID), or a network with fewer features"
        )
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()):
        raise ValueError("the features hold NaN or infinite numbers")


def standard_error_by_halves(
    blocks: Sequence[Moments],
    distance: Callable[[Moments], float],
    *,
    num_splits: int = 10,
    seed: int = 0,
) -> float:
    """Return the standard error of `distance` of the union of blocks, over its examples.

    The blocks are split at random into two halves S and S', `num_splits` times:

        SE^2 = mean over splits of (n_S n_S' / n^2) (d(S) - d(S'))^2

    For a mean over n independent examples of variance s^2, (d(S) - d(S'))^2 has the
    expectation s^2 n / (n_S n_S'), so that SE^2 has s^2 / n, with any number of blocks.
    This is the delete-half jackknife (Shao and Wu 1989). Its factor (n - d) / d is 1, and a
    half differs from the mean of both by half their difference. The bias of about c / n is
    the same in both halves and cancels. Where the distance is near its smallest value, it
    is a square rather than a mean, and SE is up to sqrt(2) times too large. With B blocks
    SE itself is uncertain by at least 1 / sqrt(2 (B - 1)): 16 % for 20 blocks.

    The distance is computed 2 `num_splits` times. What it compares with is held fixed.

    Args:
      blocks: the moments of disjoint random parts of about the same size.
      distance: the statistic of a set, such as a `FrechetDistance`, which needs more than
        D examples in each half.
      num_splits: number of splits, 1 or more.
      seed: of the splits.

    Raises:
      ValueError: for fewer than 4 blocks, and what `distance` raises for a half.
    """
    if len(blocks) < 4:
        raise ValueError(f"a standard error by halves needs 4 blocks, not {len(blocks)}")
    rng, squares = np.random.default_rng(seed), []
    for _ in range(num_splits):
        order = rng.permutation(len(blocks))
        halves = order[::2], order[1::2]
        a, b = (merged(*(blocks[i] for i in half)) for half in halves)
        share = a.num * b.num / (a.num + b.num) ** 2
        squares.append(share * (distance(a) - distance(b)) ** 2)
    return float(np.sqrt(np.mean(squares)))
