"""The Frechet distance against closed forms, SciPy's root of a matrix, and repeats."""

import functools

import numpy as np
import pytest
import scipy.linalg

from diffusion_jax.evaluation import frechet_distance as fd
from diffusion_jax.evaluation.frechet_distance import frechet_distance
from diffusion_jax.evaluation.moments import Moments, moments_of


def gaussian(mean, covariance, num=1000):
    """Moments of exactly these mean and covariance."""
    covariance = np.array(covariance, np.float64)
    return Moments(num, np.array(mean, np.float64), covariance * (num - 1))


def random_covariance(seed, d):
    return np.cov(np.random.default_rng(seed).standard_normal((d, 3 * d)))


def rotation(seed, d):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def test_in_one_dimension_it_is_the_distance_of_means_and_of_deviations():
    """(mu_a - mu_b)^2 + (sigma_a - sigma_b)^2 by hand: 3^2 + (2 - 5)^2."""
    a, b = gaussian([1], [[4]]), gaussian([4], [[25]])
    assert frechet_distance(a, b) == pytest.approx(18, rel=1e-13)


def test_two_dimensions_by_hand():
    """tr (S_a S_b)^(1/2) = sqrt(tr(S_a S_b) + 2 sqrt(det S_a det S_b)) for 2 x 2."""
    a, b = gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([1, -1], [[1, 0], [0, 9]])
    root = np.sqrt(20 + 2 * np.sqrt(27))
    assert frechet_distance(a, b) == pytest.approx(2 + 4 + 10 - 2 * root, rel=1e-13)


def test_commuting_covariances_have_a_closed_form():
    """Covariances of the same axes: the sum of (sigma_a - sigma_b)^2 over the axes."""
    rng, axes = np.random.default_rng(0), rotation(1, 12)
    sigma_a, sigma_b = rng.uniform(0.1, 5, (2, 12))
    shift = rng.standard_normal(12)
    a = gaussian(np.zeros(12), axes * sigma_a**2 @ axes.T)
    b = gaussian(shift, axes * sigma_b**2 @ axes.T)
    exact = shift @ shift + np.sum((sigma_a - sigma_b) ** 2)
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("d", [1, 3, 20])
def test_it_is_the_formula_with_the_root_of_the_product(d):
    """Eq. 6 with `scipy.linalg.sqrtm`, which needs well-conditioned covariances."""
    a, b = random_covariance(0, d), random_covariance(1, d)
    shift = np.random.default_rng(2).standard_normal(d)
    root = scipy.linalg.sqrtm(a @ b) if d > 1 else np.sqrt(a * b)
    exact = shift @ shift + np.trace(np.atleast_2d(a + b - 2 * np.real(root)))
    a, b = np.reshape(a, (d, d)), np.reshape(b, (d, d))
    found = frechet_distance(gaussian(np.zeros(d), a), gaussian(shift, b))
    assert found == pytest.approx(exact, rel=1e-10)


def test_covariances_that_are_singular_by_themselves_are_exact():
    """Examples on a line in 8 dimensions, the two lines at right angles, parallel, equal.

    The trace of the root is sigma_a sigma_b |cos| of the angle between the lines.
    """
    lines, cos = rotation(0, 8)[:2], 0.6
    oblique = cos * lines[0] + np.sqrt(1 - cos**2) * lines[1]
    a = gaussian(np.zeros(8), 4 * np.outer(lines[0], lines[0]))
    for direction, angle in ((lines[1], 0.0), (lines[0], 1.0), (oblique, cos)):
        b = gaussian(np.zeros(8), 9 * np.outer(direction, direction))
        assert frechet_distance(a, b) == pytest.approx(13 - 12 * angle, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    constant = gaussian(np.ones(8), np.zeros((8, 8)))
    assert frechet_distance(a, constant) == pytest.approx(8 + 4, rel=1e-12)


def test_a_nearly_singular_covariance_gives_no_imaginary_part_and_nothing_below_0():
    """Deviations from 1 to 1e-9, the distance to itself and to twice the deviations."""
    axes, sigma = rotation(3, 30), np.logspace(0, -9, 30)
    a = gaussian(np.zeros(30), axes * sigma**2 @ axes.T)
    b = gaussian(np.zeros(30), axes * (2 * sigma) ** 2 @ axes.T)
    assert 0 <= frechet_distance(a, a) < 1e-7
    assert frechet_distance(a, b) == pytest.approx(np.sum(sigma**2), rel=1e-6)


def test_it_is_symmetric_and_does_not_change_with_the_axes_or_the_origin():
    a, b = random_covariance(0, 10), random_covariance(1, 10)
    rng, turn = np.random.default_rng(2), rotation(3, 10)
    mean_a, mean_b, shift = rng.standard_normal((3, 10))
    as_is = frechet_distance(gaussian(mean_a, a), gaussian(mean_b, b))
    swapped = frechet_distance(gaussian(mean_b, b), gaussian(mean_a, a))
    turned = frechet_distance(
        gaussian(turn @ mean_a + shift, turn @ a @ turn.T),
        gaussian(turn @ mean_b + shift, turn @ b @ turn.T),
    )
    assert swapped == pytest.approx(as_is, rel=1e-12)
    assert turned == pytest.approx(as_is, rel=1e-12)


def test_a_reference_is_decomposed_once(monkeypatch):
    calls = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: calls.append(a) or eigh(a))
    reference = fd.FrechetDistance(gaussian([0, 0], np.eye(2)))
    found = [reference(gaussian([k, 0], np.eye(2))) for k in range(10)]
    assert found == pytest.approx([k**2 for k in range(10)], abs=1e-12)
    assert len(calls) == 1


@pytest.mark.parametrize("swap", [False, True])
def test_too_few_examples_are_refused(swap):
    few, enough = gaussian([0, 0], np.eye(2), num=2), gaussian([0, 0], np.eye(2), num=3)
    assert frechet_distance(enough, enough) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"in 2 dimensions needs more than 2 .* not 2,"):
        frechet_distance(*((enough, few) if swap else (few, enough)))


def test_moments_that_do_not_fit_are_refused():
    a = gaussian([0, 0], np.eye(2))
    with pytest.raises(ValueError, match="3 dimensions has no distance to one of 2"):
        frechet_distance(a, gaussian([0, 0, 0], np.eye(3)))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            frechet_distance(a, gaussian([0, bad], np.eye(2)))
        with pytest.raises(ValueError, match="NaN or infinite"):
            frechet_distance(gaussian([0, 0], [[bad, 0], [0, 1]]), a)


def test_the_standard_error_of_a_mean_by_halves_is_the_closed_form():
    """Means that have one standard error whatever the split.

    Blocks of 10 with the means 0, 0, 0, 4, whose variance is 4: SE = sqrt(4 / 4). Blocks of
    1, 1, 1, 3 with 4 in the last: halves of 2 and 4 with the means 0 and 3.
    """
    calls = []

    def mean(moments):
        calls.append(moments.num)
        return moments.mean[0]

    blocks = [moments_of(np.full((10, 1), value)) for value in (0, 0, 0, 4)]
    assert fd.standard_error_by_halves(blocks, mean) == pytest.approx(1, rel=1e-14)
    assert calls == [20] * 20
    sizes = ((1, 0), (1, 0), (1, 0), (3, 4))
    blocks = [moments_of(np.full((num, 1), value)) for num, value in sizes]
    exact = np.sqrt(2 * 4 / 6**2 * 3**2)
    assert fd.standard_error_by_halves(blocks, mean) == pytest.approx(exact, rel=1e-14)


@pytest.mark.statistical
def test_the_standard_error_of_a_mean_is_that_of_the_means_of_blocks():
    """Over all splits of 10 blocks: the deviation of their means over sqrt(10)."""
    rng = np.random.default_rng(0)
    blocks = [moments_of(x) for x in rng.standard_normal((10, 10, 1))]
    found = fd.standard_error_by_halves(blocks, lambda m: m.mean[0], num_splits=5_000)
    means = [block.mean[0] for block in blocks]
    assert found == pytest.approx(np.std(means, ddof=1) / np.sqrt(10), rel=0.05)


@pytest.mark.statistical
def test_the_standard_error_does_not_mind_a_bias_of_n_or_blocks_of_two_sizes():
    """Expectation of SE^2 for a mean of unit variance: 1 / n, here n = 90."""
    rng, squares = np.random.default_rng(0), []
    for _ in range(2000):
        x = rng.standard_normal((90, 1))
        blocks = [moments_of(part) for part in np.split(x, [5, 20, 30, 60, 75])]
        error = fd.standard_error_by_halves(blocks, lambda m: m.mean[0], num_splits=3)
        squares.append(error**2)
    assert np.mean(squares) == pytest.approx(1 / 90, rel=0.06)
    blocks = [moments_of(np.ones((10, 1)))] * 6
    assert fd.standard_error_by_halves(blocks, lambda m: 5 + 3 / m.num) == 0
    with pytest.raises(ValueError, match="needs 4 blocks, not 3"):
        fd.standard_error_by_halves(blocks[:3], lambda m: 0.0)


@functools.cache
def repeats(shift, num=2000, d=4, count=200):
    """FD to a known reference of `count` sets, and SE^2 of 40 of them."""
    rng = np.random.default_rng(0)
    reference = fd.FrechetDistance(gaussian(np.full(d, shift), np.diag([1, 2, 3, 1])))
    found, squares = [], []
    for i in range(count):
        parts = rng.standard_normal((20, num // 20, d))
        blocks = [moments_of(part) for part in parts]
        found.append(reference(fd.merged(*blocks)))
        if i < 40:
            squares.append(fd.standard_error_by_halves(blocks, reference, seed=i) ** 2)
    return np.array(found), np.array(squares)


@pytest.mark.statistical
def test_the_standard_error_is_the_spread_over_repeats():
    """200 sets of 2,000 examples: the spread itself is known to 5 %, SE to 4 %."""
    found, squares = repeats(shift=0.5)
    assert np.sqrt(squares.mean()) == pytest.approx(found.std(ddof=1), rel=0.15)


@pytest.mark.statistical
def test_the_distance_is_too_large_by_a_part_that_falls_as_1_over_n():
    """A perfect model with unit variances: E FD = d / n + d (d + 1) / (4 n).

    The first part is that of the mean. In the second, |S^(1/2) - I|^2, the root differs
    from I by half as much as S, whose variance is 2 / n on the diagonal and 1 / n off it.
    """
    rng, d = np.random.default_rng(0), 3
    reference = fd.FrechetDistance(gaussian(np.zeros(d), np.eye(d)))
    for n in (200, 800):
        draws = rng.standard_normal((600, n, d))
        found = [reference(moments_of(x)) for x in draws]
        assert np.mean(found) * n == pytest.approx(d + d * (d + 1) / 4, rel=0.1)
