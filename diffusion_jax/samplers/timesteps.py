"""Timesteps of a chain: S falling times out of 0 .. T-1.

Times are float64. Those of `log_snr` and `karras` lie between the indices, where the
process goes on as in `schedules.alphas_cumprod_at`; rounded, they would repeat. The
last row of a table goes on from the last timestep to x_0 itself.
"""

from collections.abc import Callable, Sequence

import numpy as np

from diffusion_jax.diffusion.schedules import Schedule, times_at_log_snr

AUTO = "auto"  # Timesteps chosen for a checkpoint: evaluation/optimal_timesteps.py.


def trailing_timesteps(num_timesteps: int, num_sampling_steps: int) -> np.ndarray:
    """S timesteps from T - 1 downwards, evenly, the last one T // S - 1.

    The arithmetic is in integers, so that there are exactly S for every S in 1 .. T.

    Returns:
      float64 [S], whole numbers, strictly falling, the first T - 1.
    """
    _check_count(num_timesteps, num_sampling_steps)
    # Unseen (0): np.arange stops before either.
    remaining = np.arange(num_sampling_steps, 0, -1, dtype=np.int64)
    return (remaining * num_timesteps // num_sampling_steps - 1).astype(np.float64)


def linspace_timesteps(num_timesteps: int, num_sampling_steps: int) -> np.ndarray:
    """S timesteps from T - 1 to 0, both visited, rounded half up.

    Returns:
      float64 [S], whole numbers, strictly falling, the first T - 1 (the only one if S is
      1), the last 0.
    """
    _check_count(num_timesteps, num_sampling_steps)
    if num_sampling_steps == 1:
        return np.array([num_timesteps - 1.0])
    gaps = num_sampling_steps - 1
    remaining = np.arange(gaps, -1, -1, dtype=np.int64)
    rounded = (2 * remaining * (num_timesteps - 1) + gaps) // (2 * gaps)
    return rounded.astype(np.float64)


def uniform_timesteps(num_timesteps: int, num_sampling_steps: int) -> np.ndarray:
    """S timesteps upwards from 0, evenly, turned round: "uniform" in the code of DDIM.

    They are that code's `range(0, T, T // S)` where S divides T, and exactly S elsewhere.
    It starts below T - 1, at T - T // S, where there is still some signal: `trailing`
    is better with few steps.

    Returns:
      float64 [S], whole numbers, strictly falling, the last 0.
    """
    _check_count(num_timesteps, num_sampling_steps)
    done = np.arange(num_sampling_steps - 1, -1, -1, dtype=np.int64)
    return (done * num_timesteps // num_sampling_steps).astype(np.float64)


def log_snr_timesteps(schedule: Schedule, num_sampling_steps: int) -> np.ndarray:
    """S times from T - 1 to 0, evenly in log SNR (Lu et al. 2022).

    Returns:
      float64 [S], strictly falling, the first T - 1 (the only one if S is 1), the last 0.

    Raises:
      ValueError: where the log SNR at T - 1 is not finite.
    """
    _check_count(schedule.num_timesteps, num_sampling_steps)
    if schedule.has_zero_terminal_snr:
        raise ValueError(
            "spacing 'log_snr' divides the range of log SNR, which is infinite with a zero "
            "terminal signal-to-noise ratio; take trailing or karras"
        )
    first, last = schedule.log_snr[-1], schedule.log_snr[0]
    return _times(schedule, np.linspace(first, last, num_sampling_steps))


def karras_timesteps(
    schedule: Schedule,
    num_sampling_steps: int,
    rho: float = 7.0,
    sigma_max: float = 80.0,
) -> np.ndarray:
    """S times down to 0, evenly in sigma^(1 / rho) (EDM eq. 5).

    sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod), the noise beside x_0. The first
    one is T - 1, or where sigma is `sigma_max`, as in EDM: a cosine schedule goes on to
    20,291, and methods in sigma would spend their few steps there. With a zero terminal
    SNR, where sigma has no end, it is T - 2 at most.

    Returns:
      float64 [S], strictly falling, the last 0 unless S is 1.
    """
    _check_count(schedule.num_timesteps, num_sampling_steps)
    if not (rho > 0 and sigma_max > 0):
        raise ValueError(f"rho ({rho}) and sigma_max ({sigma_max}) must be above 0")
    log_snr = schedule.log_snr[np.isfinite(schedule.log_snr)]
    first = max(log_snr[-1], -2 * np.log(sigma_max))
    if first >= log_snr[0] and num_sampling_steps > 1:
        raise ValueError(
            f"spacing 'karras' finds no noise levels between sigma {sigma_max:g} and "
            f"{np.exp(-log_snr[0] / 2):g}, that of timestep 0; take trailing"
        )
    first, last = np.exp(-np.array([first, schedule.log_snr[0]]) / 2 / rho)
    return _times(schedule, -2 * rho * np.log(np.linspace(first, last, num_sampling_steps)))


def ddim_quadratic_timesteps(num_timesteps: int, num_sampling_steps: int) -> np.ndarray:
    """The list behind DDIM's CIFAR-10 table: linspace(0, sqrt(0.8 T), S)^2, cut off.

    As it is in the authors' code ("quad"): it starts at 0.8 T, and repeats small
    timesteps (with T = 1000 and S = 50 there are 49 different ones).

    Returns:
      float64 [S], whole numbers, falling but not strictly, the last 0.
    """
    _check_count(num_timesteps, num_sampling_steps)
    roots = np.linspace(0, np.sqrt(num_timesteps * 0.8), num_sampling_steps)
    return np.floor(roots**2)[::-1]


# Timesteps by name, of (process, num_sampling_steps).
SPACINGS: dict[str, Callable[[Schedule, int], np.ndarray]] = {
    "trailing": lambda process, num: trailing_timesteps(process.num_timesteps, num),
    "linspace": lambda process, num: linspace_timesteps(process.num_timesteps, num),
    "uniform": lambda process, num: uniform_timesteps(process.num_timesteps, num),
    "log_snr": log_snr_timesteps,
    "karras": karras_timesteps,
    "ddim_quadratic": lambda process, num: ddim_quadratic_timesteps(
        process.num_timesteps, num
    ),
}


def spaced_timesteps(
    spacing: str, schedule: Schedule, num_sampling_steps: int
) -> np.ndarray:
    """Return the timesteps of a spacing by its name, one of SPACINGS; float64 [S], falling.

    Raises:
      ValueError: for an unknown name, or as the function of that spacing.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is unknown; it can be {', '.join(SPACINGS)}")
    return SPACINGS[spacing](schedule, num_sampling_steps)


def check_timesteps(
    timesteps: Sequence[float] | np.ndarray, num_timesteps: int, *, repeats: bool = False
) -> np.ndarray:
    """The list as float64 [S].

    Raises:
      ValueError: unless it falls, strictly except with `repeats`, within 0 .. T-1.
    """
    steps = np.asarray(timesteps)
    real = np.issubdtype(steps.dtype, np.integer) or np.issubdtype(steps.dtype, np.floating)
    if steps.ndim != 1 or not steps.size or not real:
        raise ValueError(f"timesteps must be a list of numbers; got {timesteps!r}")
    steps = steps.astype(np.float64)
    if not ((steps >= 0) & (steps <= num_timesteps - 1)).all():
        raise ValueError(
            f"timesteps must lie in 0 .. {num_timesteps - 1}; "
            f"got {steps.min()} .. {steps.max()}"
        )
    gaps = np.diff(steps)
    for i in np.flatnonzero((gaps > 0) | ((gaps == 0) & (not repeats)))[:1]:
        raise ValueError(
            f"timesteps must fall{'' if repeats else ' strictly'}, from noise to x_0; "
            f"{steps[i]:g} is followed by {steps[i + 1]:g}"
        )
    return steps


def _times(schedule: Schedule, log_snr: np.ndarray) -> np.ndarray:
    """The times of these log SNR, of which the last, unless the only one, is that of 0."""
    times = times_at_log_snr(schedule, log_snr)
    times[1:][-1:] = 0  # To the last bit.
    if log_snr[0] <= schedule.log_snr[-1]:
        times[0] = schedule.num_timesteps - 1
    return times


def _check_count(num_timesteps: int, num_sampling_steps: int) -> None:
    if num_sampling_steps != int(num_sampling_steps) or not (
        1 <= num_sampling_steps <= num_timesteps
    ):
        raise ValueError(
            f"steps ({num_sampling_steps}) must be a whole number from 1 to the process's "
            f"num_timesteps ({num_timesteps})"
        )
