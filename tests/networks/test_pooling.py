"""Pools of 3x3, beside loops over pixels."""

import numpy as np
import pytest

from diffusion_jax.networks import pooling

RNG = np.random.default_rng(0)


def windows(x, stride, inside):
    """Pixels of each window that are there, by the place of its result."""
    first = 1 if inside else 0
    last = [n - first for n in x.shape[1:3]]
    for i in range(first, last[0], stride):
        for j in range(first, last[1], stride):
            window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            place = (i - first) // stride, (j - first) // stride
            yield place, window


@pytest.mark.parametrize("size", [(5, 4), (8, 8), (2, 3)])
def test_average_of_the_pixels_that_are_there(size):
    x = np.float32(RNG.standard_normal((2, *size, 3)))
    found = np.asarray(pooling.average(x))
    assert found.shape == x.shape
    for (i, j), window in windows(x, 1, inside=False):
        np.testing.assert_allclose(found[:, i, j], window.mean((1, 2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (8, 6), (3, 3)])
def test_largest(size, stride):
    """Negative images: a border of zeros would be the largest."""
    x = -1 - np.float32(RNG.random((2, *size, 3)))
    found = np.asarray(pooling.largest(x, stride))
    seen = np.full(found.shape, np.nan, np.float32)
    for (i, j), window in windows(x, stride, inside=stride == 2):
        seen[:, i, j] = window.max((1, 2))
    np.testing.assert_array_equal(found, seen)
