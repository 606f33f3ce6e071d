"""Noise levels: the points (alpha, sigma) of x_t = alpha x_0 + sigma eps.

A process that preserves the variance, as those of DDPM do, has alpha^2 = alphas_cumprod and
sigma^2 = 1 - alphas_cumprod; flow matching (alpha = 1 - t, sigma = t) and EDM (alpha = 1)
have other levels, and the same formulas.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.tables import read


class NoiseLevel(NamedTuple):
    """One noise level, or many: arrays or numbers that broadcast against each other.

    The squares are kept, which a schedule has to the last bit: of 1 - alphas_cumprod the
    square of its rounded root has lost digits, while the root of a square is exact.

    Attributes:
      alpha_squared: the share of x_0 in the variance of x_t, at least 0.
      sigma_squared: the variance of the noise in x_t, at least 0.
    """

    alpha_squared: Any
    sigma_squared: Any

    @property
    def alpha(self) -> Any:
        """The coefficient of x_0 in x_t."""
        return _sqrt(self.alpha_squared)

    @property
    def sigma(self) -> Any:
        """The coefficient of the noise in x_t."""
        return _sqrt(self.sigma_squared)

    def reshape(self, *shape: int) -> "NoiseLevel":
        """Return the level with both arrays in this shape."""
        return NoiseLevel(*(jnp.reshape(square, shape) for square in self))


def noise_level(alpha: Any, sigma: Any) -> NoiseLevel:
    """Return the level of these coefficients."""
    return NoiseLevel(alpha * alpha, sigma * sigma)


def variance_preserving(alphas_cumprod: Any) -> NoiseLevel:
    """Return the level at which x_0 has this share of the variance."""
    return NoiseLevel(alphas_cumprod, 1 - alphas_cumprod)


def noise_level_at(process: Schedule, t: Any, dtype: Any = jnp.float32) -> NoiseLevel:
    """Return the levels of a process at t, on the device.

    Args:
      process: the noise process.
      t: [B] or scalar. Whole numbers read the process's tables, rounded once to `dtype`;
        real ones lie between them as in `schedules.alphas_cumprod_at`.
      dtype: of the result.

    Returns:
      [B] or scalar; NaN where t is out of range.
    """
    t = jnp.asarray(t)
    if jnp.issubdtype(t.dtype, jnp.integer):
        squares = variance_preserving(process.alphas_cumprod)
        return NoiseLevel(*(read(table, t, dtype) for table in squares))
    t = t.astype(dtype)
    indices = jnp.arange(process.num_timesteps, dtype=t.dtype)
    # Unseen (1e-300): where there is no signal, what is interpolated is not used.
    log_of = np.log(np.maximum(process.alphas_cumprod, 1e-300))
    # Unseen (jnp.nan): not a number either way.
    log_share = jnp.interp(
        t, indices, jnp.asarray(log_of, t.dtype), left=jnp.nan, right=jnp.nan
    )
    last = int(np.flatnonzero(process.alphas_cumprod)[-1])  # The last t with a signal.
    is_without = (t > last) & ~jnp.isnan(log_share)
    log_share = jnp.where(is_without, -jnp.inf, log_share)
    return NoiseLevel(jnp.exp(log_share), -jnp.expm1(log_share))


def _sqrt(square: Any) -> Any:
    return jnp.sqrt(square) if isinstance(square, jax.Array) else np.sqrt(square)
