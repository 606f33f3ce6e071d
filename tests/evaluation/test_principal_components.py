"""Principal components as features, against the eigenvectors of the covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation.principal_components import (
    num_examples,
    principal_components,
)


def pictures(num=200, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 2, 2, 1)).repeat(2, 1).repeat(2, 2)
    noise = rng.integers(0, 30, (num, 4, 4, 1))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def test_the_features_are_the_projections_on_the_axes_of_largest_variance():
    """Distances and variances by the eigenvectors of NumPy's covariance."""
    x = pictures()
    network = principal_components(x, 3)
    features, logits = jax.jit(network.apply)(network.params, jnp.asarray(x))
    assert logits is None and features.shape == (200, 3)
    flat = x.reshape(200, -1).astype(float)
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    axes, variances = vectors[:, ::-1][:, :3], values[::-1][:3]
    wanted = (flat - flat.mean(axis=0)) @ axes / np.sqrt(variances.mean())
    # Eigenvectors have no sign.
    signs = np.sign((wanted * np.asarray(features)).sum(axis=0))
    np.testing.assert_allclose(features, wanted * signs, atol=2e-5)
    covariance = np.cov(np.asarray(features, float).T)
    np.testing.assert_allclose(np.trace(covariance), 3, rtol=1e-5)


def test_the_range_of_the_examples_makes_no_difference():
    points = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    one, other = (principal_components(x, 4) for x in (points, 1000 * points + 5))
    found = one.apply(one.params, jnp.asarray(points)).features
    scaled = other.apply(other.params, jnp.asarray(1000 * points + 5)).features
    np.testing.assert_allclose(abs(found), abs(scaled), atol=2e-4)


def test_the_identity_is_that_of_the_examples():
    x = pictures()
    same, other = principal_components(x, 3), principal_components(x[::-1], 3)
    assert principal_components(x.copy(), 3).sha256 == same.sha256 != other.sha256
    assert principal_components(x, 2).sha256 != same.sha256
    assert (same.name, same.num_features, same.num_classes) == ("pca3", 3, 0)


def test_examples_that_give_no_components_are_refused():
    with pytest.raises(ValueError, match="more than 20 examples"):
        principal_components(pictures(20), 20)
    with pytest.raises(ValueError, match="differ"):
        principal_components(np.zeros((30, 4, 4, 1), np.uint8), 3)


def test_few_large_examples_stay_in_memory():
    assert num_examples(50_000, 64) == 10_000
    assert num_examples(50_000, 256 * 256 * 3) == 2**27 // (256 * 256 * 3)
    assert num_examples(7, 64) == 7
