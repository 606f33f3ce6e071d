"""Kernel distance (KID): the squared MMD of two sets with a cubic kernel.

    k(x, y) = (x . y / D + 1)^3                              (Binkowski et al. 2018, sec. 4)
    MMD^2   = E k(x, x') + E k(y, y') - 2 E k(x, y)          (Gretton et al. 2012, eq. 3)

The estimate is the unbiased one over all pairs, whose expectation is 0 for two sets of one
distribution, whatever their sizes, and which may be negative.
"""

from typing import NamedTuple

import numpy as np

from diffusion_jax.evaluation.estimate import Estimate
from diffusion_jax.evaluation.feature_blocks import blocks_of


class _Pairs(NamedTuple):
    """Sums over the pairs (i, j) of two sets, or over the pairs i != j of one set.

    Attributes:
      rows: float64 [M], sums of k(x_i, y_j) over j.
      columns: float64 [N], sums of k(x_i, y_j) over i.
      squares: sum of k(x_i, y_j)^2.
      num: number of pairs.
    """

    rows: np.ndarray
    columns: np.ndarray
    squares: float
    num: int


def kernel_distance(
    x: np.ndarray,
    y: np.ndarray,
    *,
    # Unseen: sets as large as this take seconds.
    most: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Return the unbiased squared MMD, and its standard error over repeats of both sets.

        MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1))
              + sum_{i != j} k(y_i, y_j) / (n (n - 1)) - 2 sum_ij k(x_i, y_j) / (m n)

    Binkowski et al. average it over 100 subsets of 1,000 examples. Such subsets overlap:
    their standard deviation, which torch-fidelity prints, says how one subset varies, and
    divided by sqrt(100) how the choice of subsets does, and neither how the figure varies
    with other examples. All pairs of up to 10,000 examples cost as much, vary less, and
    their variance follows from the sums of each example (`_variance`).

    Args:
      x: [M, D], which may be a memory-mapped file.
      y: [N, D].
      most: number of examples of each set that are taken at random, if it has more.
      seed: of that choice.

    Raises:
      ValueError: for fewer than 4 examples, for sets of different dimensions, and for NaN
        and infinite numbers.
    """
    if x.ndim != 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"sets of {x.shape} and {y.shape} have no kernel distance")
    if min(len(x), len(y), most) < 4:
        sizes = f"{min(len(x), most)} and {min(len(y), most)}"
        raise ValueError(f"the kernel distance needs 4 examples of each set, not {sizes}")
    rng = np.random.default_rng(seed)
    x, y = (_some(of, most, rng) for of in (x, y))
    xx, yy = _pairs(x, x, same=True), _pairs(y, y, same=True)
    xy = _pairs(x, y, same=False)
    value = sum(p.rows.sum() / p.num for p in (xx, yy)) - 2 * xy.rows.sum() / xy.num
    return Estimate(float(value), float(np.sqrt(_variance(xx, yy, xy))))


def _some(x: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    if len(x) <= most:
        return x
    return x[np.sort(rng.choice(len(x), most, replace=False))]


def _pairs(x: np.ndarray, y: np.ndarray, *, same: bool) -> _Pairs:
    rows, squares = np.zeros(len(x)), 0.0
    columns = rows if same else np.zeros(len(y))
    for i, a in blocks_of(x):
        for j, b in blocks_of(y):
            if same and j.start < i.start:
                continue  # The mirror image of block (j, i).
            base = a @ b.T / x.shape[1] + 1
            kernel = base * base * base
            if same and i == j:
                np.fill_diagonal(kernel, 0)
            else:
                columns[j] += kernel.sum(axis=0)
            rows[i] += kernel.sum(axis=1)
            squares += np.vdot(kernel, kernel) * (2 if same and i != j else 1)
    return _Pairs(rows, columns, squares, len(x) * (len(y) - same))


def _variance(xx: _Pairs, yy: _Pairs, xy: _Pairs) -> float:
    """The variance of MMD^2 over repeats.

    Hoeffding's decomposition divides it into V1, of the parts that are sums over single
    examples, and V2, of those over pairs. The jackknife, which leaves out each example once
    and costs nothing with the sums at hand, has the expectation V1 + 2 V2 (Efron and Stein
    1981), and V2 is that of the doubly centred kernels:

        V2 = 2 E c(x, x')^2 / (m (m - 1)) + 2 E c(y, y')^2 / (n (n - 1))
             + 4 E c(x, y)^2 / (m n)

    So the variance is (jackknife - 2 V2) + V2, the first not below 0. For two sets of one
    distribution V1 = 0, which is why none of its parts can be left out.
    """
    m, n = len(xx.rows), len(yy.rows)
    pairs = sum(c * _centred_square(p) / p.num for c, p in ((2, xx), (2, yy), (4, xy)))
    jackknife = _jackknife(xx.rows, xy.rows, n) + _jackknife(yy.rows, xy.columns, m)
    return max(0.0, jackknife - 2 * pairs) + pairs


def _centred_square(pairs: _Pairs) -> float:
    """E (k(x, y) - E_x k - E_y k + E k)^2, by the means of rows and columns."""
    m, n = len(pairs.rows), len(pairs.columns)
    rows, columns = pairs.rows * m / pairs.num, pairs.columns * n / pairs.num
    squares = pairs.squares / pairs.num - np.mean(rows**2) - np.mean(columns**2)
    return max(0.0, squares + rows.mean() ** 2)


def _jackknife(within: np.ndarray, across: np.ndarray, others: int) -> float:
    """(m - 1) / m sum_i (MMD^2 without x_i - their mean)^2, by the sums of each x_i.

    MMD^2 without x_i is the same for all i except for

        2 / (m - 1) (sum_j k(x_i, y_j) / n - sum_{j != i} k(x_i, x_j) / (m - 2)).
    """
    m = len(within)
    return float(4 / (m - 1) * np.var(across / others - within / (m - 2)))
