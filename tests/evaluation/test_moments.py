"""Moments in batches against those of the whole set, and of exact integers."""

import functools

import numpy as np
import pytest

from diffusion_jax.evaluation.moments import Moments, merged, moments_of


def batches(mean=0.0, dtype=np.float32):
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((5, 5))
    sizes = (1, 7, 256, 40)
    return [(rng.standard_normal((n, 5)) @ mixing + mean).astype(dtype) for n in sizes]


def test_a_stream_of_batches_has_the_moments_of_the_whole():
    """Against NumPy's own mean and covariance of all examples at once."""
    parts = batches()
    every = np.concatenate(parts).astype(np.float64)
    total = functools.reduce(merged, map(moments_of, parts))
    assert total.num == len(every)
    np.testing.assert_allclose(total.mean, every.mean(axis=0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(total.covariance, np.cov(every.T), rtol=1e-12)
    assert {total.mean.dtype, total.scatter.dtype} == {np.dtype(np.float64)}


@pytest.mark.parametrize("mean", [1e6, -1e8])
def test_a_mean_far_from_0_costs_the_covariance_no_digits(mean):
    """Integers around a mean: each mean and each deviation is exact in float64."""
    around = np.array([[-1.0, 2.0], [3.0, 0.0], [1.0, -2.0], [-3.0, 0.0]])
    parts = [moments_of(around[:2] + mean), moments_of(around[2:] + mean)]
    total = merged(*parts)
    np.testing.assert_array_equal(total.mean, [mean, mean])
    np.testing.assert_allclose(total.scatter, [[20.0, -4.0], [-4.0, 8.0]], rtol=1e-14)


def test_float32_batches_far_from_0_keep_the_digits_of_float64():
    parts = batches(mean=3e4)
    every = np.concatenate(parts).astype(np.float64) - 3e4
    total = functools.reduce(merged, map(moments_of, parts))
    np.testing.assert_allclose(total.covariance, np.cov(every.T), rtol=1e-10)


def test_the_sets_may_be_merged_at_once_or_in_any_order():
    parts = [moments_of(part) for part in batches(mean=100.0)]
    at_once = merged(*parts)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        one_by_one = functools.reduce(merged, [parts[i] for i in order])
        assert one_by_one.num == at_once.num == 304
        np.testing.assert_allclose(one_by_one.mean, at_once.mean, rtol=1e-14)
        np.testing.assert_allclose(one_by_one.scatter, at_once.scatter, rtol=1e-11)


def test_the_union_of_one_set_is_the_set():
    part = moments_of(batches()[2])
    same = merged(part)
    np.testing.assert_array_equal(same.scatter, part.scatter)
    assert same is not part and same.scatter is not part.scatter


def test_what_has_no_moments_is_refused():
    with pytest.raises(ValueError, match=r"examples \[N, D\], not of \(0, 3\)"):
        moments_of(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"examples \[N, D\], not of \(3,\)"):
        moments_of(np.zeros(3))
    with pytest.raises(ValueError, match="2 examples or more, not 1"):
        _ = moments_of(np.zeros((1, 3))).covariance
    two, three = (Moments(1, np.zeros(d), np.zeros((d, d))) for d in (2, 3))
    with pytest.raises(ValueError, match=r"dimensions \[2, 3\] have no common"):
        merged(two, three)
    with pytest.raises(ValueError, match=r"dimensions \[\] have no common"):
        merged()
