"""Samplers as tables: one row of linear coefficients for each network call.

Every reverse step here is linear in the state x, the predicted x_0 and fresh noise. So a
method is a function on the host that fills a table in NumPy float64, and one scan
(`diffusion_jax.samplers.chain`) runs any of them:

    x_0    = clip(x0_from_x * x + x0_from_prediction * network(x, t))
    x_next = w_x * x + w_x0 * x_0 + w_noise * exp(learned) * noise
    learned = noise_log_range / 4 * (variance output of the network + 1)

The last line is for learned variances, and 0 for all others. Because x_0 is clipped
before the mean is formed, eps enters through (x, x_0) alone: it is always the one
re-derived from the clipped x_0.

Timesteps may be any falling subset of 0 .. T-1. The process is rebuilt on that subset:
each row's "previous" alphas_cumprod is the next row's own one, and 1 for the last row,
which therefore lands on x_0 itself and adds no noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.predictions import check_variance_type, x0_coefficients
from diffusion_jax.samplers.steps import check_timesteps
from diffusion_jax.schedules import Schedule

SAMPLERS = ("ddpm", "ddim")


class SamplerTable(NamedTuple):
    """S rows, in the order in which they run; float64, but for the integer t.

    Attributes:
      t: int32 [S], the timestep that the network is told.
      x0_from_x, x0_from_prediction: [S], give x_0 from the state and the prediction.
      w_x, w_x0, w_noise: [S], weights of the next state.
      noise_log_range: [S], log of the largest over the smallest variance that a network
        with learned variances chooses from; w_noise is that of the smallest.
    """

    t: np.ndarray
    x0_from_x: np.ndarray
    x0_from_prediction: np.ndarray
    w_x: np.ndarray
    w_x0: np.ndarray
    w_noise: np.ndarray
    noise_log_range: np.ndarray

    @property
    def is_learned(self) -> bool:
        """Whether the network's own variances are used."""
        return bool(self.noise_log_range.any())

    @property
    def num_rows(self) -> int:
        """S, the number of network calls."""
        return len(self.t)


def ddpm_table(
    schedule: Schedule,
    timesteps: Sequence[int] | np.ndarray,
    *,
    prediction_type: str = "eps",
    variance_type: str = "fixed_small",
) -> SamplerTable:
    """Ancestral sampling (DDPM algorithm 2), also over a subset of the steps.

    The mean is that of q(x_{t-1} | x_t, x_0) (eq. 7) at the predicted x_0. The variance
    is beta-tilde ("fixed_small", eq. 7), beta ("fixed_large", section 3.2), or between
    the two where the network says ("learned", IDDPM eq. 15). Over a subset beta is
    1 - alphas_cumprod / alphas_cumprod_prev of the subset (IDDPM section 4); fixed_large
    is ruinous there (FID 367 with 10 steps, DDIM table 1).

    Args:
      schedule: the noise process.
      timesteps: strictly falling integers in 0 .. T-1.
      prediction_type: "eps", "x0" or "v".
      variance_type: "fixed_small", "fixed_large" or "learned".
    """
    check_variance_type(variance_type)
    alphas_cumprod, prev = _noise_levels(schedule, timesteps)
    beta = 1 - alphas_cumprod / prev
    variance = beta * (1 - prev) / (1 - alphas_cumprod)
    if variance_type == "fixed_large":
        variance = np.append(beta[:-1], 0.0)
    log_range = np.zeros(len(beta))
    if variance_type == "learned":
        log_range[:-1] = np.log(beta[:-1] / variance[:-1])
    return _table(
        timesteps,
        alphas_cumprod,
        prediction_type,
        w_x=(1 - prev) * np.sqrt(1 - beta) / (1 - alphas_cumprod),
        w_x0=beta * np.sqrt(prev) / (1 - alphas_cumprod),
        w_noise=np.sqrt(variance),
        noise_log_range=log_range,
    )


def ddim_table(
    schedule: Schedule,
    timesteps: Sequence[int] | np.ndarray,
    *,
    prediction_type: str = "eps",
    eta: float = 0.0,
) -> SamplerTable:
    """DDIM (eq. 12) with sigma of eq. 16 times eta.

    x_prev = sqrt(prev) x_0 + sqrt(1 - prev - sigma^2) eps + sigma noise, where
    eps = (x - sqrt(alphas_cumprod) x_0) / sqrt(1 - alphas_cumprod).

    Args:
      schedule: the noise process.
      timesteps: strictly falling integers in 0 .. T-1.
      prediction_type: "eps", "x0" or "v".
      eta: 0 is deterministic, 1 has DDPM's fixed_small variance; in 0 .. 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta ({eta}) must be between 0 (deterministic) and 1 (DDPM's variance)"
        )
    alphas_cumprod, prev = _noise_levels(schedule, timesteps)
    variance = eta**2 * (1 - prev) / (1 - alphas_cumprod) * (1 - alphas_cumprod / prev)
    direction = np.sqrt(1 - prev - variance) / np.sqrt(1 - alphas_cumprod)
    return _table(
        timesteps,
        alphas_cumprod,
        prediction_type,
        w_x=direction,
        w_x0=np.sqrt(prev) - direction * np.sqrt(alphas_cumprod),
        w_noise=np.sqrt(variance),
        noise_log_range=np.zeros(len(prev)),
    )


def _noise_levels(
    schedule: Schedule, timesteps: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """alphas_cumprod at each timestep and at the one that it steps to (1 at the end)."""
    check_timesteps(timesteps, schedule.num_timesteps)
    alphas_cumprod = schedule.alphas_cumprod[np.asarray(timesteps)]
    return alphas_cumprod, np.append(alphas_cumprod[1:], 1.0)


def _table(timesteps, alphas_cumprod, prediction_type, **weights):
    no_signal = np.sqrt(alphas_cumprod[0]) < np.finfo(np.float32).tiny
    if prediction_type == "eps" and no_signal:
        raise ValueError(
            "an eps prediction cannot start from a zero terminal signal-to-noise ratio, "
            "because the noise there says nothing of x_0; predict v or x0"
        )
    x0_from_x, x0_from_prediction = x0_coefficients(prediction_type, alphas_cumprod)
    return SamplerTable(
        t=np.asarray(timesteps, dtype=np.int32),
        x0_from_x=x0_from_x,
        x0_from_prediction=x0_from_prediction,
        **weights,
    )
