"""Bilinear resizing of TensorFlow 1, beside a loop over pixels and images that it keeps."""

import numpy as np
import pytest

from diffusion_jax.networks import resizing

RNG = np.random.default_rng(0)


def by_definition(x, height, width):
    """Each output pixel from its four neighbours, in float64."""
    result = np.empty((len(x), height, width, x.shape[3]))
    for i, j in np.ndindex(height, width):
        y, z = i * x.shape[1] / height, j * x.shape[2] / width
        value = 0.0
        for row, column in np.ndindex(2, 2):
            weight = abs(1 - row - y % 1) * abs(1 - column - z % 1)
            k = min(int(y) + row, x.shape[1] - 1)
            m = min(int(z) + column, x.shape[2] - 1)
            value = value + weight * x[:, k, m].astype(float)
        result[:, i, j] = value
    return result


@pytest.mark.parametrize(
    ("size", "new"),
    [((8, 5), (31, 29)), ((32, 32), (37, 48)), ((64, 17), (13, 17)), ((1, 1), (3, 2))],
)
def test_every_pixel_lies_between_its_four_neighbours(size, new):
    x = RNG.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    found = resizing.bilinear(x, new)
    assert found.shape == (2, *new, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, by_definition(x, *new), rtol=0, atol=5e-3)


def test_the_first_pixel_stays_and_the_last_ones_are_repeated():
    """Twice the size: 0, 1/2, 1, 1 for pixels 0 and 1; half a pixel's offset would give
    0, 1/4, 3/4, 1.
    """
    x = np.array([0, 1], np.uint8).reshape(1, 1, 2, 1)
    found = resizing.bilinear(x, (1, 4))
    np.testing.assert_array_equal(found[0, 0, :, 0], [0, 0.5, 1, 1])


def test_what_it_must_not_change():
    """Its own size, one colour, and a plane's slope where nothing is repeated."""
    x = RNG.integers(0, 256, (1, 299, 299, 1), dtype=np.uint8)
    np.testing.assert_array_equal(resizing.bilinear(x, (299, 299)), x)
    plain = np.full((1, 7, 9, 3), 200, np.uint8)
    np.testing.assert_array_equal(resizing.bilinear(plain, (299, 299)), 200)
    slope = np.arange(16, dtype=np.uint8)[None, :, None, None]
    found = resizing.bilinear(slope, (64, 1))[0, :, 0, 0]
    np.testing.assert_array_equal(found[:61], np.arange(61) / 4)
