"""Fidelity and variety of samples by nearest neighbours in feature space.

B(y_j) is the ball around y_j that reaches its k-th nearest neighbour in its own set. For N
samples x_i and M reference examples y_j:

    precision = share of x_i in any B(y_j)      recall = share of y_j in any B(x_i)
    density   = 1 / (k N) sum_ij [x_i in B(y_j)]
    coverage  = share of y_j whose B(y_j) holds any x_i

(Kynkaanniemi et al. 2019, eqs. 1 and 2; Naeem et al. 2020, eqs. 3 and 4.) All of them
depend on the numbers of examples, so figures of different numbers do not compare.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import hadamard

from diffusion_jax.evaluation.estimate import Estimate
from diffusion_jax.evaluation.nearest import squared_distances

# Halves of 8 groups of examples: all, and the two halves of 7 splits, which are orthogonal.
_NUM_GROUPS = 8
# Unseen (0): an entry of a Hadamard matrix is 1 or -1.
_HALVES = np.concatenate([hadamard(_NUM_GROUPS) > 0, hadamard(_NUM_GROUPS)[1:] < 0])


class PrecisionRecall(NamedTuple):
    """The four figures: precision, recall and coverage in 0 .. 1, density in 0 .. M / k.

    Attributes:
      precision: 1 for samples that all look like the reference.
      recall: 1 for samples that are as varied as the reference.
      density: 1 in expectation for a perfect model; more for samples in the densest parts.
      coverage: 1 for samples near all of the reference; 1 - 1 / 2^k for a perfect model of
        as many samples.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(
    samples: np.ndarray, reference: np.ndarray, *, k: int = 3, k_density: int = 5
) -> PrecisionRecall:
    """Return precision, recall, density and coverage, by all distances in blocks.

    The standard error is by halves: both sets are split in two, a and b, in 7 ways, and

        SE^2 = mean over splits of (figure of a - figure of b)^2 / 4,

    which is the variance of the figure if that falls as 1 / n. A binomial error of the
    shares would leave out that the balls depend on chance too. The splits are orthogonal
    (McCarthy 1969), halves of the 8 groups of examples i mod 8, so that the order of the
    examples is to be that of chance. With 8 groups SE itself is uncertain by a quarter. It
    is NaN for sets of fewer than 20 k examples.

    Args:
      samples: [N, D], which may be a memory-mapped file.
      reference: [M, D].
      k: neighbours of precision and recall; 3 in the paper.
      k_density: neighbours of density and coverage; 5 in the paper.

    Raises:
      ValueError: for k below 1, for sets of k examples or fewer, and as
        `squared_distances`.
    """
    most, least = max(k, k_density), min(len(samples), len(reference))
    if min(k, k_density) < 1:
        raise ValueError(f"k ({min(k, k_density)}) must be 1 or more")
    if least <= most:
        raise ValueError(f"{most} neighbours need more than {most} examples, not {least}")
    figures = _figures(samples, reference, k, k_density)
    first, second = np.split(figures[1:], 2)
    errors = np.sqrt(np.mean((first - second) ** 2, axis=0)) / 2
    if least < 20 * most:
        errors[:] = np.nan
    return PrecisionRecall(*map(Estimate, figures[0].tolist(), errors.tolist()))


def _figures(
    samples: np.ndarray, reference: np.ndarray, k: int, k_density: int
) -> np.ndarray:
    """The four figures of all examples and of each half; float64 [15, 4]."""
    (of_samples,) = _squared_radii(samples, [k])
    of_reference, of_density = _squared_radii(reference, [k, k_density])
    members, members_reference = _members(len(samples)), _members(len(reference))
    precise, recalled = np.zeros_like(members), np.zeros_like(members_reference)
    covered, inside = np.zeros_like(members_reference), np.zeros(len(members))
    # Unseen: a longer reach finds more pairs that are in no ball.
    reach = of_samples.max(axis=0), np.maximum(of_reference, of_density).max(axis=0)
    for i, j, squares in squared_distances(samples, reference):
        # Few pairs are in any ball.
        a, b = np.nonzero(squares <= np.maximum(reach[0][i, None], reach[1][j]))
        squares, a, b = squares[a, b], a + i.start, b + j.start
        for half in range(len(members)):
            precise[half, a[squares <= of_reference[half, b]]] = True
            recalled[half, b[squares <= of_samples[half, a]]] = True
            within = (squares <= of_density[half, b]) & members[half, a]
            covered[half, b[within]] = True
            inside[half] += within.sum()
    # A half of very few examples may be empty.
    # Unseen (1): its figures are not used.
    num, num_reference = (
        np.maximum(1, of.sum(axis=1)) for of in (members, members_reference)
    )
    return np.stack(
        [
            (precise & members).sum(axis=1) / num,
            (recalled & members_reference).sum(axis=1) / num_reference,
            inside / (k_density * num),
            covered.sum(axis=1) / num_reference,
        ],
        axis=1,
    )


def _members(num: int) -> np.ndarray:
    """Examples of the whole set and of each half; bool [15, N]."""
    return _HALVES[:, np.arange(num) % _NUM_GROUPS]


def _squared_radii(x: np.ndarray, neighbours: list[int]) -> np.ndarray:
    """Squared distances to the k-th neighbours in the whole and each half; [len(k), 15, N].

    They are -1 for examples outside the half, whose balls are empty.
    """
    most = max(neighbours)
    # The nearest in each group; those in a union of groups are among them.
    least = np.full((len(x), _NUM_GROUPS, most), np.inf)
    for i, j, squares in squared_distances(x, x):
        if i == j:
            np.fill_diagonal(squares, np.inf)
        for group in range(_NUM_GROUPS):
            of_group = squares[:, (group - j.start) % _NUM_GROUPS :: _NUM_GROUPS]
            both = np.concatenate([least[i, group], of_group], axis=1)
            least[i, group] = np.partition(both, most - 1, axis=1)[:, :most]
    ranks = [k - 1 for k in neighbours]
    radii = [np.sort(least[:, half].reshape(len(x), -1))[:, ranks].T for half in _HALVES]
    # Unseen (1): any number below 0 will do.
    return np.where(_members(len(x)), np.stack(radii, axis=1), -1)
