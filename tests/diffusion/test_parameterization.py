"""Forms of a prediction: eps, x0, v, score against one another and closed forms."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import forward_process, parameterization, schedules
from diffusion_jax.diffusion.model import Model, Prediction, p_mean_log_variance
from diffusion_jax.diffusion.noise_level import variance_preserving
from diffusion_jax.diffusion.schedules import make_schedule
from helpers import SCHEDULES

T = 1000
KINDS = ("eps", "x0", "v", "score")


def target(process, kind, x0, t, noise):
    return Model(process, kind).target(x0, t, noise)


def reverse_step(process, variance, x0, x_t, t, variance_output=None):
    """Mean and log variance of the reverse step, with x0 as the prediction."""
    model = Model(process, "x0", variance)
    return p_mean_log_variance(Prediction(model, x_t, t, x0, variance_output))


def truth(schedule, x_t, x0, t, kind):
    """The true form of this kind in float64, from x_t and x_0 alone, by the definitions."""
    x_t, x0 = np.asarray(x_t, np.float64), np.asarray(x0, np.float64)
    share = np.array([np.prod(1 - schedule.betas[: s + 1]) for s in np.asarray(t)])
    share = share.reshape((-1,) + (1,) * (x_t.ndim - 1))
    eps = (x_t - np.sqrt(share) * x0) / np.sqrt(1 - share)
    return {
        "x0": x0,
        "eps": eps,
        "v": np.sqrt(share) * eps - np.sqrt(1 - share) * x0,
        "score": -eps / np.sqrt(1 - share),
    }[kind]


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(KINDS, 2)))
def test_a_conversion_is_exact_to_the_rounding_it_cannot_avoid(
    schedule, images, source, target
):
    """Errors of the conversions, by the module's docstring, against float64."""
    x0, t, noise = images
    x_t = forward_process.q_sample(schedule, x0, t, noise)
    # What is given is rounded to float32 and then taken as exact; the truth follows it.
    if source == "x0":
        exact_x0 = x0
    else:
        given = jnp.asarray(truth(schedule, x_t, x0, t, source), jnp.float32)
        share = np.array([np.prod(1 - schedule.betas[: s + 1]) for s in np.asarray(t)])
        share = share.reshape(-1, 1, 1, 1)
        wide, wide_x = np.asarray(given, np.float64), np.asarray(x_t, np.float64)
        if source == "v":
            exact_x0 = np.sqrt(share) * wide_x - np.sqrt(1 - share) * wide
        else:
            eps = wide if source == "eps" else -np.sqrt(1 - share) * wide
            exact_x0 = (wide_x - np.sqrt(1 - share) * eps) / np.sqrt(share)
    given = x0 if source == "x0" else given
    convert = getattr(parameterization, f"{target}_from_{source}")
    found = np.asarray(convert(schedule, x_t, t, given), np.float64)
    error = np.abs(found - truth(schedule, x_t, exact_x0, t, target)).max(axis=(1, 2, 3))
    ulp = 2.0**-23 * float(jnp.abs(x_t).max())
    signal = schedule.sqrt_alphas_cumprod[np.asarray(t)]
    sigma = schedule.sqrt_one_minus_alphas_cumprod[np.asarray(t)]
    bound = {
        ("v", "x0"): 1e-6,
        ("v", "eps"): 1e-6,
        ("x0", "score"): 4 * ulp / sigma**2,
        ("x0", "eps"): 4 * ulp / sigma,
        ("x0", "v"): 4 * ulp / sigma,
        ("eps", "score"): 4 * ulp / sigma,
        ("v", "score"): 4 * ulp / sigma,
        ("score", "eps"): 4 * ulp / sigma,
    }.get((source, target), 4 * ulp / signal)
    assert (error <= bound).all(), error / bound


def test_v_and_its_inverses(schedule, images):
    """v is a rotation of (x_0, eps): back and forth costs no precision at any t."""
    x0, t, noise = images
    x_t = forward_process.q_sample(schedule, x0, t, noise)
    v = target(schedule, "v", x0, t, noise)
    chex.assert_trees_all_close(
        parameterization.x0_from_v(schedule, x_t, t, v), x0, atol=1e-6
    )
    chex.assert_trees_all_close(
        parameterization.eps_from_v(schedule, x_t, t, v), noise, atol=1e-6
    )


def test_x0_from_prediction_undoes_prediction_target(schedule, images):
    x0, t, noise = images
    t = jnp.minimum(t, 499)  # Where eps determines x_0 well.
    x_t = forward_process.q_sample(schedule, x0, t, noise)
    for kind in KINDS:
        wanted = target(schedule, kind, x0, t, noise)
        found = parameterization.converted(schedule, kind, "x0", x_t, t, wanted)
        chex.assert_trees_all_close(found, x0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_x0_and_v_are_lines_of_x_t_and_the_prediction(schedule, kind):
    """Coefficients in float64 on the host, by the definitions of eps, v and score."""
    share = np.cumprod(1 - schedule.betas)
    x0, noise = 0.3, -1.7
    x_t = np.sqrt(share) * x0 + np.sqrt(1 - share) * noise
    v = np.sqrt(share) * noise - np.sqrt(1 - share) * x0
    said = {
        "eps": np.full(T, noise),
        "x0": np.full(T, x0),
        "v": v,
        "score": -noise / np.sqrt(1 - share),
    }[kind]
    coefficients = {
        parameterization.x0_coefficients: np.full(T, x0),
        parameterization.v_coefficients: v,
    }
    for function, expected in coefficients.items():
        a, b = function(kind, variance_preserving(share))
        assert a.dtype == b.dtype == np.float64 and a.shape == b.shape == (T,)
        np.testing.assert_allclose(a * x_t + b * said, expected, rtol=1e-9)


def test_v_is_the_velocity_along_the_arc():
    """v = dx/dphi where x_t = cos(phi) x_0 + sin(phi) eps (Salimans & Ho, appendix D)."""
    schedule = SCHEDULES["linear"]
    x0, noise = jnp.array([[0.7]]), jnp.array([[-1.3]])
    phi = np.arccos(schedule.sqrt_alphas_cumprod)
    for t in (100, 500, 900):
        ends = [
            forward_process.q_sample(schedule, x0, jnp.array([s]), noise)
            for s in (t - 1, t + 1)
        ]
        velocity = (ends[1] - ends[0]) / (phi[t + 1] - phi[t - 1])
        v = target(schedule, "v", x0, jnp.array([t]), noise)
        np.testing.assert_allclose(v, velocity, atol=5e-3)


def test_the_score_is_the_gradient_of_the_log_density(schedule):
    """The score grad log N(x_t; sqrt(a) x_0, 1 - a), by finite differences in float64."""
    x0 = np.array([[0.7, -0.2]])
    for t in (0, 300, 999):
        share = np.prod(1 - schedule.betas[: t + 1])
        x_t = np.sqrt(share) * x0 + np.sqrt(1 - share) * np.array([[1.2, -0.4]])
        h = 1e-5 * np.sqrt(1 - share)

        def log_density(x, share=share):
            return -((x - np.sqrt(share) * x0) ** 2) / (2 * (1 - share))

        slope = (log_density(x_t + h) - log_density(x_t - h)) / (2 * h)
        found = parameterization.score_from_x0(
            schedule, jnp.asarray(x_t, jnp.float32), jnp.array([t]), jnp.asarray(x0)
        )
        np.testing.assert_allclose(found, slope, rtol=2e-3 if t == 0 else 1e-5)


# Zero terminal SNR


@pytest.mark.parametrize("source", ["eps", "score"])
@pytest.mark.parametrize("target", ["x0", "v"])
def test_where_nothing_is_left_of_x0_the_noise_does_not_tell_it(source, target):
    schedule = make_schedule(schedules.jsd_betas(4))
    convert = getattr(parameterization, f"{target}_from_{source}")
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="alphas_cumprod is 0, or nearly, at t = 3"):
        convert(schedule, x, jnp.array([1, 3]), x)
    assert np.isfinite(convert(schedule, x, jnp.array([1, 2]), x)).all()
    found = jax.jit(lambda t: convert(schedule, x, t, x))(jnp.array([1, 3]))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_float32_cannot_hold_of_x0_is_nothing():
    """An alphas_cumprod of 1e-80: float64 holds its root, float32 not its inverse."""
    schedule = make_schedule(np.array([0.5] + [1 - 1e-8] * 10))
    assert 0 < schedule.alphas_cumprod[-1] < 1e-79 and schedule.has_zero_terminal_snr
    x = jnp.ones((1, 3))
    with pytest.raises(ValueError, match="alphas_cumprod is 0, or nearly, at t = 10"):
        parameterization.x0_from_eps(schedule, x, jnp.array([10]), x)
    assert not make_schedule(schedule.betas[:9]).has_zero_terminal_snr


def test_where_nothing_is_left_of_x0_v_is_its_negative():
    schedule = make_schedule(schedules.jsd_betas(4))
    x0, noise, t = jnp.full((1, 2), 0.3), jnp.array([[1.0, -2.0]]), jnp.array([3])
    x_t = forward_process.q_sample(schedule, x0, t, noise)
    np.testing.assert_array_equal(x_t, noise)
    v = target(schedule, "v", x0, t, noise)
    np.testing.assert_array_equal(v, -x0)
    np.testing.assert_array_equal(parameterization.x0_from_v(schedule, x_t, t, v), x0)
    np.testing.assert_array_equal(parameterization.v_from_x0(schedule, x_t, t, x0), v)
    np.testing.assert_array_equal(parameterization.eps_from_v(schedule, x_t, t, v), noise)
    np.testing.assert_array_equal(
        parameterization.score_from_v(schedule, x_t, t, v), -noise
    )


# The reverse step


def test_fixed_variances_are_those_of_the_paper(schedule):
    """Fixed variances: beta-tilde and beta; at t = 0 both are beta-tilde of t = 1."""
    t = jnp.arange(T)
    x, x0 = jnp.ones((T, 1)), jnp.full((T, 1), 0.3)
    second = schedule.betas[1] * schedule.betas[0] / (1 - np.prod(1 - schedule.betas[:2]))
    for kind, expected in (
        ("fixed_small", schedule.posterior_variance),
        ("fixed_large", schedule.betas),
    ):
        mean, log_variance = reverse_step(schedule, kind, x0, x, t)
        np.testing.assert_array_equal(
            mean, forward_process.q_posterior(schedule, x0, x, t)[0]
        )
        variance = np.exp(np.asarray(log_variance)[:, 0])
        np.testing.assert_allclose(variance[1:], expected[1:], rtol=2e-6)
        assert variance[0] == pytest.approx(second, rel=2e-6)


def test_a_learned_variance_lies_between_its_bounds_in_logarithm(schedule, images):
    """An output of -1 is beta-tilde, +1 beta, 0 their geometric mean (IDDPM eq. 15)."""
    x0, t, noise = images
    x_t = forward_process.q_sample(schedule, x0, t, noise)
    small, large = schedule.posterior_variance[1:], schedule.betas[1:]
    for output, expected in (
        (-1.0, small),
        (1.0, large),
        (0.0, np.sqrt(small * large)),
        (3.0, large**2 / small),
    ):
        mean, log_variance = reverse_step(
            schedule, "learned", x0, x_t, t, jnp.full_like(x0, output)
        )
        for row, step in enumerate(np.asarray(t)):
            if step:
                found = np.exp(np.asarray(log_variance[row], np.float64))
                np.testing.assert_allclose(found, expected[step - 1], rtol=1e-5)
        np.testing.assert_array_equal(
            mean, forward_process.q_posterior(schedule, x0, x_t, t)[0]
        )
    _, first = reverse_step(schedule, "learned", x0, x_t, t, jnp.ones_like(x0))
    assert float(first[0, 0, 0, 0]) == pytest.approx(np.log(schedule.betas[0]), rel=1e-6)
