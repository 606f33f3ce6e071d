"""Examples of 256 levels, and the numbers that a network sees."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import UNetConfig
from diffusion_jax.data.kind import Kind

_LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)


class OfLevels(Kind):
    """Examples of 8 bits, [..., H, W, C], which a network sees as k / 127.5 - 1."""

    dtype = np.dtype(np.uint8)
    network = UNetConfig
    is_bounded = has_levels = can_flip = True
    num_forward = 1

    def to_network(self, x: jax.Array) -> jax.Array:
        # From a table: a compiler may turn the division into a product, one ulp off.
        return jnp.asarray(_LEVELS)[x]

    def from_network(self, x: np.ndarray) -> np.ndarray:
        # Rounded; what lies outside of [-1, 1] is clipped.
        return np.clip(np.rint((np.asarray(x) + 1.0) * 127.5), 0, 255).astype(np.uint8)

    def flipped(self, key: jax.Array, x: jax.Array) -> jax.Array:
        mirrored = jax.random.bernoulli(key, shape=(len(x), *(1,) * (x.ndim - 1)))
        return jnp.where(mirrored, x[..., ::-1, :], x)


def how_to_save(array: np.ndarray) -> str:
    """Return how numbers of another form become levels, for messages; begins with "; "."""
    kind, name = array.dtype.kind, array.dtype.name
    if kind == "f" and np.isfinite(array).all():
        low, high = float(array.min()), float(array.max())
        if 0 <= low and high <= 1:
            return "; convert values from 0 to 1 with np.rint(arr_0 * 255).astype(np.uint8)"
        if -1 <= low and high <= 1:
            return (
                "; convert values from -1 to 1 with "
                "np.rint((arr_0 + 1) * 127.5).astype(np.uint8)"
            )
        return "; scale it to 0 to 255, and save np.rint(arr_0).astype(np.uint8)"
    if kind == "b":
        return "; save arr_0.astype(np.uint8) * 255"
    if name == "uint8":
        return ""
    if kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return "; its values fit: save arr_0.astype(np.uint8)"
    if name == "uint16":
        return "; save np.rint(arr_0 / 257).astype(np.uint8)"
    return ""
