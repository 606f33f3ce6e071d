"""Thresholds of the predicted x_0, by hand."""

import functools
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.noise_level import noise_level
from diffusion_jax.samplers import thresholding

# Arguments of a hook that a threshold does not use.
UNUSED = (np.zeros((2, 8, 8, 1), np.float32), noise_level(0.8, 0.6), None)
static, dynamic = (
    lambda x0, hook=hook, **options: np.asarray(hook(x0, *UNUSED, **options))
    for hook in (thresholding.static_threshold, thresholding.dynamic_threshold)
)


def test_thresholds_keep_images_in_range():
    """Static thresholds clip; dynamic ones divide by the percentile of each example."""
    rng = np.random.default_rng(0)
    x0 = np.stack([rng.uniform(-0.9, 0.9, (8, 8, 1)), rng.uniform(-4, 4, (8, 8, 1))])
    x0 = x0.astype(np.float32)
    np.testing.assert_array_equal(static(x0), np.clip(x0, -1, 1))
    for percentile in (0.5, 0.995):
        found = dynamic(x0, percentile=percentile)
        np.testing.assert_array_equal(found[0], x0[0])
        ranked = np.sort(np.abs(x0[1]).ravel())
        position = percentile * 63
        low = int(position)
        s = ranked[low] + (position - low) * (ranked[low + 1] - ranked[low])
        np.testing.assert_allclose(found[1], np.clip(x0[1], -s, s) / s, rtol=1e-5)
        assert np.abs(found).max() == 1
    np.testing.assert_array_equal(dynamic(x0), dynamic(x0, percentile=0.995))


@pytest.mark.parametrize(
    "hook",
    [
        thresholding.static_threshold,
        thresholding.dynamic_threshold,
        functools.partial(thresholding.dynamic_threshold, percentile=0.5),
    ],
)
def test_thresholds_are_hooks(hook):
    """Thresholds have four positional arguments; x_t, level and cond change nothing."""
    names = list(inspect.signature(hook).parameters)
    assert names[:4] == ["x0", "x_t", "level", "cond"]
    x0 = jnp.linspace(-3, 3, 128).reshape(2, 8, 8, 1)
    found = hook(x0, *UNUSED)
    assert found.shape == x0.shape and found.dtype == jnp.float32
    other = hook(x0, x0, noise_level(jnp.float32(0.1), jnp.float32(0.9)), {"label": x0})
    np.testing.assert_array_equal(found, other)
