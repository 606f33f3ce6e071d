"""The K timesteps with the best bound, by dynamic programming (Watson et al. 2021).

The bound of a chain over some of the timesteps is a sum over its steps, and what a step
from t to s < t costs follows from how well the network sees x_0 at t. With the Gaussians
of DDPM eq. 7 between s and t, d = log((1 - abar_t) / (1 - abar_s)), e^2 the squared error
of the predicted x_0 and a reverse variance of beta-tilde^(1 - w) beta^w,

    L(t -> s) = 1/2 E[w d + exp(-w d) - 1 + exp(-w d) (SNR_s - SNR_t) e^2]

per dimension, in nats; w is 0 for fixed_small, 1 for fixed_large, and what the network
gives if it has learned it. The last step, from s to x_0, has the variance of the step
before it, as in `parameterization.fixed_log_variance`, so its cost depends on t as well.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.forward_process import at, q_sample
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.variational_bound import discretized_gaussian_log_likelihood
from diffusion_jax.evaluation.timestep_scan import Measure

_NUM_SHARES = 33  # Values of a learned w that are told apart, from 0 to 1.
# Log variances of a last step from t that are tried, over 1 - abar_t: dense where the step
# before it was long.
# Unseen: a smooth cost is interpolated between these variances.
_LAST_LOG_RATIOS = -7.0 * np.linspace(1, 0, 21) ** 2


class Statistics(NamedTuple):
    """Statistics that the costs follow from; means over images and their dimensions.

    Attributes:
      last: float64 [T, 21], the cost in nats of a last step from t to x_0: the
        discretised Gaussian around the predicted x_0 (DDPM eq. 13) of 21 variances.
      fractions: float64 [T, W], of the dimensions with each of W values of w.
      errors: float64 [T, W], their share in the mean of e^2.
      second_moment: of x_0.
    """

    last: np.ndarray
    fractions: np.ndarray
    errors: np.ndarray
    second_moment: float


def make_measure(model: Model, variance: str, *, clip: bool) -> Measure:
    """Return what `timestep_scan` measures for `Statistics`: last, fractions and errors.

    Args:
      model: the network.
      variance: of the reverse steps.
      clip: whether the predicted x_0 is clipped to [-1, 1].
    """
    largest = np.log1p(-model.process.alphas_cumprod)

    def measure(params: Any, batch: Batch, draw: Draw):
        x0, (t, noise) = batch.x, draw
        x_t = q_sample(model.process, x0, t, noise)
        prediction = model.predict(params, x_t, t, batch.cond)
        predicted = prediction.clipped_x0(clip)
        log_variance = at(largest, t, x0)
        last = [
            -discretized_gaussian_log_likelihood(x0, predicted, log_variance + ratio)
            .reshape(len(x0), -1)
            .mean(axis=1)
            for ratio in _LAST_LOG_RATIOS.tolist()
        ]
        error = jnp.square(predicted - x0)
        shape = (x0.shape[0], -1)
        if variance == "learned":
            assert prediction.variance_output is not None
            w = jnp.clip((prediction.variance_output + 1) / 2, 0, 1)
        else:
            w = jnp.full(x0.shape, variance == "fixed_large", jnp.float32)
        # Each w is divided between the two nearest values, so that the mean of w is kept.
        shares = jnp.asarray(shares_of(variance), jnp.float32)[None, None]
        distance = jnp.abs(w.reshape(*shape, 1) - shares) * (_NUM_SHARES - 1)
        parts = jnp.maximum(0, 1 - distance)
        fractions = parts.mean(axis=1)
        errors = (parts * error.reshape(*shape, 1)).mean(axis=1)
        return jnp.zeros(len(x0)), (jnp.stack(last, axis=1), fractions, errors)

    return measure


def shares_of(variance: str) -> np.ndarray:
    """The values of w that are told apart; float64 [W]."""
    if variance == "learned":
        return np.linspace(0, 1, _NUM_SHARES)
    return np.array([float(variance == "fixed_large")])


def step_costs(schedule: Schedule, variance: str, statistics: Statistics) -> np.ndarray:
    """L(t -> s) in nats per dimension; float64 [s, t], infinite unless s < t."""
    snr, noise = schedule.snr, np.log1p(-schedule.alphas_cumprod)
    with np.errstate(invalid="ignore"):
        gain = snr[:, None] - snr
        d = noise - noise[:, None]
    costs = np.zeros_like(gain)
    for j, w in enumerate(shares_of(variance)):
        shrink = np.exp(-w * d)
        costs += statistics.fractions[:, j] * (w * d + shrink - 1)
        costs += statistics.errors[:, j] * shrink * gain
    earlier = np.arange(len(snr))[:, None] < np.arange(len(snr))
    return np.where(earlier, costs / 2, np.inf)


def last_costs(schedule: Schedule, variance: str, statistics: Statistics) -> np.ndarray:
    """Costs of the last step, from s to x_0, if the one before came from t; [s, t]."""
    bar = schedule.alphas_cumprod
    with np.errstate(invalid="ignore", divide="ignore"):
        # Log ratio of beta-tilde to 1 - abar_s.
        ratio = np.log1p(-bar / bar[:, None]) - np.log1p(-bar)
    # The mean is taken of shares that differ among the dimensions.
    # Unseen (0): an index of a shape.
    w = statistics.fractions @ shares_of("learned") if variance == "learned" else 0
    # Unseen (0): a ratio that is clamped to 0.
    ratio = (1 - np.reshape(w, (-1, 1))) * np.where(np.isfinite(ratio), ratio, 0)
    rows = zip(ratio, statistics.last, strict=True)
    return np.stack([np.interp(at, _LAST_LOG_RATIOS, costs) for at, costs in rows])


def prior_costs(schedule: Schedule, second_moment: float) -> np.ndarray:
    """KL(q(x_t | x_0) || N(0, I)), for chains from t on; nats per dimension, [T]."""
    signal = schedule.alphas_cumprod
    with np.errstate(divide="ignore"):
        return 0.5 * (signal * (second_moment - 1) - np.log1p(-signal))


def best_timesteps(
    costs: np.ndarray, last: np.ndarray, first: np.ndarray, num: int
) -> tuple[np.ndarray, float]:
    """The `num` timesteps whose chain costs least, exactly.

    Args:
      costs: float64 [s, t], of a step from t to s; infinite unless s < t.
      last: float64 [s, t], of the last step, from s, after one from t; s = t if there is
        no other.
      first: float64 [T], of starting at t.
      num: K, 1 .. T.

    Returns:
      float64 [K], strictly falling whole numbers, and what they cost.
    """
    total = np.diagonal(last)
    came_from = []
    for i in range(num - 1):
        ways = (total[:, None] if i else last) + costs
        came_from.append(ways.argmin(axis=0))
        total = ways.min(axis=0)
    total = total + first
    chosen = [int(total.argmin())]
    for before in reversed(came_from):
        chosen.append(int(before[chosen[-1]]))
    return np.array(chosen, np.float64), float(total.min())
