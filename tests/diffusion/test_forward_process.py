"""The forward process against closed forms, the chain of its steps, and Bayes' rule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import forward_process
from diffusion_jax.diffusion.schedules import make_schedule
from helpers import SCHEDULES

T = 1000


def test_q_sample_shapes_and_types(schedule, images):
    x0, t, noise = images
    x_t = jax.jit(lambda *a: forward_process.q_sample(schedule, *a))(x0, t, noise)
    chex.assert_shape(x_t, x0.shape)
    chex.assert_type(x_t, jnp.float32)
    chex.assert_tree_all_finite(x_t)
    chex.assert_trees_all_close(
        x_t, forward_process.q_sample(schedule, x0, t, noise), atol=1e-6
    )


def test_q_sample_without_noise_is_the_mean_of_the_closed_form(schedule, images):
    """The mean sqrt(product of (1 - beta)) x_0, the product in exact order, in float64."""
    x0, t, _ = images
    x_t = forward_process.q_sample(schedule, x0, t, jnp.zeros_like(x0))
    for row, step in enumerate(np.asarray(t)):
        share = np.prod([1 - b for b in schedule.betas[: step + 1]])
        chex.assert_trees_all_close(
            np.asarray(x_t[row]), np.asarray(x0[row] * np.sqrt(share)), atol=2e-7, rtol=1e-5
        )


@pytest.mark.statistical
def test_q_sample_has_the_variance_of_the_closed_form(schedule):
    """Mean and variance of N(sqrt(a) x_0, 1 - a) over many draws, within 5 sigma."""
    n = 40_000
    noise = jax.random.normal(jax.random.key(2), (n, 1))
    for t in (0, 99, 499, 999):
        x_t = forward_process.q_sample(schedule, jnp.full((n, 1), 0.7), jnp.int32(t), noise)
        share = np.prod(1 - schedule.betas[: t + 1])
        sigma = np.sqrt(1 - share)
        assert abs(float(x_t.mean()) - 0.7 * np.sqrt(share)) < 5 * sigma / np.sqrt(n)
        assert abs(float(x_t.std()) / sigma - 1) < 5 / np.sqrt(2 * n)


def test_q_sample_equals_the_chain_of_q_step_in_distribution(schedule):
    """Mean and variance of the chain from one x_0, as a recursion over its steps.

    Feeding the chain zeros gives its mean, and its response to the noise of each single
    step gives its variance: no sampling error.
    """
    steps = 200
    zero = jnp.zeros(1)
    mean, variance = jnp.ones(1), 0.0
    for t in range(steps):
        mean = forward_process.q_step(schedule, mean, jnp.int32(t), zero)
        keep = float(forward_process.q_step(schedule, jnp.ones(1), jnp.int32(t), zero)[0])
        add = float(forward_process.q_step(schedule, zero, jnp.int32(t), jnp.ones(1))[0])
        variance = keep**2 * variance + add**2
    last = jnp.int32(steps - 1)
    signal = forward_process.q_sample(schedule, jnp.ones(1), last, zero)
    sigma = forward_process.q_sample(schedule, zero, last, jnp.ones(1))
    np.testing.assert_allclose(mean, signal, rtol=2e-5)
    np.testing.assert_allclose(np.sqrt(variance), sigma[0], rtol=2e-5)


@pytest.mark.statistical
def test_q_trajectory_has_the_marginals_of_q_sample(schedule):
    n = 4000
    chain = jax.jit(lambda k, x: forward_process.q_trajectory(schedule, k, x))(
        jax.random.key(3), jnp.full((n, 1), 0.5)
    )
    chex.assert_shape(chain, (T, n, 1))
    chex.assert_tree_all_finite(chain)
    share = np.cumprod(1 - schedule.betas)
    mean, std = np.asarray(chain).mean((1, 2)), np.asarray(chain).std((1, 2))
    sigma = np.sqrt(1 - share)
    assert np.abs((mean - 0.5 * np.sqrt(share)) / sigma).max() < 5.5 / np.sqrt(n)
    assert np.abs(std / sigma - 1).max() < 5.5 / np.sqrt(2 * n)


@pytest.mark.statistical
def test_chains_of_q_step_have_the_mean_and_covariance_of_q_sample(schedule):
    """x_t of the chain and of `q_sample`, from data with correlated coordinates.

    Moments are checked against sqrt(a) mean and a covariance + (1 - a) I, each entry within
    5 standard errors (those of a Gaussian's covariance: sqrt((C_ii C_jj + C_ij^2) / n)).
    """
    n, mean, root = 20_000, np.array([0.3, -0.6]), np.array([[0.4, 0.0], [0.3, 0.1]])
    draws = jax.random.normal(jax.random.key(6), (n, 2))
    x0 = jnp.asarray(mean)[None] + draws @ jnp.asarray(root.T)
    frames = (0, 30, 300)
    chain = forward_process.q_trajectory(schedule, jax.random.key(7), x0, frames)
    for slot, t in enumerate(frames):
        share = np.prod(1 - schedule.betas[: t + 1])
        covariance = share * root @ root.T + (1 - share) * np.eye(2)
        noise = jax.random.normal(jax.random.key(8), x0.shape)
        for x in (chain[slot], forward_process.q_sample(schedule, x0, jnp.int32(t), noise)):
            off = np.asarray(x).mean(axis=0) - np.sqrt(share) * mean
            assert (np.abs(off) < 5 * np.sqrt(np.diag(covariance) / n)).all()
            found = np.cov(np.asarray(x).T)
            variances = np.diag(covariance)
            error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
            assert (np.abs(found - covariance) < 5 * error).all()


def test_q_trajectory_is_the_loop_of_q_step():
    """A trajectory is a loop of `q_step`, the noise of step t drawn by fold_in(key, t)."""
    schedule = make_schedule(np.array([0.2, 0.5, 0.9, 0.999]))
    x, key = jnp.array([[0.5, -2.0]]), jax.random.key(9)
    chain = forward_process.q_trajectory(schedule, key, x)
    for t in range(4):
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape)
        x = forward_process.q_step(schedule, x, jnp.int32(t), noise)
        np.testing.assert_allclose(chain[t], x, rtol=1e-6)


def test_frames_of_q_trajectory_are_those_of_the_whole(images):
    schedule, (x0, _, _) = SCHEDULES["linear"], images
    whole = forward_process.q_trajectory(schedule, jax.random.key(5), x0)
    frames = forward_process.q_trajectory(schedule, jax.random.key(5), x0, (0, 500, 999))
    np.testing.assert_array_equal(frames, whole[np.array([0, 500, 999])])


@pytest.mark.statistical
def test_q_trajectory_is_a_markov_chain_not_independent_draws():
    """States of a chain have the covariance cov(x_s, x_t) = sqrt(a_t / a_s) var(x_s)."""
    schedule = SCHEDULES["linear"]
    chain = forward_process.q_trajectory(
        schedule, jax.random.key(4), jnp.zeros((20_000, 1))
    )
    s, t = 100, 140
    ratio = schedule.alphas_cumprod[t] / schedule.alphas_cumprod[s]
    expected = np.sqrt(ratio) * (1 - schedule.alphas_cumprod[s])
    found = float(jnp.mean(chain[s] * chain[t]))
    assert found == pytest.approx(expected, rel=0.04)


def test_q_posterior_obeys_bayes_rule(schedule):
    """q(x_{t-1}|x_t,x_0) against q(x_t|x_{t-1}) q(x_{t-1}|x_0), normalised on a grid."""
    x0 = 0.3
    for t in (1, 2, 50, 500, 998):
        before, beta = np.prod(1 - schedule.betas[:t]), schedule.betas[t]
        x_t = np.sqrt(before) * x0 - 1.3 * np.sqrt(1 - before)
        center, width = np.sqrt(before) * x0, np.sqrt(1 - before)
        grid = np.linspace(-8, 8, 400_001) * width + center
        log_density = -0.5 * (grid - center) ** 2 / (1 - before)
        log_density -= 0.5 * (x_t - np.sqrt(1 - beta) * grid) ** 2 / beta
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        mean = (density * grid).sum()
        variance = (density * (grid - mean) ** 2).sum()
        got_mean, got_variance, got_log = forward_process.q_posterior(
            schedule, jnp.full((1,), x0), jnp.full((1,), x_t), jnp.int32(t)
        )
        assert float(got_mean[0]) == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert got_variance.item() == pytest.approx(variance, rel=1e-4)
        assert got_log.item() == pytest.approx(np.log(variance), abs=1e-4)


def test_q_posterior_at_the_first_step_is_x0_itself(schedule):
    x0, x_t = jnp.array([[0.25]]), jnp.array([[0.9]])
    mean, variance, log_variance = forward_process.q_posterior(
        schedule, x0, x_t, jnp.array([0])
    )
    np.testing.assert_allclose(mean, x0, rtol=1e-6)
    assert variance[0, 0] == 0 and np.isfinite(log_variance[0, 0])


@pytest.mark.parametrize("t", [-1, T, T + 5])
def test_t_out_of_range_gives_nan_not_a_neighbour(schedule, t):
    x = jnp.ones((1, 2))
    assert np.isnan(forward_process.q_sample(schedule, x, jnp.array([t]), x)).all()
    assert np.isnan(forward_process.q_posterior(schedule, x, x, jnp.array([t]))[0]).all()


# DDIM's family


def joint_of_q_sigma(schedule, sigma, t):
    """Coefficients of x_0 and x_t in the mean of q_sigma at t, and its variance."""
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    of_x0, variance = forward_process.q_sigma(schedule, sigma, one, zero, jnp.array([t]))
    of_x_t, _ = forward_process.q_sigma(schedule, sigma, zero, one, jnp.array([t]))
    return of_x0.item(), of_x_t.item(), variance.item()


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_q_sigma_keeps_the_marginals(schedule, eta):
    """DDIM lemma 1: q(x_t | x_0) pushed through q_sigma is q(x_{t-1} | x_0)."""
    sigma = forward_process.ddim_sigma(schedule, eta)
    for t in (0, 1, 50, 500, 998, 999):
        of_x0, of_x_t, variance = joint_of_q_sigma(schedule, sigma, t)
        share, before = (
            np.prod(1 - schedule.betas[: t + 1]),
            np.prod(1 - schedule.betas[:t]),
        )
        mean = of_x0 + of_x_t * np.sqrt(share)
        assert mean == pytest.approx(np.sqrt(before), abs=2e-6)
        assert of_x_t**2 * (1 - share) + variance == pytest.approx(1 - before, abs=2e-6)


def test_any_sigma_keeps_the_marginals():
    schedule = SCHEDULES["linear"]
    for fraction in (0.0, 0.5, 1.0):
        sigma = fraction * np.sqrt(1 - schedule.alphas_cumprod_prev)
        of_x0, of_x_t, variance = joint_of_q_sigma(schedule, sigma, 700)
        share, before = schedule.alphas_cumprod[700], schedule.alphas_cumprod[699]
        assert of_x0 + of_x_t * np.sqrt(share) == pytest.approx(np.sqrt(before), abs=1e-6)
        assert of_x_t**2 * (1 - share) + variance == pytest.approx(1 - before, abs=1e-6)
        assert variance == pytest.approx(fraction**2 * (1 - before), abs=1e-6)


def test_q_sigma_at_eta_1_is_the_posterior_and_at_0_certain(schedule, images):
    x0, t, noise = images
    x_t = forward_process.q_sample(schedule, x0, t, noise)
    mean, variance, _ = forward_process.q_posterior(schedule, x0, x_t, t)
    sigma = forward_process.ddim_sigma(schedule, 1.0)
    found, found_variance = forward_process.q_sigma(schedule, sigma, x0, x_t, t)
    chex.assert_trees_all_close(found, mean, atol=2e-5)
    chex.assert_trees_all_close(found_variance, variance, rtol=1e-6)
    sigma = forward_process.ddim_sigma(schedule, 0.0)
    found, found_variance = forward_process.q_sigma(schedule, sigma, x0, x_t, t)
    assert not found_variance.any()
    # The same noise, one step earlier (DDIM eq. 13 as a flow along the noise).
    for row, step in enumerate(np.asarray(t)):
        before = np.prod(1 - schedule.betas[:step])
        expected = np.sqrt(before) * x0[row] + np.sqrt(1 - before) * noise[row]
        np.testing.assert_allclose(found[row], expected, atol=2e-4)


def test_ddim_sigma_is_eta_times_that_of_equation_16(schedule):
    for t in (1, 10, 999):
        share, before = (
            np.prod(1 - schedule.betas[: t + 1]),
            np.prod(1 - schedule.betas[:t]),
        )
        expected = 0.3 * np.sqrt((1 - before) / (1 - share)) * np.sqrt(1 - share / before)
        assert forward_process.ddim_sigma(schedule, 0.3)[t] == pytest.approx(
            expected, rel=1e-9
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s[:-1], r"shape \(1000,\); got \(999,\)"),
        (lambda s: s + 2e-6, r"sigma\[0\]"),
        (lambda s: -s, r"sigma\[1\]"),
        (lambda s: s * np.nan, r"sigma\[0\] \(nan\)"),
    ],
)
def test_a_sigma_that_cannot_be_is_refused(change, said, images):
    schedule, (x0, t, _) = SCHEDULES["linear"], images
    sigma = forward_process.ddim_sigma(schedule, 1.0)
    with pytest.raises(ValueError, match=said):
        forward_process.q_sigma(schedule, change(sigma), x0, x0, t)


def test_shapes_that_do_not_fit_are_refused(schedule, images):
    x0, t, noise = images
    with pytest.raises(AssertionError):
        forward_process.q_sample(schedule, x0, t, noise[:, :1])
