"""The forward process of DDPM and DDIM, and its posteriors.

With alpha-bar_t = alphas_cumprod[t]:

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                   (DDPM eq. 2)
    q(x_t | x_0)     = N(sqrt(alpha-bar_t) x_0, (1 - alpha-bar_t) I)            (eq. 4)
    q(x_{t-1} | x_t, x_0) = N(coef1_t x_0 + coef2_t x_t, beta-tilde_t I)       (eqs. 6, 7)
    q_sigma(x_{t-1} | x_t, x_0), of any variance sigma_t^2               (DDIM eq. 7)

Shapes: images are [B, ...], `t` is int32 [B] (or a scalar for the whole batch) in
0 .. T-1, where index t is the papers' step t + 1. Where coefficients are read, a `t`
outside that range gives NaN, never those of some other step. All results are float32.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.tables import read


def q_step(
    schedule: Schedule, x_prev: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
    """One noising step, x_{t-1} -> x_t (DDPM eq. 2).

    Args:
      schedule: the noise process.
      x_prev: [B, ...] the image before step t; x_0 for t = 0.
      t: int32 [B] or scalar.
      noise: standard normal, the shape of x_prev.
    """
    chex.assert_equal_shape([x_prev, noise])
    keep = at(np.sqrt(schedule.alphas), t, x_prev)
    add = at(np.sqrt(schedule.betas), t, x_prev)
    return keep * x_prev + add * noise


def q_sample(
    schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
    """x_t drawn from q(x_t | x_0) in one go (DDPM eq. 4).

    Args:
      schedule: the noise process.
      x0: [B, ...] clean images in [-1, 1].
      t: int32 [B] or scalar.
      noise: standard normal, the shape of x0.
    """
    chex.assert_equal_shape([x0, noise])
    signal = at(schedule.sqrt_alphas_cumprod, t, x0)
    sigma = at(schedule.sqrt_one_minus_alphas_cumprod, t, x0)
    return signal * x0 + sigma * noise


def q_trajectory(
    schedule: Schedule, key: jax.Array, x0: jax.Array, frames: Sequence[int] | None = None
) -> jax.Array:
    """The noised chain x_1 .. x_T, drawn jointly, as one scan of `q_step`.

    Args:
      schedule: the noise process.
      key: one typed PRNG key; step t uses fold_in(key, t).
      x0: [B, ...] clean images.
      frames: different timesteps whose images to keep; all unless given.

    Returns:
      [F, B, ...]: entry i is the image after noising step frames[i].
    """
    steps = range(schedule.num_timesteps)
    frames = list(steps if frames is None else frames)
    slot_of = {t: slot for slot, t in enumerate(frames)}
    slots = [slot_of.get(t, len(frames)) for t in steps]

    def step(carry: tuple[jax.Array, jax.Array], row: tuple[jax.Array, jax.Array]):
        (x, kept), (t, slot) = carry, row
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape)
        x = q_step(schedule, x, t, noise)
        return (x, kept.at[slot].set(x, mode="drop")), None

    x0 = jnp.asarray(x0, jnp.float32)
    kept = jnp.zeros((len(frames), *x0.shape))
    rows = (jnp.arange(schedule.num_timesteps), jnp.asarray(slots))
    # Unseen (kept): zeros, all of which are overwritten.
    return jax.lax.scan(step, (x0, kept), rows)[0][1]


def q_posterior(
    schedule: Schedule, x0: jax.Array, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q(x_{t-1} | x_t, x_0), a Gaussian (DDPM eqs. 6 and 7).

    Args:
      schedule: the noise process.
      x0: [B, ...] clean images (or their prediction).
      x_t: [B, ...] noised images.
      t: int32 [B] or scalar.

    Returns:
      mean [B, ...], and variance and log variance, which broadcast against it. At t = 0
      the variance is 0 and the log variance that of t = 1, so that it is finite.
    """
    chex.assert_equal_shape([x0, x_t])
    mean = (
        at(schedule.posterior_mean_coef1, t, x0) * x0
        + at(schedule.posterior_mean_coef2, t, x0) * x_t
    )
    variance = at(schedule.posterior_variance, t, x0)
    log_variance = at(schedule.posterior_log_variance_clipped, t, x0)
    return mean, variance, log_variance


def q_sigma(
    schedule: Schedule, sigma: np.ndarray, x0: jax.Array, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """DDIM's non-Markovian q_sigma(x_{t-1} | x_t, x_0), a Gaussian (DDIM eq. 7).

    Whatever sigma is, x_t has the same q(x_t | x_0) (DDIM lemma 1); `ddim_sigma` at
    eta = 1 makes it `q_posterior`.

    Args:
      schedule: the noise process.
      sigma: the standard deviation at each t, float64 [T], with
        sigma^2 <= 1 - alphas_cumprod_prev; so 0 at t = 0.
      x0: [B, ...] clean images (or their prediction).
      x_t: [B, ...] noised images.
      t: int32 [B] or scalar.

    Returns:
      mean [B, ...], and the variance sigma^2, which broadcasts against it.

    Raises:
      ValueError: for a sigma of another shape, or too large.
    """
    chex.assert_equal_shape([x0, x_t])
    sigma = np.asarray(sigma, np.float64)
    if sigma.shape != schedule.betas.shape:
        raise ValueError(
            f"sigma must have the shape {schedule.betas.shape}; got {sigma.shape}"
        )
    rest = 1 - schedule.alphas_cumprod_prev - sigma**2
    # At eta = 1 and full noise the rest is 0 except for rounding.
    # Unseen (1e-12): a tolerance for rounding in float64, which is near 1e-16.
    for index in np.flatnonzero(~((sigma >= 0) & (rest > -1e-12)))[:1]:
        raise ValueError(
            f"sigma[{index}] ({sigma[index]}) must be in 0 .. "
            f"sqrt(1 - alphas_cumprod_prev), here "
            f"{(1 - schedule.alphas_cumprod_prev[index]) ** 0.5:.6g}"
        )
    # The direction that points to x_t: eq. 7 with x_t's share of noise, regrouped.
    direction = np.sqrt(np.maximum(rest, 0.0)) / schedule.sqrt_one_minus_alphas_cumprod
    of_x0 = np.sqrt(schedule.alphas_cumprod_prev) - direction * schedule.sqrt_alphas_cumprod
    mean = at(of_x0, t, x0) * x0 + at(direction, t, x0) * x_t
    return mean, at(sigma**2, t, x0)


def ddim_sigma(schedule: Schedule, eta: float) -> np.ndarray:
    """sigma at each t between deterministic (eta 0) and DDPM's (eta 1); float64 [T].

    eta sqrt((1 - prev) / (1 - alpha-bar)) sqrt(1 - alpha-bar / prev)     (DDIM eq. 16)
    """
    return eta * np.sqrt(schedule.posterior_variance)


def at(table: np.ndarray, t: jax.Array, x: jax.Array) -> jax.Array:
    """Return table[t] in float32, in a shape that broadcasts over x; NaN out of range."""
    t = jnp.asarray(t)
    return read(table, t, jnp.float32).reshape(t.shape + (1,) * (x.ndim - t.ndim))
