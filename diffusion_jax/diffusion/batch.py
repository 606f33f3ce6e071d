"""What a step trains on: examples, and what they are conditioned on."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Examples and their conditions, one row an example; a pytree.

    Attributes:
      x: [B, ...]. As the file has them (uint8 images, float32 points) from the source to
        the device; as the network sees them (float32) in losses and in the bound.
      cond: arrays by name, [B, ...] each; empty for an unconditional model.
    """

    x: Any
    cond: Mapping[str, Any] = {}
