"""Clips that train as single images, for a share of each batch (Ho et al. 2022).

"Video Diffusion Models" puts single images behind the frames of each clip, and lets no
frame attend to them. Here the attention over time of some clips of a batch is kept to each
frame itself, so that the network learns from them as from images.
"""

import jax

from diffusion_jax.diffusion.batch import FOCUS, Batch


def draw_focus(key: jax.Array, batch: Batch, rate: float) -> Batch:
    """Return the batch with clips drawn, with probability `rate`, to train as images.

    Args:
      key: of the choice.
      batch: x [B, F, H, W, C].
      rate: 0 .. 1.
    """
    focus = jax.random.bernoulli(key, rate, batch.x.shape[:1])
    return batch._replace(cond={**batch.cond, FOCUS: focus})
