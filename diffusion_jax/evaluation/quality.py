"""Metrics of the quality of samples, side by side; a new one is a function and a row.

Each compares features of samples with those of a reference. The name of the network is a
part of the name of every figure, as figures by other networks are other figures.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from diffusion_jax.evaluation.estimate import Estimate
from diffusion_jax.evaluation.frechet_distance import (
    FrechetDistance,
    standard_error_by_halves,
)
from diffusion_jax.evaluation.inception_score import inception_score
from diffusion_jax.evaluation.kernel_distance import kernel_distance
from diffusion_jax.evaluation.moments import Moments, merged, moments_of
from diffusion_jax.evaluation.nearest import Neighbours, memorisation, nearest
from diffusion_jax.evaluation.precision_recall import precision_recall

NUM_GROUPS = 16  # Parts of a set, of which halves are made.
# Examples of a set that pairs are made of; moments and nearest examples take all.
MOST_PAIRED = 10_000
_PIECE = 1024  # Examples whose moments are computed at once.


class Figure(NamedTuple):
    """A figure with all that it is of.

    Attributes:
      value: the figure.
      standard_error: over repeats with other examples; None if it is not known.
      num_samples: how many samples count.
      num_reference: how many examples of the reference count; 0 if none is needed.
    """

    value: float
    standard_error: float | None
    num_samples: int
    num_reference: int


class FeatureSet:
    """Features of a set of examples, of which few are in memory at once."""

    def __init__(
        self, blocks: Iterable[np.ndarray], num: int, moments: Moments | None = None
    ):
        """Take the features.

        Args:
          blocks: [B, D] each, in an order that tells nothing of the examples; they are
            read more than once.
          num: examples of all blocks.
          moments: of all of them, if they are known.
        """
        self.blocks, self.num = blocks, num
        self._moments = moments

    @functools.cached_property
    def groups(self) -> list[Moments]:
        """Moments of `NUM_GROUPS` parts of about the same size, of those that have any."""
        edges = np.arange(1, NUM_GROUPS + 1) * self.num // NUM_GROUPS
        groups: dict[int, Moments] = {}
        for begin, piece in _pieces(self.blocks, _PIECE):
            ends = np.clip(edges - begin, 0, len(piece))
            for i, part in enumerate(np.split(piece, ends)[:NUM_GROUPS]):
                if len(part):
                    here = moments_of(part)
                    groups[i] = merged(groups[i], here) if i in groups else here
        return list(groups.values())

    @functools.cached_property
    def moments(self) -> Moments:
        """Moments of all features."""
        return self._moments or merged(*self.groups)

    @functools.cached_property
    def distance(self) -> FrechetDistance:
        """Frechet distance to this set."""
        return FrechetDistance(self.moments)

    @functools.cached_property
    def paired(self) -> np.ndarray:
        """Features of the first examples, those that pairs are made of."""
        return next(_pieces(self.blocks, MOST_PAIRED))[1]


def _pieces(blocks: Iterable[np.ndarray], size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of the first row of each piece, and `size` rows, the last fewer."""
    begin, held, num = 0, list[np.ndarray](), 0
    for block in blocks:
        held.append(block)
        num += len(block)
        while num >= size:
            rows = np.concatenate(held)
            yield begin, rows[:size]
            begin, num = begin + size, num - size
            held = [rows[size:]]
    if num:
        yield begin, np.concatenate(held)


class Sets(NamedTuple):
    """Sets of features that a metric compares.

    Attributes:
      samples: features of the samples.
      reference: features of the examples that the samples are to be like.
      held_out: features of examples like those of the reference, which the network that
        drew the samples was not trained on; None if the reference is not what it was
        trained on.
      logits: of the samples, block by block; None of a network without classes.
    """

    samples: FeatureSet
    reference: FeatureSet
    held_out: FeatureSet | None = None
    logits: Iterable[np.ndarray] | None = None


def check_enough(name: str, num: int, num_features: int) -> None:
    """Raise ValueError if a set has too few examples for the Frechet distance."""
    if num <= num_features:
        some = f"{num:,} example{'s' if num > 1 else ''}"
        raise ValueError(
            f"{name} has {some}, and the Frechet distance of {num_features:,} features "
            "needs more than that many: a smaller set gives a wrong figure"
        )


def frechet(sets: Sets) -> dict[str, Figure]:
    """Return FD; its error bar needs more than 2 D samples."""
    samples, reference = sets.samples, sets.reference
    distance = reference.distance
    value, error = distance(samples.moments), None
    # Halves of groups whose sizes differ by one example.
    if samples.num >= 2 * (len(samples.moments.mean) + 1) + NUM_GROUPS:
        error = standard_error_by_halves(samples.groups, distance)
    return {"FD": Figure(value, error, samples.num, reference.num)}


def kernel(sets: Sets) -> dict[str, Figure]:
    """Return KID."""
    found = kernel_distance(sets.samples.paired, sets.reference.paired)
    return {"KID": _of_pairs(sets, found)}


def score(sets: Sets) -> dict[str, Figure]:
    """Return the Inception score, of a network with classes."""
    if sets.logits is None:
        return {}
    return {"IS": Figure(*inception_score(sets.logits), sets.samples.num, 0)}


def neighbours(sets: Sets) -> dict[str, Figure]:
    """Return precision, recall, density and coverage."""
    found = precision_recall(sets.samples.paired, sets.reference.paired)
    return {name: _of_pairs(sets, each) for name, each in found._asdict().items()}


def memorised(sets: Sets) -> dict[str, Figure]:
    """Return how near samples are to training examples, as `nearest.memorisation`."""
    if sets.held_out is None:
        return {}
    reference = sets.reference
    of_held_out = _held_out_distances(sets.held_out, reference)
    if np.median(of_held_out) <= 0:  # Half of the held-out examples are copies.
        return {}
    distances = nearest_of(sets.samples.paired, reference).distance
    found, num = memorisation(distances, of_held_out), len(distances)
    return {
        name: Figure(each.value, each.standard_error, num, reference.num)
        for name, each in found._asdict().items()
    }


@functools.lru_cache(maxsize=1)
def _held_out_distances(held_out: FeatureSet, reference: FeatureSet) -> np.ndarray:
    """Return distances that are the same for every set of samples."""
    return nearest_of(held_out.paired, reference).distance


def nearest_of(x: np.ndarray, features: FeatureSet) -> Neighbours:
    """Return the nearest of all features of a set to each of x, [M, D]."""
    least, index = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    for begin, piece in _pieces(features.blocks, MOST_PAIRED):
        found = nearest(x, piece)
        index = np.where(found.distance < least, found.position + begin, index)
        least = np.minimum(found.distance, least)
    return Neighbours(least, index)


def _of_pairs(sets: Sets, found: Estimate) -> Figure:
    error = found.standard_error if np.isfinite(found.standard_error) else None
    return Figure(found.value, error, len(sets.samples.paired), len(sets.reference.paired))


METRICS: tuple[Callable[[Sets], dict[str, Figure]], ...] = (
    frechet,
    kernel,
    score,
    neighbours,
    memorised,
)


def figures(sets: Sets, network: str) -> dict[str, Figure]:
    """Return the figures of all metrics, by name: "FD-pca20".

    Raises:
      ValueError: for features that are not finite, or the same for the whole reference.
    """
    if not np.trace(sets.reference.moments.scatter):
        raise ValueError("the features of all examples of the reference are the same")
    found = {
        f"{name}-{network}": figure
        for metric in METRICS
        for name, figure in metric(sets).items()
    }
    odd = [name for name, figure in found.items() if not np.isfinite(figure.value)]
    if odd:
        raise ValueError(f"{', '.join(odd)} would not be finite")
    return found
