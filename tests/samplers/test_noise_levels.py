"""Steps between noise levels of any process: flow matching and EDM beside DDPM's.

Every method makes its steps of a `Schedule`, which preserves the variance. Here it is given
steps made by hand in their place, so that what follows from the levels is tested of all.
"""

import warnings

import numpy as np
import pytest
from scipy.integrate import quad

from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import NoiseLevel, noise_level
from diffusion_jax.diffusion.schedules import cosine_betas, linear_betas, make_schedule
from diffusion_jax.samplers import methods, noise_levels, timesteps
from diffusion_jax.samplers.noise_levels import Steps
from helpers import gaussian_moments, run_table

T = 1000
SCHEDULE = make_schedule(linear_betas(T))
MODEL = Model(SCHEDULE, "x0")  # Only its kind of prediction is used.
METHODS = methods.METHODS
NOISY = {"ddpm", "langevin"}


def steps_of(alpha, sigma):
    """Steps through these levels, falling, the last one to x_0."""
    level = noise_level(np.asarray(alpha, float), np.asarray(sigma, float))
    ends = zip(level, (1.0, 0.0), strict=True)
    after = NoiseLevel(*(np.append(squares[1:], end) for squares, end in ends))
    t = np.arange(len(level.alpha))[::-1] * 1.0
    return Steps(t, level, after, np.append(t[1:], np.nan))


def edm(count, largest=80.0):
    """Steps of alpha 1 and sigma from `largest` down to 0.002 (EDM eq. 5)."""
    sigma = np.linspace(largest ** (1 / 7), 0.002 ** (1 / 7), count) ** 7
    return steps_of(np.ones(count), sigma)


def flow_matching(count, largest=1.0):
    """Steps of alpha 1 - s and sigma s, from `largest` down, even in s."""
    s = np.linspace(largest, 0, count + 1)[:-1]
    return steps_of(1 - s, s)


def preserving(count):
    return noise_levels.make_steps(SCHEDULE, timesteps.trailing_timesteps(T, count))


PATHS = {"edm": edm, "flow_matching": flow_matching, "preserving": preserving}


def table_of(name, steps, **options):
    """The table of a method with these steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = METHODS.get(name) or getattr(methods, name)
        return make(MODEL, steps, **options)


def added_by_quadrature(alpha, growth, after, before):
    """The variance of x at `before`, given x at `after`, of a linear SDE.

    The SDE with these marginals adds growth(s) = d sigma^2 / ds - 2 sigma^2 d log alpha
    / ds per unit of s. What is added at s then grows with x by alpha(before) / alpha(s).
    """
    return quad(
        lambda s: (alpha(before) / alpha(s)) ** 2 * growth(s), after, before, epsabs=1e-14
    )[0]


def test_the_added_variance_of_edm_is_that_of_its_sde():
    steps = edm(12)
    sigma = np.append(steps.level.sigma, 0.0)
    found = steps.added_variance
    for i in range(12):
        expected = added_by_quadrature(
            lambda s: 1.0, lambda s: 2 * s, sigma[i + 1], sigma[i]
        )
        assert found[i] == pytest.approx(expected, rel=1e-9)


def test_the_added_variance_of_flow_matching_is_that_of_its_sde():
    """The added variance by quadrature; at s = 1, without signal, it is all the noise."""
    steps = flow_matching(12)
    s = np.append(steps.level.sigma, 0.0)
    found = steps.added_variance
    assert found[0] == 1 and np.isinf(steps.h[0]) and np.isinf(steps.h[-1])
    for i in range(1, 12):
        expected = added_by_quadrature(
            lambda u: 1 - u,
            lambda u: 2 * u + 2 * u**2 / (1 - u),
            s[i + 1],
            s[i],
        )
        assert found[i] == pytest.approx(expected, rel=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("path", PATHS)
def test_the_gaussian_that_leads_back_gives_the_marginals(path):
    """200,000 draws of x = alpha / alpha' x' + noise, from level to level, from one x_0."""
    steps = PATHS[path](6)
    rng, x0, n = np.random.default_rng(0), 0.7, 200_000
    x = np.full(n, x0)
    for i in range(5, -1, -1):
        share = steps.level.alpha[i] / steps.next.alpha[i]
        x = share * x + np.sqrt(steps.added_variance[i]) * rng.standard_normal(n)
        alpha, sigma = steps.level.alpha[i], steps.level.sigma[i]
        assert abs(x.mean() - alpha * x0) < 5 * sigma / np.sqrt(n)
        assert abs(x.std() / sigma - 1) < 5 / np.sqrt(2 * n)


@pytest.mark.parametrize("betas", [linear_betas(T), cosine_betas(T)])
def test_the_added_variance_of_one_step_is_its_beta(betas):
    """The added variance to its last digits, also where two levels are nearly the same."""
    schedule = make_schedule(betas)
    steps = noise_levels.make_steps(schedule, timesteps.trailing_timesteps(T, T))
    np.testing.assert_allclose(steps.added_variance[::-1], schedule.betas, rtol=1e-10)
    np.testing.assert_array_equal(
        steps.next.alpha_squared[:-1], steps.level.alpha_squared[1:]
    )
    assert (steps.next.alpha_squared[-1], steps.next.sigma_squared[-1]) == (1, 0)


@pytest.mark.parametrize("path", PATHS)
def test_h_is_the_difference_of_lambda(path):
    steps = PATHS[path](9)
    with np.errstate(divide="ignore"):
        lam = np.log(steps.level.alpha) - np.log(steps.level.sigma)
    np.testing.assert_allclose(steps.h[:-1], np.diff(lam), rtol=1e-9)
    assert np.isposinf(steps.h[-1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {}),
        ("ddim", {"eta": 0.5}),
        ("ddim", {"eta": 1.0}),
        ("ddpm", {}),
        ("non_markovian_table", {"std": 0.7}),
        ("dpmpp_2m", {"eta": 1.0}),
        ("dpmpp_3m", {"eta": 0.5}),
    ],
)
def test_rows_keep_the_marginals_of_any_levels(path, name, options):
    """alpha x_0 + sigma eps leads to alpha' x_0 + sigma' eps, where x_0 is known."""
    steps = PATHS[path](15)
    if "std" in options:
        options = {"std": options["std"] * steps.next.sigma}
    table = table_of(name, steps, **options)
    to_x, (level, after) = table.to_x, steps[1:3]
    of_x0 = to_x.x0 + to_x.x0_prev + to_x.x0_prev2
    np.testing.assert_allclose(to_x.x * level.alpha + of_x0, after.alpha, rtol=1e-10)
    variance = to_x.x**2 * level.sigma_squared + to_x.noise**2
    np.testing.assert_allclose(variance, after.sigma_squared, rtol=1e-9, atol=1e-14)
    assert to_x.noise[:-1].all() == (name == "ddpm" or bool(options))
    np.testing.assert_array_equal(table.level, level)


@pytest.mark.parametrize("path", PATHS)
def test_ddpm_is_the_posterior_of_any_levels_by_bayes_rule(path):
    """q(x' | x, x_0) of the joint Gaussian of x' and x, by its covariances."""
    steps = PATHS[path](15)
    to_x = table_of("ddpm", steps).to_x
    level, after = steps.level, steps.next
    covariance = level.alpha / after.alpha * after.sigma_squared
    gain = covariance / level.sigma_squared
    np.testing.assert_allclose(to_x.x, gain, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(to_x.x0, after.alpha - gain * level.alpha, rtol=1e-9)
    variance = after.sigma_squared - gain * covariance
    np.testing.assert_allclose(to_x.noise**2, variance, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_chains_of_any_levels_lead_to_the_moments_of_gaussian_data(path, name):
    """Moments with the best network, which are closer, the more steps there are."""
    mean, std, off = 0.3, 0.5, []
    for count in (100, 400):
        steps = PATHS[path](count)
        start = steps.level.sigma_squared[0] + steps.level.alpha_squared[0] * std**2
        found = gaussian_moments(
            table_of(name, steps),
            mean,
            std,
            start=steps.level.alpha[0] * mean,
            start_variance=start,
        )
        off.append(abs(found[0] - mean) + abs(found[1] / std**2 - 1))
    assert off[0] < 0.15 and off[1] < 0.4 * off[0] + 1e-6, off


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOISY])
def test_one_point_is_followed_through_any_levels(path, name):
    """x = alpha c + sigma eps keeps that form, whatever the order, without noise."""
    steps = PATHS[path](9)
    if name == "heun":  # Heun needs the slope at the first level.
        steps = Steps(*(_dropped(part) for part in steps))
    table = table_of(name, steps)
    c, eps = 0.37, np.array([0.9, -1.3])
    alpha, sigma = (
        np.append(x, y) for x, y in ((steps.level.alpha, 1), (steps.level.sigma, 0))
    )
    x = alpha[0] * c + sigma[0] * eps
    found = run_table(table, lambda x, t: c, x, np.zeros(table.num_rows))
    found = found[~np.append(False, table.is_trial)]
    np.testing.assert_allclose(
        found, alpha[:, None] * c + sigma[:, None] * eps, rtol=1e-9, atol=1e-12
    )


def _dropped(part):
    """A part of steps, without the first step."""
    return type(part)(*(s[1:] for s in part)) if isinstance(part, tuple) else part[1:]


def test_levels_hold_their_squares_and_give_their_roots():
    level = noise_level(np.array([0.6, 1.0]), np.array([0.8, 30.0]))
    np.testing.assert_allclose(level.alpha, [0.6, 1.0], rtol=1e-15)
    np.testing.assert_allclose(level.sigma, [0.8, 30.0], rtol=1e-15)
    np.testing.assert_allclose(level.sigma_squared, [0.64, 900.0], rtol=1e-15)
