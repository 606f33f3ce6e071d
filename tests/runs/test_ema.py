"""Averages of weights: closed forms, analytic trajectories, rebuilding from snapshots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from diffusion_jax.config import EMAConfig
from diffusion_jax.runs.ema import (
    Moment,
    average_names,
    ema_update,
    power_exponent,
    rebuilding_coefficients,
    update_shares,
)


def density(moment, tau):
    """The density p(tau) = (g + 1) tau^g / t^(g + 1) on (0, t]."""
    g, t = power_exponent(moment.std), moment.step
    return np.where(tau <= t, (g + 1) * (np.minimum(tau, t) / t) ** g / t, 0.0)


def tracked(config, trajectory):
    """All averages of a trajectory of weights [N, ...], by the recursion in float64."""
    steps = jnp.arange(len(trajectory))
    weights = {n: np.asarray(w, float) for n, w in update_shares(config, steps).items()}
    averages = {name: [np.zeros_like(trajectory[0])] for name in weights}
    for i, params in enumerate(trajectory):
        for name, values in averages.items():
            values.append(ema_update(values[-1], params, weights[name][i]))
    return {name: np.stack(values[1:]) for name, values in averages.items()}


def test_ema_is_the_geometric_series():
    ema, rate = jnp.zeros(3), 0.9
    for _ in range(25):
        ema = ema_update(ema, jnp.ones(3), jnp.float32(1 - rate))
    np.testing.assert_allclose(ema, 1 - rate**25, rtol=1e-5)


def test_ema_of_a_constant_is_that_constant_to_the_bit():
    params = jax.random.normal(jax.random.key(0), (100_000,))
    np.testing.assert_array_equal(ema_update(params, params, jnp.float32(0.005)), params)


def test_rates_and_their_warm_up():
    steps = jnp.array([0, 8, 1000, 10**6])
    config = EMAConfig(decay=0.99, warmup=True, more_decays=(0.9999,), stds=())
    found = update_shares(config, steps)
    assert list(found) == ["0.99", "0.9999"]
    np.testing.assert_allclose(found["0.99"], [0.9, 0.5, 0.01, 0.01], rtol=1e-6)
    # 1 - 0.9999 in float32 would be off by 1.7e-4 of itself.
    np.testing.assert_allclose(found["0.9999"], [0.9, 0.5, 9 / 1010, 1e-4], rtol=1e-6)
    cold = update_shares(EMAConfig(decay=0.99), steps)["0.99"]
    np.testing.assert_allclose(cold, 0.01, rtol=1e-6)


def test_the_main_average_is_named_first():
    config = EMAConfig(decay=0.995, more_decays=(0.9, 0.99995), stds=(0.05, 0.1))
    names = ("0.995", "0.9", "0.99995", "std:0.05", "std:0.1")
    assert average_names(config) == names


@pytest.mark.parametrize("std", [0.015, 0.05, 0.1, 0.25])
def test_the_exponent_gives_the_standard_deviation(std):
    """Moments of the density by quadrature."""
    moment = Moment(1, std)

    def of(f):
        points = 1 - np.geomspace(1e-6, 1, 30)[::-1]
        return quad(
            lambda tau: f(tau) * density(moment, tau), 0, 1, points=points, limit=500
        )[0]

    assert of(lambda tau: 1) == pytest.approx(1, rel=1e-8)
    mean = of(lambda tau: tau)
    assert np.sqrt(of(lambda tau: (tau - mean) ** 2)) == pytest.approx(std, rel=1e-6)


def test_published_exponents():
    """EDM2: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    found = [power_exponent(std) for std in (0.05, 0.10)]
    np.testing.assert_allclose(found, [16.97, 6.94], atol=0.005)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.29, float("nan")])
def test_an_std_that_no_power_has_is_refused(std):
    with pytest.raises(ValueError, match="std"):
        power_exponent(std)


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_a_power_average_weighs_each_step_by_its_density(std):
    """The step from tau - 1 to tau counts with the integral of the density over it."""
    num, g = 300, power_exponent(std)
    config = EMAConfig(stds=(std,))
    weights = tracked(config, np.eye(num))[f"std:{std}"][-1]
    edges = (np.arange(num + 1) / num) ** (g + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=2e-4, atol=1e-9)


def test_a_power_average_late_in_a_long_run():
    """An average at t = 800,000 moves by (g + 1) / t, which float32 must not lose."""
    weight = update_shares(EMAConfig(stds=(0.05,)), jnp.array([799_999]))["std:0.05"]
    g = power_exponent(0.05)
    np.testing.assert_allclose(weight, (g + 1) / 8e5, rtol=2e-5)
    first = update_shares(EMAConfig(stds=(0.05,)), jnp.array([0]))["std:0.05"]
    assert float(first[0]) == 1  # Nothing is left of what was there before.


def test_weights_that_rebuild_what_is_there_are_one_and_zeros():
    moments = [Moment(100 * i, std) for i in range(1, 11) for std in (0.05, 0.1)]
    weights, misfit = rebuilding_coefficients(moments, moments[13])
    expected = np.eye(20)[13]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert misfit < 1e-6


@pytest.mark.parametrize("std", [0.02, 0.08, 0.15, 0.25])
def test_the_misfit_is_the_distance_of_the_densities(std):
    """The misfit by quadrature on a fine grid; no other combination of sum 1 is nearer."""
    moments = [Moment(100 * i, s) for i in range(1, 11) for s in (0.05, 0.1)]
    wanted = Moment(1000, std)
    weights, misfit = rebuilding_coefficients(moments, wanted)
    tau = (np.arange(200_000) + 0.5) / 200
    target = density(wanted, tau)
    basis = np.stack([density(m, tau) for m in moments])

    def distance(w):
        return np.sqrt(((w @ basis - target) ** 2).sum() / (target**2).sum())

    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert distance(weights) == pytest.approx(misfit, rel=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.normal(size=len(weights))
        step -= step.mean()
        assert distance(weights + 1e-3 * step) > distance(weights)


def trajectory_of(num_steps):
    """Weights on analytic paths: powers of time, a decay, an oscillation, a jump."""
    t = (np.arange(num_steps) + 1) / num_steps
    return np.stack(
        [np.ones_like(t), t, t**2, np.exp(-5 * t), np.sin(20 * t), t > 0.7], axis=-1
    )


@pytest.mark.parametrize(
    ("num_moments", "bound"), [(10, 1.2e-2), (25, 2.5e-3), (50, 1.2e-3)]
)
def test_averages_of_analytic_trajectories_are_rebuilt(num_moments, bound):
    """Rebuilt averages against tracked ones, relative to what the trajectory spans."""
    num = 1000
    path = trajectory_of(num)
    followed = tracked(EMAConfig(stds=(0.05, 0.1, 0.08, 0.15)), path)
    steps = np.round(np.arange(1, num_moments + 1) * num / num_moments).astype(int)
    moments = [Moment(int(s), std) for s in steps for std in (0.05, 0.1)]
    snapshots = np.stack([followed[f"std:{m.std}"][m.step - 1] for m in moments])
    for std in (0.08, 0.15):
        weights, _ = rebuilding_coefficients(moments, Moment(num, std))
        rebuilt, direct = weights @ snapshots, followed[f"std:{std}"][-1]
        # The recursion's shares are in float32: hence 2e-4 in the density test above.
        assert rebuilt[0] == pytest.approx(1, abs=1e-6)
        error = np.abs(rebuilt - direct).max()
        assert error < bound, (std, error)
        if std == 0.08:
            # The plain choice, the nearer of the two snapshots, is far off.
            nearest = np.abs(snapshots[-1] - direct).max()
            assert nearest > 5 * error


def test_a_power_average_of_powers_is_the_closed_form():
    """The average of tau^a is (g + 1) / (g + 1 + a) t^a, up to the size of a step."""
    num, std = 4000, 0.1
    g = power_exponent(std)
    found = tracked(EMAConfig(stds=(std,)), trajectory_of(num)[:, :3])[f"std:{std}"][-1]
    expected = [(g + 1) / (g + 1 + a) for a in (0, 1, 2)]
    np.testing.assert_allclose(found, expected, rtol=3e-4)
