"""The forward process of DDPM, and what a network's prediction says about x_0.

With alpha-bar_t = alphas_cumprod[t]:

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                   (DDPM eq. 2)
    q(x_t | x_0)     = N(sqrt(alpha-bar_t) x_0, (1 - alpha-bar_t) I)            (eq. 4)
    q(x_{t-1} | x_t, x_0) = N(coef1_t x_0 + coef2_t x_t, beta-tilde_t I)       (eqs. 6, 7)

A network predicts eps (the noise in x_t), x0, or v = sqrt(alpha-bar) eps
- sqrt(1 - alpha-bar) x_0 (Salimans & Ho 2022). Given x_t each of them determines the
other two, linearly; the six functions below are those lines.

Shapes: images are [B, ...], `t` is int32 [B] (or a scalar for the whole batch) in
0 .. T-1, where index t is the papers' step t + 1. Where coefficients are read, a `t`
outside that range gives NaN, never those of some other step. All results are float32.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.schedules import Schedule

PREDICTION_TYPES = ("eps", "x0", "v")


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
    keep = _at(np.sqrt(schedule.alphas), t, x_prev)
    add = _at(np.sqrt(schedule.betas), t, x_prev)
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
    signal = _at(schedule.sqrt_alphas_cumprod, t, x0)
    sigma = _at(schedule.sqrt_one_minus_alphas_cumprod, t, x0)
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
        _at(schedule.posterior_mean_coef1, t, x0) * x0
        + _at(schedule.posterior_mean_coef2, t, x0) * x_t
    )
    variance = _at(schedule.posterior_variance, t, x0)
    log_variance = _at(schedule.posterior_log_variance_clipped, t, x0)
    return mean, variance, log_variance


def x0_from_eps(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """The x_0 that with noise eps makes x_t (DDPM eq. 15).

    Float32 rounding of x_t is amplified by 1 / sqrt(alphas_cumprod_t): 157 at T - 1 of
    the linear schedule, 20,291 of the cosine one. That lies in the problem itself.
    """
    return _combine(*x0_coefficients("eps", schedule.alphas_cumprod), x_t, t, eps)


def x0_from_v(schedule: Schedule, x_t: jax.Array, t: jax.Array, v: jax.Array) -> jax.Array:
    """x_0 = sqrt(alpha-bar) x_t - sqrt(1 - alpha-bar) v (Salimans & Ho, appendix D)."""
    return _combine(*x0_coefficients("v", schedule.alphas_cumprod), x_t, t, v)


def eps_from_x0(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array
) -> jax.Array:
    """The noise that with x_0 makes x_t: DDPM eq. 4 solved for eps.

    Float32 rounding is amplified by 1 / sqrt(1 - alphas_cumprod_t), at t = 0 by
    100 (linear schedule) or 156 (cosine).
    """
    sigma = schedule.sqrt_one_minus_alphas_cumprod
    return _combine(1 / sigma, -schedule.sqrt_alphas_cumprod / sigma, x_t, t, x0)


def eps_from_v(schedule: Schedule, x_t: jax.Array, t: jax.Array, v: jax.Array) -> jax.Array:
    """eps = sqrt(1 - alpha-bar) x_t + sqrt(alpha-bar) v (Salimans & Ho, appendix D)."""
    sigma = schedule.sqrt_one_minus_alphas_cumprod
    return _combine(sigma, schedule.sqrt_alphas_cumprod, x_t, t, v)


def v_from_eps(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """v = (eps - sqrt(1 - alpha-bar) x_t) / sqrt(alpha-bar): `eps_from_v` solved for v."""
    signal = schedule.sqrt_alphas_cumprod
    sigma = schedule.sqrt_one_minus_alphas_cumprod
    return _combine(-sigma / signal, 1 / signal, x_t, t, eps)


def v_from_x0(schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """v = (sqrt(alpha-bar) x_t - x_0) / sqrt(1 - alpha-bar): `x0_from_v` solved for v."""
    sigma = schedule.sqrt_one_minus_alphas_cumprod
    return _combine(schedule.sqrt_alphas_cumprod / sigma, -1 / sigma, x_t, t, x0)


def x0_from_prediction(
    schedule: Schedule,
    prediction_type: str,
    x_t: jax.Array,
    t: jax.Array,
    prediction: jax.Array,
) -> jax.Array:
    """x_0 from what a network predicted: "eps", "x0" or "v". [B, ...] -> [B, ...]."""
    a, b = x0_coefficients(prediction_type, schedule.alphas_cumprod)
    return _combine(a, b, x_t, t, prediction)


def prediction_target(
    schedule: Schedule,
    prediction_type: str,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """What a network of this prediction type should say at q_sample(x0, t, noise).

    Returns:
      [B, ...]: the noise, x0, or v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) x0.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "eps":
        return noise
    if prediction_type == "x0":
        return x0
    signal = _at(schedule.sqrt_alphas_cumprod, t, x0)
    sigma = _at(schedule.sqrt_one_minus_alphas_cumprod, t, x0)
    return signal * noise - sigma * x0


def x0_coefficients(
    prediction_type: str, alphas_cumprod: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) with x_0 = a x_t + b prediction, on the host, in float64.

    Args:
      prediction_type: "eps", "x0" or "v".
      alphas_cumprod: alpha-bar of each noise level, in (0, 1), float64 [S].
    """
    check_prediction_type(prediction_type)
    signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    if prediction_type == "eps":
        return 1 / signal, -sigma / signal
    if prediction_type == "x0":
        return np.zeros_like(signal), np.ones_like(signal)
    return signal, -sigma


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError unless the name is one of PREDICTION_TYPES."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction type {prediction_type!r} is unknown; it can be "
            + ", ".join(PREDICTION_TYPES)
        )


def _combine(a: np.ndarray, b: np.ndarray, x_t, t, other) -> jax.Array:
    chex.assert_equal_shape([x_t, other])
    return _at(a, t, x_t) * x_t + _at(b, t, x_t) * other


def _at(table: np.ndarray, t: jax.Array, x: jax.Array) -> jax.Array:
    """table[t] in float32, shaped to broadcast over x; NaN where t is out of range."""
    t = jnp.asarray(t)
    # jnp indexing would wrap t = -1 around to T - 1 and clamp t = T, both in silence.
    values = (
        jnp.asarray(table, jnp.float32)
        .at[t]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )
    return values.reshape(t.shape + (1,) * (x.ndim - t.ndim))
