"""The optimal denoiser in closed form, for data whose distribution is known.

Optimal for squared error, which the conditional mean makes least.

Data is a mixture of K Gaussians with diagonal covariances, of any dimension. Variance 0
makes a component a point, so the same class is any discrete distribution, such as 8-bit
images on the grid k / 127.5 - 1. Noised, it stays a mixture; so the density of x_t, and
the mean and the variance of x_0 given x_t, are sums over K, without approximation. Use it
in place of a network (`oracle_apply_fn`) to test a loss, a sampler or a likelihood.

A noise level is a pair (signal, sigma) with x_t = signal x_0 + sigma noise; `noise_level`
reads it from a schedule. What is computed has the dtype of x_t: float32, or float64 under
jax.enable_x64. Shapes: data of shape [D...] have x_t [B, D...] and signal, sigma scalar
or [B].
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.parameterization import (
    check_prediction_type,
    log_variance_bounds,
)
from diffusion_jax.diffusion.schedules import Schedule


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
        """Whether every component is a point."""
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
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if not (weights.ndim == 1 <= len(weights) == len(means) and means.ndim > 1):
        raise ValueError(
            f"weights {weights.shape} and means {means.shape} must have the shapes [K] "
            "and [K, D...]"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"weights ({weights.min()} the least) must be above 0")
    variances = np.asarray(variances, np.float64)
    try:
        variances = np.array(np.broadcast_to(variances, means.shape))
    except ValueError as error:
        raise ValueError(
            f"variances {variances.shape} must broadcast to the means' {means.shape}"
        ) from error
    if not ((variances > 0).all() or (variances == 0).all()):
        raise ValueError("variances must all be above 0, or all 0 for points")
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        raise ValueError("means and variances must be finite")
    return Mixture(weights / weights.sum(), means, variances)


def gaussian(mean: Any, variance: Any) -> Mixture:
    """N(mean, diag(variance)); mean [D...], variance broadcasts to it."""
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
    k = jax.random.choice(k_component, len(data.weights), (num,), p=weights)
    noise = jax.random.normal(k_noise, (num, *data.shape))
    stds = jnp.asarray(np.sqrt(data.variances))
    return jnp.asarray(data.means)[k] + stds[k] * noise


def negative_log_likelihood(data: Mixture, x0: jax.Array) -> jax.Array:
    """-log p(x_0) in nats, over all dimensions of each example; [B].

    Of the density, or for discrete data of the probability: inf off its points, which
    x_0 must meet to within 1e-5 of an 8-bit level's distance.
    """
    x0 = jnp.asarray(x0)
    if data.is_discrete:
        off = jnp.abs(x0[:, None] - jnp.asarray(data.means[None], x0.dtype))
        met = (off < 1e-5).reshape(*off.shape[:2], -1).all(axis=2)
        log_weights = jnp.asarray(np.log(data.weights)[None], x0.dtype)
        log_p = jnp.where(met, log_weights, -jnp.inf)
        return -jax.nn.logsumexp(log_p, axis=1)
    return -log_density(data, x0, 1.0, 0.0)


def entropy(data: Mixture) -> float:
    """The mean of `negative_log_likelihood` over discrete data, in nats.

    Raises:
      ValueError: for continuous data, where a mixture has no closed form.
    """
    if not data.is_discrete:
        raise ValueError("only discrete data have an entropy in closed form here")
    return float(-(data.weights * np.log(data.weights)).sum())


def noise_level(schedule: Schedule, t: Any, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """(signal, sigma) at t [B] or scalar, rounded once from float64 to `dtype`.

    Real-valued t, as samplers have it, is read between the indices as
    `schedules.alphas_cumprod_at` says. NaN where t is out of range.
    """
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        return _between(schedule, t.astype(dtype))
    signal, sigma = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    return _get(signal, t, dtype), _get(sigma, t, dtype)


def log_density(data: Mixture, x_t: jax.Array, signal: Any, sigma: Any) -> jax.Array:
    """log q(x_t) of the noised data, in nats, over all dimensions; [B]."""
    return jax.nn.logsumexp(_log_joint(data, x_t, signal, sigma), axis=1)


def score(data: Mixture, x_t: jax.Array, signal: Any, sigma: Any) -> jax.Array:
    """grad log q(x_t); [B, D...]."""
    error, variance = _standing(data, x_t, signal, sigma)
    return _average(data, x_t, signal, sigma, -error / variance)


def eps_mean(data: Mixture, x_t: jax.Array, signal: Any, sigma: Any) -> jax.Array:
    """E[noise | x_t], the optimal eps prediction; [B, D...]."""
    error, variance = _standing(data, x_t, signal, sigma)
    return _average(data, x_t, signal, sigma, _wide(sigma, x_t) * error / variance)


def x0_mean_variance(
    data: Mixture, x_t: jax.Array, signal: Any, sigma: Any
) -> tuple[jax.Array, jax.Array]:
    """E[x_0 | x_t], the optimal x_0 prediction, and each element's variance; [B, D...]."""
    error, variance = _standing(data, x_t, signal, sigma)
    prior = jnp.asarray(data.variances[None], x_t.dtype)
    wide_signal, wide_sigma = _wide(signal, x_t), _wide(sigma, x_t)
    means = (
        jnp.asarray(data.means[None], x_t.dtype) + wide_signal * prior / variance * error
    )
    within = prior * wide_sigma**2 / variance
    mean = _average(data, x_t, signal, sigma, means)
    spread = jnp.square(means - mean[:, None]) + within
    return mean, _average(data, x_t, signal, sigma, spread)


def v_mean(data: Mixture, x_t: jax.Array, signal: Any, sigma: Any) -> jax.Array:
    """E[signal noise - sigma x_0 | x_t], the optimal v prediction; [B, D...]."""
    x0 = x0_mean_variance(data, x_t, signal, sigma)[0]
    eps = eps_mean(data, x_t, signal, sigma)
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    signal, sigma = (jnp.asarray(s, x_t.dtype).reshape(shape) for s in (signal, sigma))
    return signal * eps - sigma * x0


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
    mean, variance = x0_mean_variance(data, x_t, *noise_level(schedule, t, x_t.dtype))
    coef1 = _read(schedule.posterior_mean_coef1, t, x_t)
    coef2 = _read(schedule.posterior_mean_coef2, t, x_t)
    beta_tilde = _read(schedule.posterior_variance, t, x_t)
    return coef1 * mean + coef2 * x_t, beta_tilde + coef1**2 * variance


def oracle_apply_fn(
    data: Mixture, schedule: Schedule, prediction_type: str, *, learned: bool = False
) -> Callable[..., jax.Array]:
    """The optimal network: apply_fn(params, x_t, t, cond, *, train, key).

    Args:
      data: the distribution of x_0.
      schedule: the noise process.
      prediction_type: "eps", "x0", "v", or "score".
      learned: also the channels of a learned variance, such that the reverse step of one
        timestep has the exact variance of q(x_{t-1} | x_t), but at least 1e-12.
    """
    optimal = {"eps": eps_mean, "v": v_mean, "score": score}.get(prediction_type)
    if optimal is None:
        check_prediction_type(prediction_type)

    def apply_fn(params, x_t, t, cond=None, *, train=False, key=None) -> jax.Array:
        del params, cond, train, key
        level = noise_level(schedule, t, x_t.dtype)
        if optimal is None:
            output = x0_mean_variance(data, x_t, *level)[0]
        else:
            output = optimal(data, x_t, *level)
        if not learned:
            return output
        _, variance = previous_mean_variance(data, schedule, x_t, t)
        log_variance = jnp.log(jnp.maximum(variance, 1e-12))
        low, high = log_variance_bounds(schedule)
        span = np.where(high == low, np.inf, high - low)  # Nothing to choose: -1.
        between = 2 * (log_variance - _read(low, t, x_t)) / _read(span, t, x_t) - 1
        return jnp.concatenate([output, between], axis=-1)

    return apply_fn


def _between(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(signal, sigma) at real-valued t, in its dtype."""
    indices = jnp.arange(schedule.num_timesteps, dtype=t.dtype)
    # A share of 0 has no finite logarithm: this is 1e-300, to which float32 rounds 0.
    log_of = np.log(np.maximum(schedule.alphas_cumprod, 1e-300))
    log_share = jnp.interp(
        t, indices, jnp.asarray(log_of, t.dtype), left=jnp.nan, right=jnp.nan
    )
    return jnp.exp(log_share / 2), jnp.sqrt(-jnp.expm1(log_share))


def _wide(level: Any, x_t: jax.Array) -> jax.Array:
    """A noise level, scalar or [B], shaped to broadcast over [B, K, D...]."""
    return jnp.asarray(level, x_t.dtype).reshape((-1,) + (1,) * x_t.ndim)


def _read(table: np.ndarray, t: Any, x_t: jax.Array) -> jax.Array:
    """table[t], shaped to broadcast over x_t, in its dtype."""
    return _get(table, t, x_t.dtype).reshape((-1,) + (1,) * (x_t.ndim - 1))


def _get(table: np.ndarray, t: Any, dtype: Any) -> jax.Array:
    """table[t]; NaN where t is out of range, as in `process`."""
    return (
        jnp.asarray(table, dtype)
        .at[t]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )


def _standing(
    data: Mixture, x_t: jax.Array, signal: Any, sigma: Any
) -> tuple[jax.Array, jax.Array]:
    """x_t - its mean, and its variance, under each component; [B, K, D...]."""
    signal, sigma = _wide(signal, x_t), _wide(sigma, x_t)
    error = x_t[:, None] - signal * jnp.asarray(data.means[None], x_t.dtype)
    return error, signal**2 * jnp.asarray(data.variances[None], x_t.dtype) + sigma**2


def _log_joint(data: Mixture, x_t: jax.Array, signal: Any, sigma: Any) -> jax.Array:
    """log of weight_k q(x_t | component k); [B, K]."""
    error, variance = _standing(data, x_t, signal, sigma)
    elements = -0.5 * (jnp.square(error) / variance + jnp.log(2 * math.pi * variance))
    elements = jnp.broadcast_to(elements, error.shape)
    log_weights = jnp.asarray(np.log(data.weights)[None], x_t.dtype)
    return log_weights + elements.reshape(*error.shape[:2], -1).sum(axis=2)


def _average(
    data: Mixture, x_t: jax.Array, signal: Any, sigma: Any, values: jax.Array
) -> jax.Array:
    """The mean of values [B, K, D...] over the component, given x_t; [B, D...]."""
    share = jax.nn.softmax(_log_joint(data, x_t, signal, sigma), axis=1)
    return (share.reshape(share.shape + (1,) * len(data.shape)) * values).sum(axis=1)
