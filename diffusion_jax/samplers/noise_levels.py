"""The noise levels that a list of timesteps leads through, in NumPy float64."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.diffusion.noise_level import NoiseLevel, variance_preserving
from diffusion_jax.diffusion.schedules import Schedule, alphas_cumprod_at, times_at_log_snr
from diffusion_jax.samplers.timesteps import check_timesteps

Timesteps = Sequence[float] | np.ndarray


class Steps(NamedTuple):
    """S steps, each from one noise level to the next one's; float64 [S].

    Attributes:
      t: the timestep that a step goes from.
      level: the noise level there.
      next: the level where it goes to; without noise for the last one.
      next_t: the timestep there; NaN for the last one.
    """

    t: np.ndarray
    level: NoiseLevel
    next: NoiseLevel
    next_t: np.ndarray

    @property
    def added_variance(self) -> np.ndarray:
        """The variance of the noise that leads back, from the next level to this one.

        sigma^2 - (alpha / alpha')^2 sigma'^2, the papers' beta of the step. Where both
        levels preserve the variance that is 1 - (alpha / alpha')^2, without the difference
        of two nearly equal numbers.
        """
        level, next = self.level, self.next
        share = level.alpha_squared / next.alpha_squared
        # Unseen: to rounding both forms are the same where it holds.
        preserving = (level.alpha_squared + level.sigma_squared == 1) & (
            next.alpha_squared + next.sigma_squared == 1
        )
        added = level.sigma_squared - share * next.sigma_squared
        return np.where(preserving, 1 - share, added)

    @property
    def h(self) -> np.ndarray:
        """lambda' - lambda; infinite from a level without signal, and to x_0."""
        with np.errstate(divide="ignore"):
            gain = self.next.alpha / self.level.alpha
            return np.log(gain * self.level.sigma / self.next.sigma)


def make_steps(
    schedule: Schedule, timesteps: Timesteps | Steps, *, repeats: bool = False
) -> Steps:
    """The steps of a list of timesteps, the last one to x_0; Steps are themselves.

    Raises:
      ValueError: unless the list falls, strictly except with `repeats`, and its noise too.
    """
    if isinstance(timesteps, Steps):
        return timesteps
    t = check_timesteps(timesteps, schedule.num_timesteps, repeats=repeats)
    alphas_cumprod = alphas_cumprod_at(schedule, t)
    same = (np.diff(alphas_cumprod) <= 0) & ((np.diff(t) != 0) | (alphas_cumprod[1:] == 0))
    if same.any():
        raise ValueError(
            "two timesteps have the same noise: with a zero terminal signal-to-noise ratio "
            f"there is no signal above timestep {schedule.num_timesteps - 2}; take only "
            "one timestep above it"
        )
    level = variance_preserving(alphas_cumprod)
    after = variance_preserving(np.append(alphas_cumprod[1:], 1.0))
    return Steps(t, level, after, np.append(t[1:], np.nan))


def rising_steps(schedule: Schedule, timesteps: Timesteps) -> Steps:
    """The steps of a list of timesteps backwards: from its last one up to its first one.

    Raises:
      ValueError: as `make_steps`; or for a list of one, or that begins without a signal.
    """
    s = make_steps(schedule, timesteps)
    if len(s.t) < 2:
        raise ValueError("a chain backwards needs at least two timesteps")
    if s.level.alpha[0] == 0:
        raise ValueError(
            f"a chain backwards cannot end at {s.t[0]:g}, where the signal-to-noise ratio "
            "is zero; take a list of timesteps that starts lower"
        )
    t, level = s.t[::-1], NoiseLevel(*(square[::-1] for square in s.level))
    start = NoiseLevel(*(square[:-1] for square in level))
    end = NoiseLevel(*(square[1:] for square in level))
    return Steps(t[:-1], start, end, t[1:])


def churned_steps(
    schedule: Schedule, timesteps: Timesteps | Steps, churn: float
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
        log_snr = 2 * (np.log(s.level.alpha / s.level.sigma) - np.log1p(gamma))
    t = np.maximum(times_at_log_snr(schedule, log_snr), s.t)
    start = s._replace(t=t, level=variance_preserving(alphas_cumprod_at(schedule, t)))
    # sbar^2 rises from sigma^2 / alpha^2; all in the units of x at the new level.
    rescale = start.level.alpha[1:] / s.level.alpha[1:]
    variance = start.level.sigma[1:] ** 2 - (rescale * s.level.sigma[1:]) ** 2
    return start, np.append(rescale, 1.0), np.sqrt(np.append(variance, 0.0).clip(0.0))
