"""Nearest neighbours against brute force, and models that copy and that do not."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffusion_jax.evaluation import feature_blocks
from diffusion_jax.evaluation.nearest import memorisation, nearest, squared_distances


def normal(n, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("block", [4, 7, 1000])
def test_the_nearest_is_that_of_brute_force_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(feature_blocks, "BLOCK", block)
    x, y = normal(23), normal(230, seed=1)
    distances = cdist(x, y)
    found = nearest(x, y)
    np.testing.assert_array_equal(found.position, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-12)


def test_the_blocks_are_the_squared_distances(monkeypatch):
    monkeypatch.setattr(feature_blocks, "BLOCK", 8)
    x, y = normal(20) + 1e3, normal(11, seed=1) + 1e3
    found = np.full((20, 11), np.nan)
    for rows, columns, squares in squared_distances(x, y):
        assert squares.size <= 64
        found[rows, columns] = squares
    np.testing.assert_allclose(found, cdist(x, y, "sqeuclidean"), rtol=1e-9)


@pytest.mark.parametrize("block", [20, 1000])
def test_copies_are_at_0_far_from_the_origin_too_and_the_first_is_named(block, monkeypatch):
    monkeypatch.setattr(feature_blocks, "BLOCK", block)
    train = np.float32(normal(50, d=300) + 1e3)
    train = np.concatenate([train, train])
    found = nearest(train[[7, 60, 31]], train)
    np.testing.assert_array_equal(found.distance, 0)
    np.testing.assert_array_equal(found.position, [7, 10, 31])


def test_what_differs_by_more_than_its_rounding_is_not_a_copy():
    """A step of 1e-4 in one of 300 features of deviation 1."""
    train = normal(50, d=300)
    near = train.copy()
    near[:, 5] += 1e-4
    np.testing.assert_allclose(nearest(near, train).distance, 1e-4, rtol=1e-3)


def test_a_model_that_copies_and_a_perfect_one():
    """Copies: 1, 1, 0. Another draw of the distribution: 1/2, 0.01 and 1."""
    train = normal(500)
    held_out = nearest(normal(2000, seed=1), train).distance
    copies = memorisation(nearest(train[:100], train).distance, held_out)
    assert copies == ((1, 0), (1, 0), (0, 0))
    perfect = memorisation(nearest(normal(2000, seed=2), train).distance, held_out)
    for found, exact in zip(perfect, (0.5, 0.01, 1), strict=True):
        assert found.value == pytest.approx(exact, abs=3 * found.standard_error)
        assert 0 < found.standard_error < 0.03


def test_the_figures_by_hand():
    """Held out 1 .. 101: the median is 51, and 1 % are below 2."""
    held_out = np.arange(1.0, 102)
    found = memorisation(np.array([1.5, 0.5, 2.005, 51.2]), held_out, num_resamples=2)
    values = [figure.value for figure in found]
    assert values == pytest.approx([0.75, 0.5, 1.7525 / 51], rel=1e-14)


@pytest.mark.statistical
def test_the_standard_errors_are_the_spread_over_repeats():
    """Uniform distances, of which half are copies with noise: 200 repeats of 300 each."""
    rng = np.random.default_rng(0)
    values, errors = [], []
    for i in range(200):
        samples = np.where(rng.uniform(size=300) < 0.5, 0.7, 1) * rng.uniform(size=300)
        found = memorisation(samples, rng.uniform(size=300), num_resamples=50, seed=i)
        values.append([figure.value for figure in found])
        errors.append([figure.standard_error for figure in found])
    spread = np.std(values, axis=0, ddof=1)
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(rms[[0, 2]], spread[[0, 2]], rtol=0.2)
    np.testing.assert_allclose(rms[1], spread[1], rtol=0.5)  # 3 held-out examples.


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="an empty set has no nearest"):
        nearest(normal(3), normal(0))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 2\) have no distances"):
        nearest(normal(3), normal(3, d=2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        nearest(normal(3), np.full((3, 4), np.inf))
    for samples in ([1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="2 distances or more of each set, and no NaN"):
            memorisation(np.array(samples), np.ones(5))
    with pytest.raises(ValueError, match="half of the held-out examples are in the"):
        memorisation(np.ones(5), np.zeros(5))
