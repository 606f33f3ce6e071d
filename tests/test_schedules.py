"""Schedules against published and independently computed values."""

import math
from fractions import Fraction

import numpy as np
import pytest

from diffusion_jax.schedules import cosine_betas, linear_betas, make_schedule


@pytest.fixture(scope="module")
def linear():
    return make_schedule(linear_betas(1000))


def test_linear_schedule_has_the_known_values(linear):
    # Computed from the definition, elsewhere.
    np.testing.assert_allclose(linear.alphas_cumprod[[0, 499]], [0.9999, 0.0785872429])
    np.testing.assert_allclose(linear.alphas_cumprod[999], 4.0358298e-5, rtol=1e-7)
    np.testing.assert_allclose(linear.sqrt_alphas_cumprod[999], 0.0063528, rtol=1e-5)
    np.testing.assert_allclose(linear.posterior_variance[1], 5.45318766e-5, rtol=1e-8)
    np.testing.assert_allclose(linear.posterior_variance[999], 0.01999998, rtol=1e-6)
    log_snr = np.log(linear.alphas_cumprod / (1 - linear.alphas_cumprod))
    np.testing.assert_allclose(log_snr[[0, 999]], [9.21024, -10.11767], atol=1e-5)


def test_posterior_log_variance_is_finite_at_the_first_step(linear):
    log_variance = linear.posterior_log_variance_clipped
    np.testing.assert_allclose(log_variance[[0, 1]], [-9.816725] * 2, atol=1e-6)
    np.testing.assert_allclose(log_variance[2:], np.log(linear.posterior_variance[2:]))
    assert linear.posterior_variance[0] == 0


def test_cosine_schedule_has_the_known_values():
    betas = cosine_betas(1000)
    np.testing.assert_allclose(betas[[0, -2]], [4.13e-5, 0.749999], rtol=2e-3)
    assert betas[-1] == 0.999 and (betas[:-1] < 0.999).all()
    np.testing.assert_allclose(
        make_schedule(betas).alphas_cumprod[-1], 2.42877e-9, rtol=1e-5
    )
    last = make_schedule(cosine_betas(4000)).alphas_cumprod[-1]
    np.testing.assert_allclose(1 / math.sqrt(last), 81165, rtol=1e-5)


def test_cosine_alphas_cumprod_follow_the_squared_cosine():
    alphas_cumprod = make_schedule(cosine_betas(50)).alphas_cumprod
    f = [math.cos((i / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(51)]
    np.testing.assert_allclose(alphas_cumprod[:-1], np.array(f[1:-1]) / f[0], rtol=1e-12)


def test_tables_are_exact_in_rational_arithmetic():
    betas = [Fraction(1, 10), Fraction(1, 5), Fraction(1, 2), Fraction(3, 4)]
    schedule = make_schedule(np.array(betas, float))
    share = Fraction(1)
    for t, beta in enumerate(betas):
        before, share = share, share * (1 - beta)
        assert schedule.alphas_cumprod[t] == pytest.approx(float(share), rel=1e-15)
        assert schedule.alphas_cumprod_prev[t] == pytest.approx(float(before), rel=1e-15)
        # Bayes: precision of x_{t-1} is that of q(x_{t-1}|x_0) plus that of q(x_t|.).
        if before != 1:
            precision = 1 / (1 - before) + (1 - beta) / beta
            assert schedule.posterior_variance[t] == pytest.approx(float(1 / precision))


def test_tables_are_float64(linear):
    assert all(table.dtype == np.float64 and len(table) == 1000 for table in linear)
    # float32 would be off by 1.7e-4 here.
    assert linear.sqrt_one_minus_alphas_cumprod[0] ** 2 == pytest.approx(1e-4, rel=1e-11)


def test_the_prior_of_the_linear_schedule_matches_the_paper(linear):
    """L_T in bits per dimension, for data of mean square 1/4 and 1 (the paper: 1e-5)."""
    share = linear.alphas_cumprod[-1]
    for mean_square, expected in ((0.25, 7.28e-6), (1.0, 2.911e-5)):
        nats = 0.5 * (share * mean_square - share - math.log1p(-share))
        assert nats / math.log(2) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("betas", "said"),
    [
        ([0.1], "num_timesteps (1) must be at least 2"),
        ([0.1, 0.0], "betas[1] (0.0)"),
        ([1.0, 0.1], "betas[0] (1.0)"),
        ([0.1, float("nan")], "betas[1] (nan)"),
        ([[0.1, 0.2]], "one axis"),
    ],
)
def test_bad_betas_are_refused(betas, said):
    with pytest.raises(ValueError) as error:
        make_schedule(np.array(betas))
    assert said in str(error.value)


def test_bad_ends_of_the_linear_schedule_are_refused():
    with pytest.raises(ValueError, match=r"beta_end \(1.5\)"):
        linear_betas(10, beta_end=1.5)
    with pytest.raises(ValueError, match=r"beta_start \(0\)"):
        linear_betas(10, beta_start=0)
    with pytest.raises(ValueError, match=r"num_timesteps \(1\)"):
        cosine_betas(1)
