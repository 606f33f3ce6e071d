"""3x3 convolutions as matrix products, beside SciPy's, and as adjoints of each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.signal import correlate2d

from diffusion_jax.networks import winograd
from diffusion_jax.networks.convolution import for_platform

RNG = np.random.default_rng(0)
SIZES = [(4, 6), (2, 2), (8, 8)]


def draw(*shape):
    return np.float32(RNG.standard_normal(shape))


def direct(x, kernel):
    """A convolution in float64: correlations of planes for pairs of channels, added up."""
    result = np.zeros((*x.shape[:3], kernel.shape[3]))
    for b, c, k in np.ndindex(len(x), *kernel.shape[2:]):
        plane, taps = x[b, :, :, c].astype(float), kernel[:, :, c, k].astype(float)
        result[b, :, :, k] += correlate2d(plane, taps, mode="same")
    return result


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_convolution(size):
    x, kernel = draw(3, *size, 4), draw(3, 3, 4, 5)
    found = winograd.convolution(x, kernel)
    np.testing.assert_allclose(found, direct(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_its_gradients_are_its_adjoints(size):
    """A convolution is bilinear: <conv(x, k), y> = <x, dx(y, k)> = <k, dk(x, y)>."""
    x, kernel, y = draw(3, *size, 4), draw(3, 3, 4, 5), draw(3, *size, 5)
    expected = np.vdot(direct(x, kernel), y)
    of_x = np.vdot(x.astype(float), winograd.input_gradient(y, kernel))
    of_kernel = np.vdot(kernel.astype(float), winograd.kernel_gradient(x, y))
    size_of = np.linalg.norm(direct(x, kernel)) * np.linalg.norm(y)
    assert of_x == pytest.approx(expected, abs=1e-6 * size_of)
    assert of_kernel == pytest.approx(expected, abs=1e-6 * size_of)


def test_every_entry_of_the_gradients():
    """Gradients of each tap and each pixel, where an adjoint checks one number of all."""
    x, kernel = draw(1, 4, 4, 1), draw(3, 3, 1, 1)
    y = draw(1, 4, 4, 1)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    np.testing.assert_allclose(
        winograd.input_gradient(y, kernel), direct(y, flipped), rtol=1e-5, atol=1e-5
    )
    padded = np.pad(x[0, :, :, 0].astype(float), 1)
    taps = correlate2d(padded, y[0, :, :, 0].astype(float), mode="valid")
    found = winograd.kernel_gradient(x, y)[:, :, 0, 0]
    np.testing.assert_allclose(found, taps, rtol=1e-5, atol=1e-5)


def test_it_rounds_hardly_more_than_the_convolution():
    """The error over 128 channels against float64, in units of the output's spread."""
    x, kernel = draw(2, 16, 16, 128), draw(3, 3, 128, 64)

    def convolution(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    with jax.enable_x64(True):
        exact = np.asarray(convolution(x.astype(float), kernel.astype(float)))
    found = [winograd.convolution(x, kernel), convolution(x, kernel)]
    own, stock = (np.std(np.asarray(y) - exact) / np.std(exact) for y in found)
    assert own < 1e-6 and own < 5 * stock


def test_wide_convolutions_and_their_gradients_are_of_this_form_on_a_cpu():
    def program(channels, platform="cpu"):
        convolution = functools.partial(
            for_platform(platform), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

        def loss(x, kernel):
            return jnp.sum(convolution(x, kernel, (1, 1), "SAME") ** 2)

        x, kernel = jnp.ones((2, 8, 8, channels)), jnp.ones((3, 3, channels, 64))
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in program(64)
    assert "stablehlo.convolution" in program(32)
    assert "stablehlo.convolution" in program(64, "cuda")


@pytest.mark.parametrize(
    ("shape", "taps", "strides", "pads"),
    [
        ((2, 7, 8, 64), 3, (1, 1), ((1, 1), (1, 1))),
        ((2, 8, 7, 64), 3, (1, 1), ((1, 1), (1, 1))),
        ((2, 8, 8, 64), 1, (1, 1), ((0, 0), (0, 0))),
        ((2, 8, 8, 64), 3, (2, 2), ((0, 1), (0, 1))),
        ((2, 8, 8, 64), 3, (1, 1), ((0, 2), (0, 2))),
        ((2, 8, 8, 32), 3, (1, 1), ((1, 1), (1, 1))),
    ],
)
def test_no_other_convolution_is_taken_for_one_of_these(shape, taps, strides, pads):
    kernel = jnp.ones((taps, taps, shape[3], 64))
    assert not winograd.applies(jnp.ones(shape), kernel, strides, pads)
    assert not winograd.applies(
        jnp.ones((2, 8, 8, 64), jnp.bfloat16), kernel, strides, pads
    )
