"""Thresholds of the predicted x_0, by hand."""

import numpy as np

from diffusion_jax.samplers import thresholding


def test_thresholds_keep_images_in_range():
    """Static clips. Dynamic divides by the percentile, of each example for itself."""
    rng = np.random.default_rng(0)
    x0 = np.stack([rng.uniform(-0.9, 0.9, (8, 8, 1)), rng.uniform(-4, 4, (8, 8, 1))])
    x0 = x0.astype(np.float32)
    np.testing.assert_array_equal(thresholding.static_threshold(x0), np.clip(x0, -1, 1))
    for percentile in (0.5, 0.995):
        found = np.asarray(thresholding.dynamic_threshold(x0, percentile))
        np.testing.assert_array_equal(found[0], x0[0])
        ranked = np.sort(np.abs(x0[1]).ravel())
        position = percentile * 63
        low = int(position)
        s = ranked[low] + (position - low) * (ranked[low + 1] - ranked[low])
        np.testing.assert_allclose(found[1], np.clip(x0[1], -s, s) / s, rtol=1e-5)
        assert np.abs(found).max() == 1
    np.testing.assert_array_equal(
        thresholding.dynamic_threshold(x0), thresholding.dynamic_threshold(x0, 0.995)
    )
