"""Chains that start from a known x_0: all of it, or the part that a mask says is known.

Inpainting keeps what is known and paints the rest. Each predicted x_0 is replaced by the
known one where there is one, so that the state there follows q(x_t | x_0), as in RePaint
(Lugmayr et al. 2022, eq. 8), and the last row, which lands on x_0, gives it back exactly.
What is painted fits better with `methods.with_resampling`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.noise_level import NoiseLevel
from diffusion_jax.samplers.chain import Start
from diffusion_jax.samplers.thresholding import Hook

# Names in what a chain is conditioned on: x_0 [B, ...], and bool, [B, ...] or what
# broadcasts to it.
KNOWN, IS_KNOWN = "known", "is_known"


def keep_known(hook: Hook | None) -> Hook:
    """Return the hook that does another one, and then replaces x_0 where it is known.

    Args:
      hook: the threshold, or None.
    """

    def kept(x0: jax.Array, x_t: jax.Array, level: NoiseLevel, cond: Any) -> jax.Array:
        painted = x0 if hook is None else hook(x0, x_t, level, cond)
        return jnp.where(cond[IS_KNOWN], jnp.asarray(cond[KNOWN], x0.dtype), painted)

    return kept


def noised_start(x0: Any, level: NoiseLevel, is_known: Any = True) -> Start:
    """Return the start of chains at q(x_t | x_0), and at pure noise where x_0 is unknown.

    With all of x_0 known that is SDEdit (Meng et al. 2022, algorithm 1), whose list of
    timesteps begins where the chain does.

    Args:
      x0: [B, ...].
      level: of the first row, scalars.
      is_known: bool, [B, ...] or what broadcasts to it.
    """
    shape = jnp.broadcast_shapes(jnp.shape(is_known), (len(x0),) + (1,) * (x0.ndim - 1))
    is_known = jnp.broadcast_to(is_known, shape)
    x0 = jnp.asarray(x0)
    alpha, sigma = (jnp.asarray(value, x0.dtype) for value in (level.alpha, level.sigma))
    mean = jnp.where(is_known, alpha * x0, jnp.zeros_like(x0))
    return Start(mean, jnp.where(is_known, sigma, jnp.ones_like(sigma)))
