"""Batches of examples, and the random draws that belong to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Names of conditions: the low-resolution image that is refined, [B, h, w, C], the level of
# the noise in it, [B], and which clips are learned as images, bool [B].
LOW_RES, AUG_LEVEL, FOCUS = "low_res", "aug_level", "focus"


class Batch(NamedTuple):
    """Examples and their conditions, one row per example; a pytree.

    Attributes:
      x: [B, ...]. As the file has them (uint8 images, float32 points) from the source to
        the device; as the network sees them (float32) in losses and in the bound.
      cond: arrays by name, [B, ...] each; empty for an unconditional model.
    """

    x: Any
    cond: Mapping[str, Any] = {}


class Draw(NamedTuple):
    """Timesteps and noise of the examples of a batch; a pytree.

    Attributes:
      t: int32 [B], the timesteps, 0 .. T-1.
      noise: float32, standard normal, the shape of the examples.
    """

    t: Any
    noise: Any
