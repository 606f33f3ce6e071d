"""Noise levels: roots to the last bit, and reading a process at whole and real times."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.noise_level import (
    NoiseLevel,
    noise_level,
    noise_level_at,
    variance_preserving,
)
from diffusion_jax.diffusion.schedules import cosine_betas, make_schedule

T = 100


@pytest.fixture(scope="module", params=schedules.SCHEDULES)
def process(request):
    betas = schedules.named_betas(request.param, T, 1e-3, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", schedules.OddBetas)
        return make_schedule(betas)


def test_a_noise_level_keeps_its_coefficients_to_the_last_bit():
    """sqrt(x^2) is x in floating point; alphas_cumprod is alpha^2 as it stands."""
    rng = np.random.default_rng(0)
    alpha, sigma = rng.uniform(size=1000), 80 * rng.uniform(size=1000)
    tiny, huge = 10 ** rng.uniform(-150, 0, 1000), 10 ** rng.uniform(0, 150, 1000)
    for a, s in ((alpha, sigma), (tiny, huge), (huge, tiny)):
        level = noise_level(a, s)
        np.testing.assert_array_equal(level.alpha, a)
        np.testing.assert_array_equal(level.sigma, s)
    share = make_schedule(cosine_betas(1000)).alphas_cumprod
    level = variance_preserving(share)
    np.testing.assert_array_equal(level.alpha_squared, share)
    np.testing.assert_array_equal(level.sigma_squared, 1 - share)
    assert (level.alpha_squared + level.sigma_squared == 1).all()


def test_the_coefficients_are_of_the_kind_that_the_squares_are():
    """NumPy arrays stay on the host in float64, and device arrays on the device."""
    square = np.array([0.25, 0.5])
    on_host = NoiseLevel(square, 1 - square)
    on_device = NoiseLevel(*(jnp.asarray(s, jnp.float32) for s in on_host))
    for name in ("alpha", "sigma"):
        found = getattr(on_host, name)
        assert isinstance(found, np.ndarray) and found.dtype == np.float64
        found = getattr(on_device, name)
        assert isinstance(found, jax.Array) and found.dtype == jnp.float32
    assert noise_level(1.0, 0.0).alpha == 1 and noise_level(1.0, 0.0).sigma == 0
    wide = on_device.reshape(2, 1)
    assert wide.alpha.shape == wide.sigma.shape == (2, 1)
    np.testing.assert_array_equal(wide.alpha[:, 0], on_device.alpha)
    np.testing.assert_array_equal(wide.sigma[:, 0], on_device.sigma)


def test_at_whole_timesteps_the_level_is_the_process_rounded_once(process):
    t, share = jnp.arange(T), process.alphas_cumprod
    np.testing.assert_array_equal(schedules.alphas_cumprod_at(process, np.arange(T)), share)
    level = noise_level_at(process, t)
    np.testing.assert_array_equal(level.alpha_squared, share.astype(np.float32))
    np.testing.assert_array_equal(level.sigma_squared, (1 - share).astype(np.float32))
    alone = noise_level_at(process, jnp.int32(7))
    assert alone.alpha.shape == () and alone.alpha == level.alpha[7]
    with jax.enable_x64(True):
        level = noise_level_at(process, t, jnp.float64)
        np.testing.assert_array_equal(level.alpha_squared, share)
        np.testing.assert_array_equal(level.sigma_squared, 1 - share)


def test_at_real_timesteps_the_level_is_that_of_the_schedule(process):
    """Levels in float32 and float64, against `schedules.alphas_cumprod_at`.

    There is no signal between the last timestep and the one before if the last has none.
    """
    times = np.linspace(0, T - 1, 4 * (T - 1) + 1)
    share = schedules.alphas_cumprod_at(process, times)
    level = jax.jit(lambda t: noise_level_at(process, t))(jnp.asarray(times, jnp.float32))
    assert level.alpha.dtype == level.sigma.dtype == jnp.float32
    np.testing.assert_allclose(level.alpha_squared, share, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(level.sigma_squared, 1 - share, rtol=1e-5)
    with jax.enable_x64(True):
        level = noise_level_at(process, jnp.asarray(times), jnp.float64)
        np.testing.assert_allclose(level.alpha_squared, share, rtol=1e-12)
        np.testing.assert_allclose(level.sigma_squared, 1 - share, rtol=1e-9)


@pytest.mark.parametrize("t", [-1, T, T + 5, -1.0, -0.01, T - 0.99, float(T), np.nan])
def test_a_time_out_of_range_has_no_level(process, t):
    """A time out of range reads as nan; others of the same batch keep their levels."""
    times = jnp.array([0, t, T - 1], jnp.int32 if isinstance(t, int) else jnp.float32)

    def read(t):
        return noise_level_at(process, t)

    for level in (read(times), jax.jit(read)(times)):
        for found in (*level, level.alpha, level.sigma):
            assert np.isnan(found).tolist() == [False, True, False]
