"""Formulas that circulate in tutorials, and what shows each of them to be wrong.

docs/theory.md describes them one by one. The right formulas are those of the package.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import forward_process, losses, oracle
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.forward_process import q_posterior, q_sample, q_sigma, q_step
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import noise_level_at
from diffusion_jax.diffusion.schedules import constant_betas, linear_betas, make_schedule
from diffusion_jax.diffusion.variational_bound import bound_term, prior_term

SCHEDULE = make_schedule(linear_betas(1000))
# One-dimensional data of mean 0.3 and variance 0.16.
DATA = oracle.gaussian([0.3], 0.16)


def draws(t, num=200_000):
    """(x_0, noise, x_t) of the data at one timestep, in float64 NumPy."""
    rng = np.random.default_rng(t)
    x0, noise = 0.3 + 0.4 * rng.normal(size=num), rng.normal(size=num)
    share = SCHEDULE.alphas_cumprod[t]
    return x0, noise, np.sqrt(share) * x0 + np.sqrt(1 - share) * noise


def test_the_loss_is_not_of_x0_minus_eps_minus_the_prediction():
    """||x_0 - eps - eps_theta||^2 is least for E[x_0 - eps | x_t], not for the noise."""
    t = 500
    x0, noise, x_t = draws(t)
    best = np.asarray(
        oracle.eps_mean(DATA, x_t[:, None], noise_level_at(SCHEDULE, jnp.int32(t)))
    )[:, 0]
    # The best line in x_t, by least squares: the optimum is linear for Gaussian data.
    ones = np.stack([np.ones_like(x_t), x_t], axis=1)
    right, wrong = (np.linalg.lstsq(ones, y, rcond=None)[0] for y in (noise, x0 - noise))
    assert np.abs(ones @ right - best).mean() < 0.01
    assert np.abs(ones @ wrong - best).mean() > 0.5


@pytest.mark.slow
def test_x_T_is_not_uniform():
    """x_T has the kurtosis of a Gaussian, 3, not 1.8, and some lie far outside [-1, 1]."""
    x0 = jax.random.uniform(jax.random.key(0), (100_000, 1), minval=-1)
    x_T = np.asarray(forward_process.q_trajectory(SCHEDULE, jax.random.key(1), x0, [999]))[
        -1
    ]
    kurtosis = ((x_T - x_T.mean()) ** 4).mean() / x_T.var() ** 2
    assert kurtosis == pytest.approx(3, abs=0.06)
    assert (np.abs(x_T) > 1).mean() == pytest.approx(math.erfc(1 / math.sqrt(2)), abs=0.01)


def test_alpha_bar_t_is_a_product_up_to_t_and_not_up_to_T():
    """Steps q(x_t | x_{t-1}) one after another leave the variance that is claimed at t."""
    x = jnp.zeros((200_000, 1))
    for t in range(50):
        noise = jax.random.normal(jax.random.key(t), x.shape)
        x = q_step(SCHEDULE, x, jnp.int32(t), noise)
    found = float(x.var())
    assert found == pytest.approx(1 - SCHEDULE.alphas_cumprod[49], rel=0.02)
    up_to_T = np.prod(1 - SCHEDULE.betas)
    assert abs(found - (1 - up_to_T)) > 0.9


def test_the_reverse_step_has_no_product_of_betas():
    """The variance of the reverse step by Bayes, against one with 1 - prod(beta_s)."""
    t = 300
    share, before = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod_prev[t]
    beta = SCHEDULE.betas[t]
    # Precisions add: of x_t about x_{t-1}, and of x_{t-1} about x_0.
    bayes = 1 / ((1 - beta) / beta + 1 / (1 - before))
    assert SCHEDULE.posterior_variance[t] == pytest.approx(bayes, rel=1e-9)
    wrong_before = 1 - np.prod(SCHEDULE.betas[:t])
    wrong = (1 - wrong_before) / (1 - share) * beta
    assert wrong < 1e-100 * bayes  # A product of 300 betas is nearly 0.


def test_ddims_x0_is_made_from_x_t_and_not_from_alpha_bar_t():
    """(x_t - sqrt(1 - a) eps) / sqrt(a) gives x_0 back; with a for x_t it cannot."""
    x0, noise, x_t = draws(400)
    share = SCHEDULE.alphas_cumprod[400]
    right = (x_t - np.sqrt(1 - share) * noise) / np.sqrt(share)
    wrong = (share - np.sqrt(1 - share) * noise) / np.sqrt(share)
    np.testing.assert_allclose(right, x0, atol=1e-12)
    assert abs(np.corrcoef(wrong, x0)[0, 1]) < 0.01  # No correlation with x_0.


def test_the_mean_of_a_step_is_not_the_root_of_1_minus_beta_x():
    """The mean sqrt(1 - beta_t) x_{t-1}, not sqrt(1 - beta_t x_{t-1}), near 1 for any x."""
    t, x = jnp.int32(500), jnp.array([[-2.0], [0.0], [2.0]])
    mean = q_step(SCHEDULE, x, t, jnp.zeros_like(x))
    np.testing.assert_allclose(mean, np.sqrt(1 - SCHEDULE.betas[500]) * x, rtol=1e-6)
    wrong = np.sqrt(1 - SCHEDULE.betas[500] * np.asarray(x))
    assert np.ptp(wrong) < 0.03 and abs(wrong - 1).max() < 0.03


def test_a_constant_beta_of_that_kind_leaves_nearly_all_of_the_signal():
    """A beta of 1 - (1 - b)^(1/T) leaves 1 - b of the variance as signal: SNR 9,999."""
    beta_min, total = 1e-4, 1000
    beta = 1 - (1 - beta_min) ** (1 / total)
    schedule = make_schedule(constant_betas(total, beta))
    share = schedule.alphas_cumprod[-1]
    assert share / (1 - share) == pytest.approx(9999, rel=1e-6)
    x0 = jnp.ones((1, 1))
    # L_T is 4.8 bits per dimension, where 1e-5 would be noise.
    assert float(prior_term(schedule, x0)[0]) > 4
    assert float(prior_term(SCHEDULE, x0)[0]) < 1e-4


def test_ddims_sigma_is_not_that_of_a_beta_bar():
    """A sigma of eta sqrt(beta (1 - b) / b), b = 1 - prod(alpha): at eta = 1 not DDPM's."""
    ddpm = np.sqrt(SCHEDULE.posterior_variance)
    share, before = SCHEDULE.alphas_cumprod, SCHEDULE.alphas_cumprod_prev
    right = np.sqrt((1 - before) / (1 - share) * (1 - share / before))
    np.testing.assert_allclose(right, ddpm, rtol=1e-9, atol=1e-12)
    wrong = np.sqrt(SCHEDULE.betas * share / (1 - share))
    assert (wrong[:100] > 2 * ddpm[:100]).all() and (wrong[-300:] < ddpm[-300:] / 2).all()


def test_the_expectation_is_under_q_and_not_under_the_model():
    """E[-log p_theta] under p_theta is the model's own entropy: no data enter.

    For a Gaussian model of the wrong mean it is larger under q, and the same under p.
    """
    rng = np.random.default_rng(0)
    data = 0.3 + 0.4 * rng.normal(size=100_000)

    def cost(x, mean):
        return (0.5 * ((x - mean) / 0.4) ** 2 + np.log(0.4 * np.sqrt(2 * np.pi))).mean()

    under_q = [cost(data, mean) for mean in (0.3, 1.1)]
    under_p = [cost(mean + 0.4 * rng.normal(size=100_000), mean) for mean in (0.3, 1.1)]
    assert under_q[1] - under_q[0] == pytest.approx(2, abs=0.05)
    assert abs(under_p[1] - under_p[0]) < 0.02


def eight_bit():
    levels = np.arange(90, 160)
    shares = np.exp(-(((levels - 120) / 14) ** 2))
    return oracle.discrete(levels[:, None], shares)


def all_terms(data, num=2000):
    """The bound's terms at t = 0 .. T-1 for the best network, mean over images."""
    schedule = make_schedule(linear_betas(100, 1e-3, 0.2))
    best = oracle.optimal_model(data, schedule, "eps", "learned")
    x0 = oracle.sample(data, jax.random.key(0), num)

    @jax.jit
    def term(t):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), x0.shape)
        draw = Draw(jnp.full(num, t), noise)
        return bound_term(best, None, Batch(x0), draw).bits.mean()

    return np.array([float(term(t)) for t in range(100)]), schedule, x0


def test_the_sum_over_t_does_not_hold_L_0_twice():
    """L_T + sum of L_{t-1} from t = 2 on + L_0 is the entropy; from t = 1 on it is more."""
    data = eight_bit()
    terms, schedule, x0 = all_terms(data)
    entropy = oracle.entropy(data) / math.log(2)
    bound = float(prior_term(schedule, x0).mean()) + terms.sum()
    assert entropy - 0.1 < bound < entropy + 0.1
    assert bound + terms[0] > entropy + 1


def test_L_0_is_a_cost_of_the_model_and_L_T_has_nothing_to_learn():
    """L_0 changes with the network, as a likelihood does; L_T does not depend on it."""
    schedule = SCHEDULE
    x0 = oracle.sample(eight_bit(), jax.random.key(0), 500)
    noise = jax.random.normal(jax.random.key(1), x0.shape)

    def first_term(weight):
        def network(params, x_t, t, cond=None, *, train=False, key=None):
            return jnp.broadcast_to(params, x_t.shape)

        model = Model(schedule, "x0", "fixed_small", network)
        draw = Draw(jnp.zeros(500, jnp.int32), noise)
        term = bound_term(model, weight, Batch(x0), draw, clip=False)
        return term.bits.mean()

    slope = jax.grad(first_term)(jnp.float32(float(x0.mean()) + 0.01))
    assert abs(float(slope)) > 0.1
    # L_T is a function of schedule and data: there is no network to give it.
    assert float(prior_term(schedule, x0).mean()) < 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddims_forward_process_knows_x_0(eta):
    """q_sigma(x_t | x_{t-1}, x_0) depends on x_0 beside x_{t-1}, except for eta = 1.

    The coefficient of x_0 follows by Bayes from DDIM's eqs. 6 and 7, all of them Gaussian.
    """
    t = 400
    share, before = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod_prev[t]
    sigma = eta * np.sqrt(SCHEDULE.posterior_variance[t])
    # x_{t-1} = a x_0 + c x_t + sigma z, and x_t = sqrt(share) x_0 + sqrt(1 - share) z'.
    c = np.sqrt((1 - before - sigma**2) / (1 - share))
    a = np.sqrt(before) - c * np.sqrt(share)
    every_sigma = eta * np.sqrt(SCHEDULE.posterior_variance)
    ones, zeros = jnp.ones((1, 1)), jnp.zeros((1, 1))
    mean, _ = q_sigma(SCHEDULE, every_sigma, ones, zeros, jnp.int32(t))
    assert float(mean[0, 0]) == pytest.approx(a, rel=1e-5)
    if sigma:
        precision = 1 / (1 - share) + c**2 / sigma**2
        of_x0 = (np.sqrt(share) / (1 - share) - a * c / sigma**2) / precision
    else:
        of_x0 = -a / c  # x_t = (x_{t-1} - a x_0) / c.
    assert (abs(of_x0) < 1e-9) == (eta == 1)


def test_a_key_that_is_made_again_each_step_draws_the_same_t_and_noise():
    """A loop that makes its key again in each step trains at the same few timesteps."""
    apply_fn = oracle.optimal_model(DATA, SCHEDULE).apply_fn
    x0 = oracle.sample(DATA, jax.random.key(5), 64)
    seen = {"made again": [], "folded": []}

    def spy(name, params, x_t, t, cond=None, *, train=False, key=None):
        seen[name].append(np.asarray(t))
        return apply_fn(params, x_t, t)

    found = {name: [] for name in seen}
    for step in range(20):
        keys = {
            "made again": jax.random.key(0),
            "folded": jax.random.fold_in(jax.random.key(0), step),
        }
        for name, key in keys.items():
            model = Model(SCHEDULE, apply_fn=functools.partial(spy, name))
            found[name].append(float(losses.simple_loss(model, None, key, Batch(x0))))
    assert len(set(found["made again"])) == 1 and len(set(found["folded"])) == 20
    assert len(np.unique(np.concatenate(seen["made again"]))) <= 64
    assert len(np.unique(np.concatenate(seen["folded"]))) > 600


def test_the_right_posterior_is_bayes():
    """The posterior that the right formulas lead to, by Bayes' rule on a grid."""
    t, x0, x_t = 250, 0.4, -0.7
    grid = np.linspace(-4, 4, 400_001)
    before, beta = SCHEDULE.alphas_cumprod_prev[t], SCHEDULE.betas[t]
    log_p = -((x_t - np.sqrt(1 - beta) * grid) ** 2) / (2 * beta)
    log_p -= (grid - np.sqrt(before) * x0) ** 2 / (2 * (1 - before))
    p = np.exp(log_p - log_p.max())
    mean, variance, _ = q_posterior(
        SCHEDULE, jnp.full((1, 1), x0), jnp.full((1, 1), x_t), jnp.int32(t)
    )
    assert float(mean[0, 0]) == pytest.approx((p * grid).sum() / p.sum(), rel=1e-5)
    del variance
    assert q_sample(SCHEDULE, jnp.zeros((1, 1)), jnp.int32(t), jnp.ones((1, 1))).shape == (
        1,
        1,
    )
