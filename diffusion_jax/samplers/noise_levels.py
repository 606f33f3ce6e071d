"""The noise levels that a list of timesteps leads through, in NumPy float64."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.diffusion.schedules import Schedule, alphas_cumprod_at, times_at_log_snr
from diffusion_jax.samplers.timesteps import check_timesteps

Timesteps = Sequence[float] | np.ndarray


class Steps(NamedTuple):
    """S steps, each from one noise level to the next one's; float64 [S].

    Attributes:
      t: the timestep that a step goes from.
      alphas_cumprod: the share of x_0 in x there, signal^2; sigma^2 is the rest.
      alphas_cumprod_next: where it goes to; 1 for the last one.
    """

    t: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_next: np.ndarray

    @property
    def signal(self) -> np.ndarray:
        """alpha, the coefficient of x_0 in x."""
        return np.sqrt(self.alphas_cumprod)

    @property
    def sigma(self) -> np.ndarray:
        """sigma, the coefficient of the noise in x."""
        return np.sqrt(1 - self.alphas_cumprod)

    @property
    def signal_next(self) -> np.ndarray:
        """alpha'."""
        return np.sqrt(self.alphas_cumprod_next)

    @property
    def sigma_next(self) -> np.ndarray:
        """sigma'; 0 for the last step."""
        return np.sqrt(1 - self.alphas_cumprod_next)

    @property
    def h(self) -> np.ndarray:
        """lambda' - lambda; infinite from a level without signal, and to x_0."""
        with np.errstate(divide="ignore"):
            return np.log(self.signal_next / self.signal * self.sigma / self.sigma_next)


def make_steps(schedule: Schedule, timesteps: Timesteps, *, repeats: bool = False) -> Steps:
    """The steps of a list of timesteps, the last one to x_0.

    Raises:
      ValueError: unless the list falls, strictly but for `repeats`, and its noise with it.
    """
    t = check_timesteps(timesteps, schedule.num_timesteps, repeats=repeats)
    alphas_cumprod = alphas_cumprod_at(schedule, t)
    same = (np.diff(alphas_cumprod) <= 0) & ((np.diff(t) != 0) | (alphas_cumprod[1:] == 0))
    if same.any():
        raise ValueError(
            "two timesteps have the same noise: where the terminal signal-to-noise ratio "
            f"is zero there is nothing between {schedule.num_timesteps - 2} and "
            f"{schedule.num_timesteps - 1}"
        )
    return Steps(t, alphas_cumprod, np.append(alphas_cumprod[1:], 1.0))


def churned_steps(
    schedule: Schedule, timesteps: Timesteps, churn: float
) -> tuple[Steps, np.ndarray, np.ndarray]:
    """Steps that start from the noisier levels that churn leads to (EDM algorithm 2).

    Before each one sigma / alpha grows by the factor 1 + min(churn / S, sqrt(2) - 1), but
    not beyond that of T - 1.

    Returns:
      the steps, which end at the given timesteps;
      the factor of x after each step, and the standard deviation of the noise that is
      then added, which together lead to the start of the next step. float64 [S] each.

    Raises:
      ValueError: for a churn below 0, or as `make_steps`.
    """
    if not churn >= 0:
        raise ValueError(f"churn ({churn}) must be at least 0 (no noise is added)")
    s = make_steps(schedule, timesteps)
    if churn == 0:
        return s, np.ones(len(s.t)), np.zeros(len(s.t))
    gamma = min(churn / len(s.t), np.sqrt(2) - 1)
    with np.errstate(divide="ignore"):
        log_snr = 2 * (np.log(s.signal / s.sigma) - np.log1p(gamma))
    t = np.maximum(times_at_log_snr(schedule, log_snr), s.t)
    start = s._replace(t=t, alphas_cumprod=alphas_cumprod_at(schedule, t))
    # sbar^2 rises from sigma^2 / alpha^2; all in the units of x at the new level.
    rescale = start.signal[1:] / s.signal[1:]
    variance = start.sigma[1:] ** 2 - (rescale * s.sigma[1:]) ** 2
    return start, np.append(rescale, 1.0), np.sqrt(np.append(variance, 0.0).clip(0.0))
