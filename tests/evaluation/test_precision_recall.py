"""Precision, recall, density and coverage: by brute force, and where they are known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffusion_jax.evaluation import feature_blocks, nearest
from diffusion_jax.evaluation.precision_recall import precision_recall


def normal(n, d=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def values(*args, **options):
    return [figure.value for figure in precision_recall(*args, **options)]


def by_definition(samples, reference, k, k_density):
    """One example and one ball at a time, with SciPy's distances."""

    def radius(of, i, k):
        return np.sort(cdist(of[i : i + 1], of)[0])[k]  # The first is the example itself.

    def inside(x, balls, i, k):
        return np.linalg.norm(x - balls[i]) <= radius(balls, i, k)

    n, m = range(len(samples)), range(len(reference))
    each = [[inside(samples[i], reference, j, k_density) for j in m] for i in n]
    return [
        np.mean([any(inside(samples[i], reference, j, k) for j in m) for i in n]),
        np.mean([any(inside(reference[j], samples, i, k) for i in n) for j in m]),
        np.sum(each) / (k_density * len(samples)),
        np.any(each, axis=0).mean(),
    ]


@pytest.mark.parametrize("block", [8, 13, 1000])
def test_it_is_the_definition_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(feature_blocks, "BLOCK", block)
    samples, reference = 0.8 * normal(30) + 0.4, normal(41, seed=1)
    found = values(samples, reference, k=2, k_density=4)
    assert found == pytest.approx(by_definition(samples, reference, 2, 4), rel=1e-14)


def test_the_standard_error_is_that_of_halves_by_definition(monkeypatch):
    """Against the figures of each pair of halves of 8 groups, 4 groups in each half.

    The 7 ways are the ones in which the parity of some of the three bits of the group is
    even or odd.
    """
    monkeypatch.setattr(feature_blocks, "BLOCK", 50)
    samples, reference = 0.8 * normal(104) + 0.4, normal(120, seed=1)
    squares = []
    for bits in range(1, 8):
        odd = np.array([(group & bits).bit_count() % 2 for group in range(8)], bool)
        figures = [
            by_definition(
                *(of[half[np.arange(len(of)) % 8]] for of in (samples, reference)), 2, 4
            )
            for half in (odd, ~odd)
        ]
        squares.append(np.square(np.subtract(*figures)) / 4)
    found = precision_recall(samples, reference, k=2, k_density=4)
    errors = [figure.standard_error for figure in found]
    assert errors == pytest.approx(np.sqrt(np.mean(squares, axis=0)), rel=1e-12)


def test_a_set_and_itself():
    """Each example is in its own ball and in those whose neighbour it is: 1 + 1 / k."""
    x = normal(50)
    assert values(x, x.copy(), k_density=5) == pytest.approx([1, 1, 1.2, 1])


def test_sets_far_from_each_other_have_nothing_in_common():
    assert values(normal(40), normal(50, seed=1) + 1e3) == [0, 0, 0, 0]


def test_samples_of_one_of_two_modes_are_precise_and_miss_half():
    reference = np.concatenate([normal(300), normal(300, seed=1) + 1e3])
    precision, recall, density, coverage = values(normal(300, seed=2), reference)
    assert precision > 0.9 and density == pytest.approx(1, abs=0.2)
    assert 0.4 < recall < 0.5 and 0.4 < coverage < 0.5


def test_samples_in_the_middle_of_one_mode_are_precise_without_variety():
    precision, recall, density, _ = values(0.01 * normal(300), normal(300, seed=1))
    assert precision == 1 and recall < 0.02 and density > 1.3


def test_samples_that_are_all_one_are_inside_or_outside():
    """Their own balls have the radius 0 and hold none of the reference."""
    reference = normal(50)
    centre, far = np.zeros((20, 3)), np.full((20, 3), 9.0)
    assert values(centre, reference)[:2] == [1, 0]
    assert values(far, reference)[:2] == [0, 0]
    assert values(reference[[7] * 20], reference)[:2] == [1, 1 / 50]


@pytest.mark.statistical
def test_density_and_coverage_of_a_perfect_model():
    """Density 1, and Naeem et al., lemma 2:

    E coverage = 1 - (M - 1) .. (M - k) / ((M + N - 1) .. (M + N - k)).
    """
    m, n, k = 60, 45, 4
    draws = [
        values(normal(n, seed=2 * i), normal(m, seed=2 * i + 1), k=1, k_density=k)
        for i in range(150)
    ]
    missed = np.prod([(m - i) / (m + n - i) for i in range(1, k + 1)])
    means, errors = np.mean(draws, axis=0), np.std(draws, axis=0) / np.sqrt(150)
    assert means[2] == pytest.approx(1, abs=3 * errors[2])
    assert means[3] == pytest.approx(1 - missed, abs=3 * errors[3])
    assert errors[2] < 0.02 and errors[3] < 0.01


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [1, 0.7])
def test_the_standard_errors_are_the_spread_over_repeats(scale):
    """120 repeats, whose spread is known to 7 %."""
    found = np.array(
        [
            precision_recall(scale * normal(160, seed=2 * i), normal(200, seed=2 * i + 1))
            for i in range(120)
        ]
    )
    rms = np.sqrt(np.mean(found[:, :, 1] ** 2, axis=0))
    np.testing.assert_allclose(rms, found[:, :, 0].std(axis=0, ddof=1), rtol=0.25)


def test_equal_examples_far_from_the_origin_are_at_distance_0():
    """Distances for which |x|^2 + |y|^2 - 2 x . y alone has no digits left."""
    pairs = np.repeat(normal(20, d=50) + 1e4, 2, axis=0)
    ((_, _, squares),) = nearest.squared_distances(pairs, pairs)
    np.testing.assert_array_equal(squares == 0, np.kron(np.eye(20), np.ones((2, 2))) > 0)
    assert values(pairs, pairs.copy(), k=1, k_density=1) == [1, 1, 2, 1]


def test_sets_of_too_few_examples_are_refused_and_small_ones_have_no_standard_error():
    assert np.isnan(
        [f.standard_error for f in precision_recall(normal(99), normal(99))]
    ).all()
    assert np.isfinite(precision_recall(normal(100), normal(100, seed=1))).all()
    for sizes in ((5, 9), (9, 5)):
        with pytest.raises(ValueError, match="5 neighbours need more than 5 .* not 5"):
            precision_recall(*(normal(n) for n in sizes))
        values(*(normal(n) for n in sizes), k=3, k_density=4)
    assert values(normal(2), normal(2), k=1, k_density=1) == [1, 1, 2, 1]
    for k in ({"k": 0}, {"k_density": 0}):
        with pytest.raises(ValueError, match=r"k \(0\) must be 1 or more"):
            precision_recall(normal(9), normal(9), **k)
    with pytest.raises(ValueError, match="have no distances"):
        precision_recall(normal(9), normal(9, d=2))
