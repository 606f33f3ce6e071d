"""The terms of the variational bound: what the reverse steps cost, in bits per dimension.

    -log p(x_0) <= L_T + sum over t of L_{t-1} + L_0                           (DDPM eq. 5)

L_{t-1} is a divergence of two Gaussians, and L_0 the negative log-likelihood of 8-bit
images under a Gaussian that is integrated over each level's bin (DDPM eq. 13). Here
index t = 0 is the papers' t = 1, so `variational_terms` at t = 0 is L_0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.forward_process import q_posterior, q_sample
from diffusion_jax.diffusion.parameterization import (
    p_mean_log_variance,
    prediction_alone,
    split_output,
    x0_from_prediction,
)
from diffusion_jax.diffusion.schedules import Schedule

# Half the distance of two levels of 8-bit images in [-1, 1], and the smallest probability
# that a level is given.
_HALF_BIN = 1 / 255
_MIN_PROBABILITY = 1e-12


def normal_kl(
    mean1: jax.Array, log_variance1: jax.Array, mean2: jax.Array, log_variance2: jax.Array
) -> jax.Array:
    """KL(N(mean1, variance1) || N(mean2, variance2)) of each element, in nats.

    The arguments broadcast against one another.
    """
    difference = log_variance1 - log_variance2
    return 0.5 * (
        jnp.expm1(difference)
        - difference
        + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    )


def discretized_gaussian_log_likelihood(
    x0: jax.Array, mean: jax.Array, log_variance: jax.Array
) -> jax.Array:
    """log of the mass that N(mean, variance) has in x_0's bin, in nats (DDPM eq. 13).

    The bin reaches half a level to either side, and to infinity from the first and from
    the last level. No level has less than 1e-12.

    Args:
      x0: 8-bit images as float32 k / 127.5 - 1.
      mean, log_variance: float32, which broadcast against it.

    Returns:
      float32, the shape of x0, of each element.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)
    upper = jnp.where(x0 > 0.999, jnp.inf, (x0 - mean + _HALF_BIN) * inverse_std)
    lower = jnp.where(x0 < -0.999, -jnp.inf, (x0 - mean - _HALF_BIN) * inverse_std)
    # The difference of two nearly equal cumulative probabilities keeps its digits in the
    # lower tail alone, so a bin above the mean is mirrored.
    above = lower > 0
    upper, lower = jnp.where(above, -lower, upper), jnp.where(above, -upper, lower)
    mass = jax.scipy.special.ndtr(upper) - jax.scipy.special.ndtr(lower)
    return jnp.log(jnp.maximum(mass, _MIN_PROBABILITY))


def variational_terms(
    schedule: Schedule,
    variance_type: str,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    predicted_x0: jax.Array,
    variance_output: jax.Array | None = None,
) -> jax.Array:
    """L_{t-1}, and L_0 at t = 0, of each image (DDPM eq. 5), in bits per dimension.

    Args:
      schedule: the noise process.
      variance_type: of the reverse step, see `predictions.p_mean_log_variance`.
      x0: [B, ...] 8-bit images as float32 k / 127.5 - 1.
      x_t: [B, ...] drawn from q(x_t | x_0).
      t: int32 [B], 0 .. T-1.
      predicted_x0: [B, ...] x_0 as the network sees it.
      variance_output: [B, ...] for a learned variance.

    Returns:
      float32 [B], the mean over the dimensions of an image.
    """
    true_mean, _, true_log_variance = q_posterior(schedule, x0, x_t, t)
    mean, log_variance = p_mean_log_variance(
        schedule, variance_type, predicted_x0, x_t, t, variance_output
    )
    divergence = normal_kl(true_mean, true_log_variance, mean, log_variance)
    first = -discretized_gaussian_log_likelihood(x0, mean, log_variance)
    at_first = (t == 0).reshape(t.shape + (1,) * (x0.ndim - 1))
    nats = jnp.where(at_first, first, divergence)
    return nats.reshape(x0.shape[0], -1).mean(axis=1) / math.log(2)


def prior_term(schedule: Schedule, x0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x_0) || N(0, I)) of each image (DDPM eq. 5), in bits per dimension.

    Nothing is learned of it: it is what noising leaves of the signal.

    Args:
      schedule: the noise process.
      x0: [B, ...].

    Returns:
      float32 [B], the mean over the dimensions of an image.
    """
    share = schedule.alphas_cumprod[-1]
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2, with m^2 = share x_0^2 and
    # s^2 = 1 - share; what is left of the rest is of the order of share^2.
    rest = -share - np.log1p(-share)
    nats = 0.5 * (np.float32(share) * jnp.square(x0) + np.float32(rest))
    return nats.reshape(x0.shape[0], -1).mean(axis=1) / math.log(2)


class BoundTerm(NamedTuple):
    """One term of the bound, of each image; float32 [B].

    Attributes:
      bits: L_{t-1}, or L_0 at t = 0, in bits per dimension.
      squared_error: of the predicted x_0, the mean over the dimensions.
    """

    bits: jax.Array
    squared_error: jax.Array


def bound_term(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    schedule: Schedule,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    *,
    prediction_type: str,
    variance_type: str,
    clip: bool = True,
    cond: Any = None,
) -> BoundTerm:
    """What the reverse step at t costs a network, at one draw of x_t (DDPM eq. 5).

    Args:
      apply_fn, params: the network.
      schedule: the noise process.
      x0: [B, ...] 8-bit images as float32 k / 127.5 - 1.
      t: int32 [B], 0 .. T-1.
      noise: [B, ...], standard normal.
      prediction_type: what the network predicts.
      variance_type: of the reverse step, see `predictions.p_mean_log_variance`.
      clip: whether the predicted x_0 is clipped to [-1, 1], as when it is sampled.
      cond: handed through to the network.
    """
    x_t = q_sample(schedule, x0, t, noise)
    predicted, between = predicted_x0(
        apply_fn,
        params,
        schedule,
        x_t,
        t,
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip=clip,
        cond=cond,
    )
    error = jnp.square(predicted - x0).reshape(x0.shape[0], -1).mean(axis=1)
    bits = variational_terms(schedule, variance_type, x0, x_t, t, predicted, between)
    return BoundTerm(bits, error)


def predicted_x0(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    schedule: Schedule,
    x_t: jax.Array,
    t: jax.Array,
    *,
    prediction_type: str,
    variance_type: str,
    clip: bool = True,
    cond: Any = None,
) -> tuple[jax.Array, jax.Array | None]:
    """x_0 as a network sees it in x_t, and its variance output; arguments as above."""
    output = apply_fn(params, x_t, t, cond, train=False, key=None)
    if variance_type == "learned":
        prediction, between = split_output(output, x_t, variance_type)
    else:
        prediction, between = prediction_alone(output, x_t), None
    predicted = x0_from_prediction(schedule, prediction_type, x_t, t, prediction)
    return (jnp.clip(predicted, -1, 1) if clip else predicted), between
