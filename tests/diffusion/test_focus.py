"""Clips that train as single images: how many, and nothing else is changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.focus import draw_focus


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_clips_are_focused_at_the_rate(rate):
    """100,000 clips: the share within 5 standard deviations."""
    num = 100_000
    batch = Batch(jnp.zeros((num, 1, 1, 1, 1)), {"label": jnp.arange(num)})
    found = draw_focus(jax.random.key(0), batch, rate)
    focus = np.asarray(found.cond["focus"])
    assert focus.shape == (num,) and focus.dtype == bool
    assert abs(focus.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / num)
    assert found.x is batch.x and found.cond["label"] is batch.cond["label"]
    other = draw_focus(jax.random.key(1), batch, rate).cond["focus"]
    assert np.array_equal(focus, other) == (rate in (0, 1))
