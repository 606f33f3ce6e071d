"""The optimal denoiser in closed form, for data whose distribution is known.

It is optimal for squared error, which the conditional mean makes least.

Data is a mixture of K Gaussians with diagonal covariances, of any dimension. Variance 0
makes a component a point, so the same class is any discrete distribution, such as 8-bit
images on the grid k / 127.5 - 1. Noised, it stays a mixture; so the density of x_t, and
the mean and the variance of x_0 given x_t, are sums over K, without approximation. Use it
in place of a network (`optimal_model`) to test a loss, a sampler or a likelihood.

`noise_level_at` reads the noise level of x_t from a schedule. What is computed has the
dtype of x_t: float32, or float64 under jax.enable_x64. Shapes: data of shape [D...] have
x_t [B, D...] and a level that is scalar or [B].
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import (
    NoiseLevel,
    noise_level,
    noise_level_at,
)
from diffusion_jax.diffusion.parameterization import log_variance_bounds
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.tables import read


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, diag(variances_k)); NumPy float64.

    Make one with `mixture`, `gaussian` or `discrete`, which check it.

    Attributes:
      weights: [K], positive, sum 1.
      means: [K, D...].
      variances: [K, D...], at least 0.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(D...), the shape of one example."""
        return self.means.shape[1:]

    @property
    def is_discrete(self) -> bool:
        """Return whether every component is a point."""
        return not self.variances.any()


def mixture(weights: Any, means: Any, variances: Any) -> Mixture:
    """A mixture of Gaussians.

    Args:
      weights: [K], positive; made to sum to 1.
      means: [K, D...].
      variances: of each element, broadcast to the shape of `means`; all positive, or
        all 0 for points.

    Raises:
      ValueError: naming what does not fit.
    """
    # Unseen (np.asarray(weights, np.float64)): they are made to sum to 1 afterwards.
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if not (weights.ndim == 1 <= len(weights) == len(means) and means.ndim > 1):
        raise ValueError(
            f"weights {weights.shape} and means {means.shape} must have the shapes [K] "
            "and [K, D...]"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weights must be above 0; the smallest is {weights.min()}")
    variances = np.asarray(variances, np.float64)
    try:
        variances = np.array(np.broadcast_to(variances, means.shape))
    except ValueError as error:
        raise ValueError(
            f"variances {variances.shape} must broadcast to means {means.shape}"
        ) from error
    if not ((variances > 0).all() or (variances == 0).all()):
        raise ValueError("variances must all be above 0, or all 0 for points")
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        raise ValueError("means and variances must be finite")
    return Mixture(weights / weights.sum(), means, variances)


def gaussian(mean: Any, variance: Any) -> Mixture:
    """N(mean, diag(variance)); mean [D...], variance broadcasts to it."""
    # Unseen (1.0): the one weight is made 1 afterwards.
    return mixture([1.0], np.asarray(mean, np.float64)[None], variance)


def discrete(levels: Any, probabilities: Any) -> Mixture:
    """8-bit data: levels[k], integers 0 .. 255, with probabilities[k].

    Args:
      levels: [K, D...], each example once.
      probabilities: [K], positive; made to sum to 1.

    Raises:
      ValueError: for levels off the grid or given twice, or bad probabilities.
    """
    levels = np.asarray(levels)
    integers = np.issubdtype(levels.dtype, np.integer)
    if not (integers and levels.size and ((levels >= 0) & (levels <= 255)).all()):
        raise ValueError("levels must be integers in 0 .. 255, [K, D...]")
    if len(np.unique(levels, axis=0)) != len(levels):
        raise ValueError("levels must hold each example once")
    return mixture(probabilities, levels / 127.5 - 1, 0.0)


def sample(data: Mixture, key: jax.Array, num: int) -> jax.Array:
    """`num` draws of x_0; float32 [num, D...]."""
    k_component, k_noise = jax.random.split(key)
    weights = jnp.asarray(data.weights)
    # Unseen (weights): jax.random.choice divides by their sum.
    k = jax.random.choice(k_component, len(data.weights), (num,), p=weights)
    noise = jax.random.normal(k_noise, (num, *data.shape))
    stds = jnp.asarray(np.sqrt(data.variances))
    return jnp.asarray(data.means)[k] + stds[k] * noise


def negative_log_likelihood(data: Mixture, x0: jax.Array) -> jax.Array:
    """-log p(x_0) in nats, over all dimensions of each example; [B].

    p is the density, or for discrete data the probability: then the result is inf off the
    points, which x_0 must meet to within 1e-5.
    """
    x0 = jnp.asarray(x0)
    if data.is_discrete:
        # Unseen (x0[:, None] - ...): no other level is nearer than 0.0078.
        off = jnp.abs(x0[:, None] - jnp.asarray(data.means[None], x0.dtype))
        met = (off < 1e-5).reshape(*off.shape[:2], -1).all(axis=2)
        log_weights = jnp.asarray(np.log(data.weights)[None], x0.dtype)
        log_p = jnp.where(met, log_weights, -jnp.inf)
        return -jax.nn.logsumexp(log_p, axis=1)
    return -log_density(data, x0, noise_level(1.0, 0.0))


def entropy(data: Mixture) -> float:
    """The mean of `negative_log_likelihood` over discrete data, in nats.

    Raises:
      ValueError: for continuous data, where a mixture has no closed form.
    """
    if not data.is_discrete:
        raise ValueError("only discrete data have an entropy in closed form here")
    return float(-(data.weights * np.log(data.weights)).sum())


def log_density(data: Mixture, x_t: jax.Array, level: NoiseLevel) -> jax.Array:
    """log q(x_t) of the noised data, in nats, over all dimensions; [B]."""
    return jax.nn.logsumexp(_log_joint(data, x_t, level), axis=1)


def score(data: Mixture, x_t: jax.Array, level: NoiseLevel) -> jax.Array:
    """grad log q(x_t); [B, D...]."""
    error, variance = _standing(data, x_t, level)
    return _average(data, x_t, level, -error / variance)


def eps_mean(data: Mixture, x_t: jax.Array, level: NoiseLevel) -> jax.Array:
    """E[noise | x_t], the optimal eps prediction; [B, D...]."""
    error, variance = _standing(data, x_t, level)
    return _average(data, x_t, level, _wide(level.sigma, x_t) * error / variance)


def x0_mean_variance(
    data: Mixture, x_t: jax.Array, level: NoiseLevel
) -> tuple[jax.Array, jax.Array]:
    """E[x_0 | x_t], the optimal x_0 prediction, and each element's variance; [B, D...]."""
    error, variance = _standing(data, x_t, level)
    prior = jnp.asarray(data.variances[None], x_t.dtype)
    gain = _wide(level.alpha, x_t) * prior / variance
    means = jnp.asarray(data.means[None], x_t.dtype) + gain * error
    within = prior * _wide(level.sigma_squared, x_t) / variance
    mean = _average(data, x_t, level, means)
    spread = jnp.square(means - mean[:, None]) + within
    return mean, _average(data, x_t, level, spread)


def v_mean(data: Mixture, x_t: jax.Array, level: NoiseLevel) -> jax.Array:
    """E[alpha noise - sigma x_0 | x_t], the optimal v prediction; [B, D...]."""
    x0 = x0_mean_variance(data, x_t, level)[0]
    eps = eps_mean(data, x_t, level)
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    alpha, sigma = (
        jnp.asarray(s, x_t.dtype).reshape(shape) for s in (level.alpha, level.sigma)
    )
    return alpha * eps - sigma * x0


def previous_mean_variance(
    data: Mixture, schedule: Schedule, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and each element's variance of q(x_{t-1} | x_t), the exact reverse step.

    q(x_{t-1} | x_t, x_0) averaged over q(x_0 | x_t): the variance is beta-tilde
    + coef1^2 Var[x_0 | x_t] (Bao et al. 2022, theorem 1). At t = 0 x_{t-1} is x_0.

    Args:
      data: the distribution of x_0.
      schedule: the noise process.
      x_t: [B, D...].
      t: int32 [B] or scalar.

    Returns:
      [B, D...] both.
    """
    mean, variance = x0_mean_variance(data, x_t, noise_level_at(schedule, t, x_t.dtype))
    coef1 = _read(schedule.posterior_mean_coef1, t, x_t)
    coef2 = _read(schedule.posterior_mean_coef2, t, x_t)
    beta_tilde = _read(schedule.posterior_variance, t, x_t)
    return coef1 * mean + coef2 * x_t, beta_tilde + coef1**2 * variance


def optimal_model(
    data: Mixture,
    process: Schedule,
    prediction: str = "eps",
    variance: str = "fixed_small",
) -> Model:
    """Return the model whose network is optimal; it has no parameters.

    Args:
      data: the distribution of x_0.
      process: the noise process.
      prediction: "eps", "x0", "v", or "score".
      variance: of the reverse step. With "learned" the network gives the variance with
        which the reverse step of one timestep is exact, that of q(x_{t-1} | x_t), but at
        least 1e-12; NaN between the timesteps.
    """

    def apply_fn(params, x_t, t, cond=None, *, train=False, key=None) -> jax.Array:
        del params, cond, train, key
        output = _optimal(data, prediction, x_t, noise_level_at(process, t, x_t.dtype))
        if variance != "learned":
            return output
        index = jnp.round(jnp.asarray(t, x_t.dtype)).astype(jnp.int32)
        between = _optimal_variance_output(data, process, x_t, index)
        is_whole = (t == index.astype(jnp.asarray(t).dtype)).reshape(
            (-1,) + (1,) * (x_t.ndim - 1)
        )
        return jnp.concatenate([output, jnp.where(is_whole, between, jnp.nan)], axis=-1)

    return Model(process, prediction, variance, apply_fn)


def _optimal(
    data: Mixture, prediction: str, x_t: jax.Array, level: NoiseLevel
) -> jax.Array:
    if prediction == "x0":
        return x0_mean_variance(data, x_t, level)[0]
    return {"eps": eps_mean, "v": v_mean, "score": score}[prediction](data, x_t, level)


def _optimal_variance_output(
    data: Mixture, process: Schedule, x_t: jax.Array, t: jax.Array
) -> jax.Array:
    """Return the position of q(x_{t-1} | x_t)'s variance between its bounds, -1 to 1."""
    _, variance = previous_mean_variance(data, process, x_t, t)
    log_variance = jnp.log(jnp.maximum(variance, 1e-12))
    low, high = log_variance_bounds(process)
    span = np.where(high == low, np.inf, high - low)  # Nothing to choose: -1.
    return 2 * (log_variance - _read(low, t, x_t)) / _read(span, t, x_t) - 1


def _wide(number: Any, x_t: jax.Array) -> jax.Array:
    """A number, scalar or [B], shaped to broadcast over [B, K, D...]."""
    return jnp.asarray(number, x_t.dtype).reshape((-1,) + (1,) * x_t.ndim)


def _read(table: np.ndarray, t: Any, x_t: jax.Array) -> jax.Array:
    """table[t], shaped to broadcast over x_t, in its dtype."""
    return read(table, t, x_t.dtype).reshape((-1,) + (1,) * (x_t.ndim - 1))


def _standing(
    data: Mixture, x_t: jax.Array, level: NoiseLevel
) -> tuple[jax.Array, jax.Array]:
    """x_t - its mean, and its variance, under each component; [B, K, D...]."""
    error = x_t[:, None] - _wide(level.alpha, x_t) * jnp.asarray(
        data.means[None], x_t.dtype
    )
    kept = _wide(level.alpha_squared, x_t) * jnp.asarray(data.variances[None], x_t.dtype)
    return error, kept + _wide(level.sigma_squared, x_t)


def _log_joint(data: Mixture, x_t: jax.Array, level: NoiseLevel) -> jax.Array:
    """log of weight_k q(x_t | component k); [B, K]."""
    error, variance = _standing(data, x_t, level)
    elements = -0.5 * (jnp.square(error) / variance + jnp.log(2 * math.pi * variance))
    elements = jnp.broadcast_to(elements, error.shape)
    log_weights = jnp.asarray(np.log(data.weights)[None], x_t.dtype)
    return log_weights + elements.reshape(*error.shape[:2], -1).sum(axis=2)


def _average(
    data: Mixture, x_t: jax.Array, level: NoiseLevel, values: jax.Array
) -> jax.Array:
    """The mean of values [B, K, D...] over the component, given x_t; [B, D...]."""
    share = jax.nn.softmax(_log_joint(data, x_t, level), axis=1)
    return (share.reshape(share.shape + (1,) * len(data.shape)) * values).sum(axis=1)
