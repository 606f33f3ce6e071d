"""Chains that refine a low-resolution image: against the posterior of a joint Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.conditioning_augmentation import augmented_samples
from diffusion_jax.diffusion.model import Model
from diffusion_jax.samplers import chain, methods
from diffusion_jax.samplers.timesteps import spaced_timesteps
from helpers import SCHEDULE

# Images of 2x2 pixels that share a part, and their mean, the image of 1x1.
MEAN = np.array([0.1, -0.2, 0.3, 0.0])
COVARIANCE = 0.2 * np.eye(4) + 0.15 * np.ones((4, 4))
TO_LOW = np.full(4, 0.25)
LEVELS = np.array([0.1, 0.35])
NUM = 8000  # Samples of each level.


def gains(level):
    """[T, 4, 5] and [T, 4]: E[x_0 | x_t, z] = G (x_t, z) + g at every timestep."""
    found = []
    angle = np.pi / 2 * level
    for share in SCHEDULE.alphas_cumprod:
        seen = np.vstack([np.sqrt(share) * np.eye(4), np.cos(angle) * TO_LOW])
        noise = np.diag([1 - share] * 4 + [np.sin(angle) ** 2])
        total = seen @ COVARIANCE @ seen.T + noise
        gain = np.linalg.solve(total, seen @ COVARIANCE).T
        found.append((gain, MEAN - gain @ seen @ MEAN))
    return [np.array(part, np.float32) for part in zip(*found, strict=True)]


GAINS = [jnp.asarray(np.stack(p)) for p in zip(*map(gains, LEVELS), strict=True)]


def apply_fn(params, x_t, t, cond, **options):
    """Return the exact E[x_0 | x_t, z], as a network that is told the level would."""
    which = (cond["aug_level"] > LEVELS.mean()).astype(jnp.int32)
    gain, shift = (part[:, t[0].astype(jnp.int32)] for part in GAINS)
    seen = jnp.concatenate([x_t.reshape(-1, 4), cond["low_res"].reshape(-1, 1)], axis=1)
    x0 = jnp.einsum("bij,bj->bi", gain[which], seen) + shift[which]
    return x0.reshape(x_t.shape)


MODEL = Model(SCHEDULE, "x0", apply_fn=apply_fn)


def posterior(level, z):
    """Mean and covariance of x given z = cos(pi s / 2) mean(x) + sin(pi s / 2) eps."""
    angle = np.pi / 2 * level
    seen = np.cos(angle) * TO_LOW
    gain = COVARIANCE @ seen / (seen @ COVARIANCE @ seen + np.sin(angle) ** 2)
    mean = MEAN + gain * (z - seen @ MEAN)
    return mean, COVARIANCE - np.outer(gain, seen @ COVARIANCE)


@functools.cache
def drawn(name, steps):
    """[2, NUM, 4], the samples of both levels in one batch, and the z that they refine."""
    z = np.array([0.4, -0.3], np.float32)
    table = methods.METHODS[name](MODEL, spaced_timesteps("trailing", SCHEDULE, steps))
    cond = {
        "low_res": np.repeat(z, NUM).reshape(-1, 1, 1, 1),
        "aug_level": np.repeat(LEVELS, NUM).astype(np.float32),
    }
    samples = chain.Samples(jax.random.key(0), np.arange(2 * NUM, dtype=np.int32))
    options = chain.ChainOptions(hook=None)
    sample = jax.jit(chain.sample_chain, static_argnums=(0, 4, 6))
    x, _ = sample(MODEL, None, table, samples, (2, 2, 1), cond, options)
    return np.asarray(x, np.float64).reshape(2, NUM, 4), z


@pytest.mark.statistical
@pytest.mark.parametrize(("name", "steps"), [("ddpm", 200), ("dpmpp_2m", 50)])
def test_samples_are_of_the_posterior_given_the_noised_low_resolution(name, steps):
    """Mean and covariance of every level: 5 standard errors, and 0.02 for the steps."""
    samples, z = drawn(name, steps)
    for level, x, given in zip(LEVELS, samples, z, strict=True):
        mean, covariance = posterior(level, given)
        deviation = np.sqrt(np.diag(covariance))
        assert (np.abs(x.mean(0) - mean) < 5 * deviation / NUM**0.5 + 0.02).all()
        error = np.abs(np.cov(x.T) - covariance)
        spread = np.outer(deviation, deviation) * (2 / NUM) ** 0.5
        assert (error < 5 * spread + 0.02 * np.outer(deviation, deviation)).all()


@pytest.mark.statistical
def test_a_cascade_of_exact_stages_draws_the_data():
    """With c of the data and noise of a level, samples have the data's moments.

    Their means also follow c as far as the noise leaves it: Cov(mean(x), c) is that of the
    regression on z times cos(pi s / 2) Var(c).
    """
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(MEAN, COVARIANCE, NUM)
    c = (x @ TO_LOW).astype(np.float32)
    samples = chain.Samples(jax.random.key(1), np.arange(NUM, dtype=np.int32))
    low_res = {"low_res": c.reshape(-1, 1, 1, 1)}
    cond = augmented_samples(samples.key, low_res, float(LEVELS[1]), samples.indices)
    table = methods.METHODS["ddpm"](MODEL, spaced_timesteps("trailing", SCHEDULE, 200))
    options = chain.ChainOptions(hook=None)
    sample = jax.jit(chain.sample_chain, static_argnums=(0, 4, 6))
    x = np.asarray(sample(MODEL, None, table, samples, (2, 2, 1), cond, options)[0])
    x = x.reshape(NUM, 4).astype(np.float64)
    deviation = np.sqrt(np.diag(COVARIANCE))
    assert (np.abs(x.mean(0) - MEAN) < 5 * deviation / NUM**0.5 + 0.02).all()
    error = np.abs(np.cov(x.T) - COVARIANCE)
    assert (error < np.outer(deviation, deviation) * (5 * (2 / NUM) ** 0.5 + 0.02)).all()
    angle, variance = np.pi / 2 * LEVELS[1], TO_LOW @ COVARIANCE @ TO_LOW
    kept = np.cos(angle) ** 2 * variance
    wanted = kept / (kept + np.sin(angle) ** 2) * variance
    found = np.cov(x @ TO_LOW, c)[0, 1]
    assert abs(found - wanted) < variance * (5 * (2 / NUM) ** 0.5 + 0.02)
