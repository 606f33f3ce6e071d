"""Latents between two others."""

import math

import numpy as np


def slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Return the latents at a share of the arc about the origin from a to b; float32.

    sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b, with w the angle between them
    (Shoemake 1985; DDIM appendix D.5), or the line where w is 0 or pi.

    Args:
      a, b: of one shape, float32; at the shares 0 and 1 the result has their bits.
      share: u, 0 .. 1.
    """
    x, y = (np.asarray(end, np.float64) for end in (a, b))
    norms = math.sqrt(float(np.sum(x * x)) * float(np.sum(y * y)))
    # Unseen (1.0): the line of a latent of length 0 needs no angle.
    cosine = float(np.sum(x * y)) / norms if norms else 1.0
    # Unseen (1.0): a guard against rounding.
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    weights = [1.0 - share, share]
    if math.sin(angle) > 1e-6:
        weights = [math.sin(w * angle) / math.sin(angle) for w in weights]
    return (weights[0] * x + weights[1] * y).astype(np.float32)
