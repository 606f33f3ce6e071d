"""Losses of denoisers without training, against draws, quadrature and exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm as normal

from diffusion_jax.diffusion import oracle, schedules
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.losses import Distance, prediction_loss
from diffusion_jax.diffusion.model import Model
from diffusion_jax.evaluation.reference_losses import (
    expected_distance,
    mean_and_variance,
    reference_losses,
)

PROCESS = schedules.make_schedule(schedules.cosine_betas(20))
MEAN, VARIANCE = np.array([0.6, -0.3, 0.0]), np.array([0.05, 0.4, 1.3])
NUM = 200_000


def monte_carlo(model, distance):
    """Mean loss of a model on Gaussian data, over all t in turn."""
    data = oracle.gaussian(MEAN, VARIANCE)
    x0 = oracle.sample(data, jax.random.key(0), NUM)
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    t = jnp.arange(NUM) % model.process.num_timesteps
    batch, draw = Batch(x0), Draw(t, noise)
    return float(prediction_loss(model, None, batch, draw, distance=distance).mean())


def with_network(prediction, of_x_t):
    """A model of three values whose network is of_x_t(x_t, t)."""

    def apply_fn(params, x_t, t, cond, *, train, key):
        return of_x_t(x_t, t)

    return Model(PROCESS, prediction, "fixed_small", apply_fn)


WEIGHTS = np.linspace(0.1, 2.0, PROCESS.num_timesteps)
DISTANCES = [
    Distance(),
    Distance("l1"),
    Distance("huber", 0.5),
    Distance("l2", weights=WEIGHTS),
    Distance("huber", 2.0, WEIGHTS),
]
IDS = [f"{d.norm}{d.huber_delta}{'w' * (d.weights is not None)}" for d in DISTANCES]


@pytest.mark.statistical
@pytest.mark.parametrize("distance", DISTANCES, ids=IDS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_they_are_what_such_denoisers_lose(prediction, distance):
    """The linear one is the optimal denoiser of Gaussian data, by the oracle."""
    found = reference_losses(Model(PROCESS, prediction), MEAN, VARIANCE, distance)
    data = oracle.gaussian(MEAN, VARIANCE)
    of_mean = {"eps": 0, "x0": 1, "score": 0}.get(prediction)
    sigma = jnp.asarray(PROCESS.sqrt_one_minus_alphas_cumprod)

    def target_mean(x_t, t):
        scale = -sigma[t] if of_mean is None else jnp.full(t.shape, of_mean)
        return jnp.outer(scale, MEAN)

    zero = with_network(prediction, lambda x_t, t: jnp.zeros_like(x_t))
    mean = with_network(prediction, target_mean)
    linear = oracle.optimal_model(data, PROCESS, prediction)
    expected = [monte_carlo(model, distance) for model in (zero, mean, linear)]
    np.testing.assert_allclose(found, expected, rtol=0.01)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_they_are_those_of_the_best_line_through_four_points(prediction, weights):
    """x_0 = m +- sqrt(v) and eps = +- 1 have the moments; least squares gives the line."""
    model = Model(PROCESS, prediction)
    signs = np.array([(a, b) for a in (-1, 1) for b in (-1, 1)])
    losses = []
    for t in range(PROCESS.num_timesteps):
        weight = 1.0 if weights is None else weights[t]
        for m, v in zip(MEAN, VARIANCE, strict=True):
            x0, eps = m + np.sqrt(v) * signs[:, :1], signs[:, 1:].astype(float)
            with jax.enable_x64(True):
                at = jnp.full(4, t)
                y = np.asarray(model.target(jnp.asarray(x0), at, jnp.asarray(eps)))[:, 0]
            x_t = PROCESS.sqrt_alphas_cumprod[t] * x0[:, 0]
            x_t = x_t + PROCESS.sqrt_one_minus_alphas_cumprod[t] * eps[:, 0]
            line = np.stack([np.ones(4), x_t], axis=1)
            best = line @ np.linalg.lstsq(line, y, rcond=None)[0]
            errors = [y, y - y.mean(), y - best]
            losses.append([weight * np.square(error).mean() for error in errors])
    found = reference_losses(model, MEAN, VARIANCE, Distance(weights=weights))
    np.testing.assert_allclose(found, np.mean(losses, axis=0), rtol=1e-5)


def test_a_network_of_eps_that_has_learned_nothing_loses_what_a_normal_number_does():
    """E[eps^2] = 1 and E|eps| = sqrt(2 / pi), whatever the data are."""
    model = Model(PROCESS, "eps")
    for distance, expected in ((Distance(), 1.0), (Distance("l1"), (2 / np.pi) ** 0.5)):
        found = reference_losses(model, MEAN, VARIANCE, distance)
        np.testing.assert_allclose(found[:2], expected, rtol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("delta", [0.1, 1.0, 4.0])
def test_the_expected_distance_is_the_integral(mean, delta):
    """By quadrature of the distance itself, in pieces between its corners."""
    std = 0.7
    ends = sorted({-12.0, -delta, 0.0, delta, 12.0})
    for norm in ("l2", "l1", "huber"):
        distance = Distance(norm, delta)
        found = expected_distance(distance, np.array(mean), np.array(std))
        with jax.enable_x64(True):
            pieces = [
                quad(
                    lambda e: (
                        float(distance.elementwise(jnp.asarray(e)))  # noqa: B023
                        * normal.pdf(e, mean, std)
                    ),
                    low,
                    high,
                )[0]
                for low, high in zip(ends[:-1], ends[1:], strict=True)
            ]
        assert abs(found - sum(pieces)) < 1e-9, norm


@pytest.mark.parametrize("norm", ["l2", "l1", "huber"])
def test_an_error_without_chance_has_the_distance_of_its_mean(norm):
    mean = np.array([-3.0, -0.2, 0.0, 0.5, 2.0])
    found = expected_distance(Distance(norm), mean, np.zeros(5))
    expected = Distance(norm).elementwise(jnp.asarray(mean))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_many_equal_values_count_as_a_few_of_them():
    few = reference_losses(Model(PROCESS, "v"), MEAN, VARIANCE, Distance())
    many = [np.repeat(x, 3000).reshape(3, 50, 60) for x in (MEAN, VARIANCE)]
    found = reference_losses(Model(PROCESS, "v"), *many, Distance())
    np.testing.assert_allclose(found, few, rtol=1e-3)


def test_batches_have_the_moments_of_the_whole():
    """Against NumPy's own, of integers around a mean far from 0."""
    rng = np.random.default_rng(0)
    x = rng.integers(-50, 50, (40, 3, 2)) + 1e7
    mean, variance = mean_and_variance([x[:1], x[1:30], x[30:]])
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(variance, (x - 1e7).var(axis=0), rtol=1e-7)
    constant = mean_and_variance([np.ones((4, 2)), np.ones((1, 2))])
    np.testing.assert_array_equal(constant, [[1, 1], [0, 0]])
