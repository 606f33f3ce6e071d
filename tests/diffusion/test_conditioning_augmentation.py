"""Noise in low-resolution images: against moments, its ends, and an exact posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.conditioning_augmentation import (
    augmented,
    augmented_samples,
    with_noise,
)

KEY = jax.random.key(3)


def batch_of(low_res):
    label = np.arange(len(low_res), dtype=np.int32)
    return Batch(
        np.ones((len(low_res), 4, 4, 1), np.float32),
        {"low_res": low_res} | {"label": label},
    )


def pictures(num, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num, 2, 2, 1)).astype(np.float32)


def test_the_ends_are_the_image_and_the_noise():
    low_res, noise = pictures(2), pictures(2, seed=1)
    z = np.asarray(with_noise(low_res, np.array([0.0, 1.0], np.float32), noise))
    np.testing.assert_array_equal(z[0], low_res[0])
    np.testing.assert_allclose(z[1], noise[1], atol=1e-6)


def test_signal_and_noise_are_equal_half_way():
    """At s = 1/2 an image of 1 and a noise of 1 give 2 / sqrt(2)."""
    one = np.ones((1, 2, 2, 1), np.float32)
    z = with_noise(one, np.full(1, 0.5, np.float32), one)
    np.testing.assert_allclose(z, 2**0.5, rtol=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_an_image_keeps_its_variance_and_loses_its_signal(level):
    """Var z = 1 and Cov(z, c) = cos(pi s / 2) for c of variance 1, within 5 sigma."""
    num = 40_000
    low_res = np.random.default_rng(0).normal(size=(num, 1, 1, 1)).astype(np.float32)
    cond = augmented_samples(KEY, {"low_res": low_res}, level, jnp.arange(num))
    z, c = np.ravel(cond["low_res"]), np.ravel(low_res)
    assert abs(np.var(z) - 1) < 5 * (2 / num) ** 0.5
    assert abs(np.mean(z * c) - np.cos(np.pi * level / 2)) < 5 * (2 / num) ** 0.5
    np.testing.assert_array_equal(cond["aug_level"], np.full(num, level, np.float32))


@pytest.mark.statistical
def test_levels_in_training_are_uniform_and_those_of_the_noise():
    """The levels pass a Kolmogorov-Smirnov test, and say how much noise there is."""
    num, largest = 4000, 0.5
    batch = batch_of(np.zeros((num, 2, 2, 1), np.float32))
    cond = augmented(KEY, batch, largest).cond
    level = np.asarray(cond["aug_level"])
    assert stats.kstest(level / largest, "uniform").pvalue > 1e-3
    noise = np.asarray(cond["low_res"]) / np.sin(np.pi * level / 2)[:, None, None, None]
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_training_changes_the_low_resolution_alone():
    batch = batch_of(pictures(3))
    found = augmented(KEY, batch, 0.5)
    np.testing.assert_array_equal(found.x, batch.x)
    np.testing.assert_array_equal(found.cond["label"], batch.cond["label"])
    assert not np.array_equal(found.cond["low_res"], batch.cond["low_res"])


def test_level_0_leaves_samples_as_they_are():
    low_res = pictures(3)
    cond = augmented_samples(KEY, {"low_res": low_res}, 0.0, jnp.arange(3))
    np.testing.assert_array_equal(cond["low_res"], low_res)
    np.testing.assert_array_equal(cond["aug_level"], np.zeros(3))


def test_the_noise_of_a_sample_does_not_depend_on_its_batch():
    """Samples 2 and 5 have the same bits among eight, and by themselves in turn."""
    low_res = pictures(8)
    whole = augmented_samples(KEY, {"low_res": low_res}, 0.3, jnp.arange(8))["low_res"]
    some = np.array([5, 2])
    few = augmented_samples(KEY, {"low_res": low_res[some]}, 0.3, some)["low_res"]
    np.testing.assert_array_equal(np.asarray(whole)[some], few)
