"""The terms of the variational bound: costs of the reverse steps, in bits per dimension.

    -log p(x_0) <= L_T + sum over t of L_{t-1} + L_0                           (DDPM eq. 5)

L_{t-1} is a divergence of two Gaussians, and L_0 the negative log-likelihood of 8-bit
images under a Gaussian that is integrated over each level's bin (DDPM eq. 13). Here
index t = 0 is the papers' t = 1, so `variational_terms` at t = 0 is L_0.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.forward_process import q_posterior, q_sample
from diffusion_jax.diffusion.model import Model, Prediction, p_mean_log_variance
from diffusion_jax.diffusion.schedules import Schedule

_HALF_BIN = 1 / 255  # Half the distance of two levels of 8-bit images in [-1, 1].
_MIN_PROBABILITY = 1e-12  # The smallest probability that a level is given.


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
    # Unseen (0): the mass is the same, up to rounding near the mean.
    above = lower > 0
    upper, lower = jnp.where(above, -lower, upper), jnp.where(above, -upper, lower)
    mass = jax.scipy.special.ndtr(upper) - jax.scipy.special.ndtr(lower)
    return jnp.log(jnp.maximum(mass, _MIN_PROBABILITY))


def variational_terms(
    prediction: Prediction, x0: jax.Array, predicted_x0: jax.Array | None = None
) -> jax.Array:
    """L_{t-1}, and L_0 at t = 0, of each image (DDPM eq. 5), in bits per dimension.

    Args:
      prediction: of a network, at x_t drawn from q(x_t | x_0) and t int32 [B].
      x0: [B, ...] 8-bit images as float32 k / 127.5 - 1.
      predicted_x0: [B, ...] instead of the predicted x_0, such as a clipped one.

    Returns:
      float32 [B], the mean over the dimensions of an image.
    """
    x_t, t = prediction.x_t, prediction.t
    true_mean, _, true_log_variance = q_posterior(prediction.model.process, x0, x_t, t)
    mean, log_variance = p_mean_log_variance(prediction, predicted_x0)
    divergence = normal_kl(true_mean, true_log_variance, mean, log_variance)
    first = -discretized_gaussian_log_likelihood(x0, mean, log_variance)
    at_first = (t == 0).reshape(t.shape + (1,) * (x0.ndim - 1))
    nats = jnp.where(at_first, first, divergence)
    return nats.reshape(x0.shape[0], -1).mean(axis=1) / math.log(2)


def prior_term(schedule: Schedule, x0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x_0) || N(0, I)) of each image (DDPM eq. 5), in bits per dimension.

    No part of it is learned: it is what noising leaves of the signal.

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
    model: Model, params: Any, batch: Batch, draw: Draw, *, clip: bool = True
) -> BoundTerm:
    """Return the cost of the reverse step at t, at one draw of x_t (DDPM eq. 5).

    Args:
      model, params: the network.
      batch: 8-bit images as float32 k / 127.5 - 1, [B, ...].
      draw: of t and noise.
      clip: whether the predicted x_0 is clipped to [-1, 1], as when it is sampled.
    """
    x0, (t, noise) = batch.x, draw
    x_t = q_sample(model.process, x0, t, noise)
    prediction = model.predict(params, x_t, t, batch.cond)
    predicted = prediction.clipped_x0(clip)
    error = jnp.square(predicted - x0).reshape(x0.shape[0], -1).mean(axis=1)
    return BoundTerm(variational_terms(prediction, x0, predicted), error)
