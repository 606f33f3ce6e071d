"""The terms of the bound against integration, 50 digits, and each other's limits."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffusion_jax.diffusion import (
    forward_process,
    oracle,
    parameterization,
    variational_bound,
)
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.model import Model, Prediction
from diffusion_jax.diffusion.noise_level import noise_level_at
from diffusion_jax.diffusion.schedules import linear_betas, make_schedule

SCHEDULE = make_schedule(linear_betas(1000))
LEVELS = jnp.arange(256) / 127.5 - 1


def terms_of(process, variance, x0, x_t, t, predicted_x0, variance_output=None):
    """Terms of a network with this predicted x_0 and this variance output."""
    model = Model(process, "x0", variance)
    prediction = Prediction(model, x_t, t, predicted_x0, variance_output)
    return variational_bound.variational_terms(prediction, x0)


@pytest.mark.parametrize(
    ("mean1", "log1", "mean2", "log2"),
    [(0.3, -2.0, -0.5, -1.0), (0.0, 0.5, 0.0, -0.5), (1.0, -1.0, 1.2, -1.0)],
)
def test_normal_kl_is_the_integral(mean1, log1, mean2, log2):
    grid = np.linspace(-20, 20, 400_001)

    def log_density(mean, log_variance):
        return -0.5 * (log_variance + math.log(2 * math.pi)) - (grid - mean) ** 2 / (
            2 * math.exp(log_variance)
        )

    p, q = log_density(mean1, log1), log_density(mean2, log2)
    integral = (np.exp(p) * (p - q)).sum() * (grid[1] - grid[0])
    found = variational_bound.normal_kl(
        *(jnp.float32(x) for x in (mean1, log1, mean2, log2))
    )
    assert float(found) == pytest.approx(integral, rel=1e-5)


def test_normal_kl_of_equal_variances_keeps_its_digits():
    """The divergence (mean1 - mean2)^2 / (2 variance), also where it is far below 1e-7."""
    found = variational_bound.normal_kl(
        jnp.float32(1e-6), jnp.float32(-3), jnp.float32(0), jnp.float32(-3)
    )
    assert float(found) == pytest.approx(0.5e-12 * math.exp(3), rel=1e-5)


@pytest.mark.parametrize("log_variance", [-9.8, -4.0, 0.0])
@pytest.mark.parametrize("mean", [-1.2, -0.37, 0.0, 0.999])
def test_the_bins_of_all_levels_hold_the_whole_mass(mean, log_variance):
    log_mass = variational_bound.discretized_gaussian_log_likelihood(
        LEVELS, jnp.full(256, mean), jnp.full(256, log_variance)
    )
    assert np.exp(np.asarray(log_mass, np.float64)).sum() == pytest.approx(1, abs=3e-5)


def test_bins_are_those_of_the_paper_to_50_digits():
    """Bins of +-1/255, open at -1 and 1, at least 1e-12; means on both sides of a level."""
    mpmath.mp.dps = 50
    for k, mean, log_variance in (
        (0, -0.9, -6.0),
        (255, 0.95, -6.0),
        (100, -0.2, -5.0),
        (100, -0.35, -7.0),
        (130, 0.3, -6.5),
        (128, -0.2, -7.5),
        (1, -1.0, -3.0),
        (254, 1.0, -3.0),
        (200, -0.9, -9.8),
    ):
        x, std = (
            mpmath.mpf(k) / mpmath.mpf("127.5") - 1,
            mpmath.exp(mpmath.mpf(log_variance) / 2),
        )
        center = mpmath.mpf(float(np.float32(mean)))
        upper = mpmath.ncdf((x - center + mpmath.mpf(1) / 255) / std) if k < 255 else 1
        lower = mpmath.ncdf((x - center - mpmath.mpf(1) / 255) / std) if k > 0 else 0
        expected = float(mpmath.log(max(upper - lower, mpmath.mpf("1e-12"))))
        found = variational_bound.discretized_gaussian_log_likelihood(
            LEVELS[k], jnp.float32(mean), jnp.float32(log_variance)
        )
        assert float(found) == pytest.approx(expected, rel=2e-4, abs=1e-5), (k, mean)


def test_gradients_are_finite_at_every_level_and_far_away():
    def total(mean, log_variance):
        return variational_bound.discretized_gaussian_log_likelihood(
            LEVELS, mean, log_variance
        ).sum()

    for mean in (-300.0, -1.0, 0.0, 1.0, 300.0):
        for log_variance in (-30.0, -9.8, 0.0):
            for gradient in jax.grad(total, argnums=(0, 1))(
                jnp.full(256, mean), jnp.full(256, log_variance)
            ):
                assert np.isfinite(gradient).all()


def test_a_term_is_the_mean_divergence_in_bits():
    """One image of two pixels, t = 500, a mean that is off by a known amount."""
    x0 = LEVELS[jnp.array([[10, 200]])]
    x_t = jnp.array([[0.3, -0.6]])
    t = jnp.array([500])
    off = np.array([[0.1, -0.3]])
    weight = SCHEDULE.posterior_mean_coef1[500] ** 2 / (
        2 * SCHEDULE.posterior_variance[500]
    )
    found = terms_of(
        SCHEDULE, "fixed_small", x0, x_t, t, x0 + jnp.asarray(off, jnp.float32)
    )
    expected = weight * (off**2).mean() / math.log(2)
    assert found.shape == (1,)
    assert float(found[0]) == pytest.approx(expected, rel=1e-4)


def test_the_first_term_is_the_likelihood_of_the_bins():
    x0, t = LEVELS[jnp.array([[0, 100, 255]])], jnp.array([0])
    guess = x0 + 0.004
    found = terms_of(SCHEDULE, "fixed_large", x0, x0, t, guess)
    log_variance = SCHEDULE.posterior_log_variance_clipped[1]
    expected = -variational_bound.discretized_gaussian_log_likelihood(
        x0, guess, jnp.full_like(x0, log_variance)
    ).mean()
    assert float(found[0]) == pytest.approx(float(expected) / math.log(2), rel=1e-4)


def test_a_perfect_reverse_step_costs_nothing():
    """A known x_0 and beta-tilde as variance: p = q, so every L_{t-1} is 0."""
    x0 = LEVELS[jnp.arange(0, 250, 50)][:, None]
    t = jnp.array([1, 10, 100, 500, 999])
    x_t = forward_process.q_sample(SCHEDULE, x0, t, jnp.ones_like(x0))
    for kind, output in (("fixed_small", None), ("learned", -jnp.ones_like(x0))):
        found = terms_of(SCHEDULE, kind, x0, x_t, t, x0, output)
        np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize("t", [1, 30, 400, 999])
def test_no_variance_costs_less_than_the_exact_one(t):
    """The mean of L_{t-1} over x_0 and x_t is least at E[(x_{t-1} - mean)^2 | x_t].

    For a Gaussian the mean cost is the mutual information that is left, in closed form.
    """
    data = oracle.gaussian([0.2], [0.1])
    n = 4000
    x0 = oracle.sample(data, jax.random.key(0), n)
    steps = jnp.full(n, t)
    x_t = forward_process.q_sample(
        SCHEDULE, x0, steps, jax.random.normal(jax.random.key(1), x0.shape)
    )
    guess, _ = oracle.x0_mean_variance(data, x_t, noise_level_at(SCHEDULE, steps))
    model = oracle.optimal_model(data, SCHEDULE, "x0", "learned")
    between = model.predict(None, x_t, steps).variance_output

    def cost(shift):
        terms = terms_of(SCHEDULE, "learned", x0, x_t, steps, guess, between + shift)
        return np.asarray(terms, np.float64)

    exact = cost(0.0)
    share, before = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[t - 1]
    # I(x_0; x_{t-1}) - I(x_0; x_t), with I = ln(1 + SNR variance) / 2.
    information = [0.5 * math.log2(1 + a / (1 - a) * 0.1) for a in (before, share)]
    expected = information[0] - information[1]
    assert abs(exact.mean() - expected) < 5 * exact.std() / math.sqrt(n) + 1e-7
    low, high = (b[t] for b in parameterization.log_variance_bounds(SCHEDULE))
    for change in (-0.2, 0.2):  # Changes of the log variance.
        other = cost(2 * change / (high - low)).mean()
        assert other > exact.mean()


def test_the_prior_term_is_the_integral():
    """L_T of a process that ends halfway to noise, and of the linear one (paper: 1e-5)."""
    halfway = make_schedule(np.array([0.1, 0.3, 0.5]))
    for schedule in (halfway, make_schedule(linear_betas(1000))):
        share = schedule.alphas_cumprod[-1]
        for x0 in (-1.0, 0.25, 0.9):
            mean, variance = mpmath.sqrt(share) * x0, 1 - mpmath.mpf(share)

            def integrand(x, mean=mean, variance=variance):
                log_q = -((x - mean) ** 2) / (2 * variance) - mpmath.log(variance) / 2
                log_p = -(x**2) / 2
                q = mpmath.exp(log_q) / mpmath.sqrt(2 * mpmath.pi)
                return q * (log_q - log_p)

            expected = mpmath.quad(integrand, [-12, -4, 0, 4, 12]) / mpmath.log(2)
            found = variational_bound.prior_term(schedule, jnp.full((2, 3), x0))
            np.testing.assert_allclose(found, float(expected), rtol=2e-5)


def test_a_term_is_of_the_clipped_prediction_and_the_variance_that_the_network_says():
    """Terms of a network of known output, at a draw of known noise."""
    schedule = make_schedule(linear_betas(50))
    levels = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1))
    x0 = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    t = jnp.array([0, 20, 49])
    said = jnp.asarray(np.random.default_rng(1).normal(size=x0.shape) * 3, jnp.float32)

    def apply_fn(params, x_t, t, cond, *, train, key):
        assert not train and key is None
        return jnp.concatenate([said, 0.3 * said], axis=-1)[..., : params["channels"]]

    x_t = forward_process.q_sample(schedule, x0, t, noise)
    for clip in (True, False):
        for variance, between in (("learned", 0.3 * said), ("fixed_large", None)):
            model = Model(schedule, "x0", variance, apply_fn)
            params = {"channels": 2 if variance == "learned" else 1}
            expected = np.clip(said, -1, 1) if clip else said
            prediction = model.predict(params, x_t, t)
            np.testing.assert_array_equal(prediction.clipped_x0(clip), expected)
            if variance == "learned":
                np.testing.assert_array_equal(prediction.variance_output, between)
            else:
                assert prediction.variance_output is None
            term = variational_bound.bound_term(
                model, params, Batch(x0), Draw(t, noise), clip=clip
            )
            errors = np.square(expected - np.asarray(x0)).reshape(3, -1).mean(axis=1)
            np.testing.assert_allclose(term.squared_error, errors, rtol=1e-5)
            guess = jnp.asarray(expected)
            bits = terms_of(schedule, variance, x0, x_t, t, guess, between)
            np.testing.assert_allclose(term.bits, bits, rtol=1e-6)
