"""Noise schedules: from betas to every table that the forward process needs.

A schedule is data, made once on the host in NumPy float64. The functions of
`diffusion_jax.diffusion.forward_process` cast what they read to float32; the builders in
`diffusion_jax.samplers.methods` go on in float64 and cast at their end. Nothing
recomputes `1 - alphas_cumprod` in float32, where its relative error reaches 3e-3.

Index convention: arrays have length T, and index t = 0 .. T-1 is the papers' step t + 1.
`alphas_cumprod_prev[0]` is 1, so no code ever indexes with t - 1.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.diffusion.tables import names_with

# With more signal than this (3 % of its amplitude) x_T is not the noise that sampling
# starts from.
MAX_TERMINAL_SIGNAL = 1e-3


class Schedule(NamedTuple):
    """The tables of one noise process; each is float64 [T].

    Close a jitted function over a schedule: it is host data, not an argument.

    Attributes:
      betas: variance of the noise that step t adds, in (0, 1); the last one is 1 where
        the terminal signal-to-noise ratio is 0.
      alphas: 1 - betas.
      alphas_cumprod: product of alphas up to and with t: the share of x_0 in x_t.
      alphas_cumprod_prev: alphas_cumprod one step earlier; 1 at t = 0.
      sqrt_alphas_cumprod: coefficient of x_0 in x_t (DDPM eq. 4).
      sqrt_one_minus_alphas_cumprod: coefficient of the noise in x_t (DDPM eq. 4).
      posterior_mean_coef1: weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (eq. 7).
      posterior_mean_coef2: weight of x_t in that mean (eq. 7).
      posterior_variance: variance of q(x_{t-1} | x_t, x_0), beta-tilde (eq. 7); 0 at t = 0.
      posterior_log_variance_clipped: logarithm of that variance, with entry 1 repeated at
        entry 0, where the variance is 0 and its logarithm is not finite.
    """

    betas: np.ndarray
    alphas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray

    @property
    def num_timesteps(self) -> int:
        """T, the number of noising steps."""
        return len(self.betas)

    @property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod); float64 [T]."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @property
    def log_snr(self) -> np.ndarray:
        """Natural logarithm of `snr`; float64 [T], -inf where there is no signal."""
        with np.errstate(divide="ignore"):
            return np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Return whether x_T holds nothing of x_0, to the range of float32.

        The noise in x_T then does not tell x_0.
        """
        return bool(self.sqrt_alphas_cumprod[-1] < np.finfo(np.float32).tiny)


def linear_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """T betas evenly from beta_start to beta_end (DDPM section 4); float64 [T].

    Raises:
      ValueError: if T < 2, or an end is outside (0, 1).
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def quadratic_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """T betas whose square roots rise evenly; float64 [T].

    "quad" in the code of DDIM, "scaled linear" in latent diffusion.

    Raises:
      ValueError: if T < 2, or an end is outside (0, 1).
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2


def constant_betas(num_timesteps: int, beta: float = 0.02) -> np.ndarray:
    """T times the same beta ("const" in the code of DDPM); float64 [T].

    Raises:
      ValueError: if T < 2, or beta is outside (0, 1).
    """
    _check_ends(num_timesteps, beta, beta)
    return np.full(num_timesteps, beta, dtype=np.float64)


def sigmoid_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """T betas along a logistic curve from -6 to 6, scaled to the ends; float64 [T].

    "sigmoid" in the code of DDIM. The curve is cut at 0.0025 and 0.9975, so the betas
    stay that share of the way inside beta_start and beta_end.

    Raises:
      ValueError: if T < 2, or an end is outside (0, 1).
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    curve = 1 / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))
    return beta_start + (beta_end - beta_start) * curve


def jsd_betas(num_timesteps: int) -> np.ndarray:
    """1/T, 1/(T-1), ..., 1/1 ("jsd" in the code of DDPM); float64 [T].

    alphas_cumprod falls in equal steps of 1/T down to 0 (Sohl-Dickstein et al. 2015,
    section 2.4.1): the terminal signal-to-noise ratio is zero.

    Raises:
      ValueError: if T < 2.
    """
    _check_num_timesteps(num_timesteps)
    # Unseen (0): np.arange stops before either.
    return 1 / np.arange(num_timesteps, 0, -1, dtype=np.float64)


def cosine_betas(
    num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999
) -> np.ndarray:
    """The betas whose alphas_cumprod follow cos^2 (IDDPM eq. 17); float64 [T].

    alphas_cumprod is f(u) / f(0) with f(u) = cos^2((u + offset) / (1 + offset) * pi / 2)
    and u = step / T; each beta is clipped at max_beta, which touches the last one alone.

    Raises:
      ValueError: if T < 2.
    """
    _check_num_timesteps(num_timesteps)
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    # Unseen (np.cos...): only ratios of these are used.
    alphas_cumprod = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


# Betas by name, of (num_timesteps, beta_start, beta_end).
SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "quadratic": quadratic_betas,
    "constant": lambda num_timesteps, beta_end: constant_betas(num_timesteps, beta_end),
    "sigmoid": sigmoid_betas,
    "jsd": jsd_betas,
}


def schedules_with(end: str) -> tuple[str, ...]:
    """Return the names of the schedules that take "beta_start" or "beta_end"."""
    return names_with(SCHEDULES, end)


def named_betas(
    name: str, num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Return the betas of a schedule by its name, one of SCHEDULES; float64 [T].

    cosine and jsd have no ends to choose; constant is beta_end throughout.

    Raises:
      ValueError: for an unknown name, or as the function of that schedule.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; it can be {', '.join(SCHEDULES)}")
    ends = {"beta_start": beta_start, "beta_end": beta_end}
    taken = {end: beta for end, beta in ends.items() if name in schedules_with(end)}
    return SCHEDULES[name](num_timesteps, **taken)


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """The betas moved so that x_T is pure noise (Lin et al. 2023, algorithm 1).

    sqrt(alphas_cumprod) is shifted to end in 0 and scaled to start where it did; the
    last beta becomes 1. Needs v- or x0-prediction, since eps then tells nothing of x_0.

    Args:
      betas: [T], each in (0, 1), or the last one 1.

    Returns:
      float64 [T].

    Raises:
      ValueError: naming what is wrong with `betas`.
    """
    betas = check_betas(betas)
    signal = np.sqrt(np.cumprod(1 - betas))
    if signal[0] == signal[-1]:
        raise ValueError(f"betas ({betas[0]} to {betas[-1]}) add no noise to rescale")
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    share = signal**2
    return 1 - share / np.append(1.0, share[:-1])


def shift_log_snr(betas: np.ndarray, shift: float) -> np.ndarray:
    """The betas whose log signal-to-noise ratio is `shift` higher at every step.

    Hoogeboom et al. 2023, section 3.1: a picture of d x d pixels needs more noise than
    one of 64 x 64 for the same effect, shift = 2 ln(64 / d), which is negative for
    larger ones.

    Args:
      betas: [T], each in (0, 1), or the last one 1.
      shift: in nats; 0 changes nothing.

    Returns:
      float64 [T].

    Raises:
      ValueError: naming what is wrong with `betas`.
    """
    betas = check_betas(betas)
    # alphas_cumprod / (1 - alphas_cumprod) times exp(shift), solved for the betas: what
    # is left holds no difference of nearly equal numbers.
    return betas / (1 + np.cumprod(1 - betas) * np.expm1(shift))


def make_schedule(betas: np.ndarray) -> Schedule:
    """All tables of the process with these betas, in float64.

    Warns where the betas do not rise, and where x_T is not noise.

    Args:
      betas: [T], each in (0, 1), T >= 2; the last one may be 1 (zero terminal
        signal-to-noise ratio).

    Raises:
      ValueError: naming what is wrong with `betas`.
    """
    betas = check_betas(betas)
    alphas = 1 - betas
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    one_minus = 1 - alphas_cumprod
    if one_minus[0] == 0 or (alphas_cumprod[-1] == 0) != (betas[-1] == 1):
        raise ValueError(
            f"betas ({betas[0]} to {betas[-1]}) leave no noise at the first step or no "
            "signal at the last one, to the precision of float64"
        )
    _warn_of_odd_betas(betas, alphas_cumprod[-1])
    posterior_variance = betas * (1 - alphas_cumprod_prev) / one_minus
    return Schedule(
        betas=betas,
        alphas=alphas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=alphas_cumprod_prev,
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(one_minus),
        posterior_mean_coef1=betas * np.sqrt(alphas_cumprod_prev) / one_minus,
        posterior_mean_coef2=(1 - alphas_cumprod_prev) * np.sqrt(alphas) / one_minus,
        posterior_variance=posterior_variance,
        posterior_log_variance_clipped=np.log(
            np.append(posterior_variance[1], posterior_variance[1:])
        ),
    )


def respaced(schedule: Schedule, timesteps: np.ndarray) -> Schedule:
    """The process seen at some of its timesteps alone (IDDPM section 4).

    Args:
      schedule: the noise process.
      timesteps: float64 [S], whole numbers, strictly falling, S >= 2.

    Returns:
      A schedule of S steps, whose step i is timesteps[S - 1 - i].
    """
    alphas_cumprod = schedule.alphas_cumprod[np.asarray(timesteps)[::-1].astype(int)]
    before = np.append(1.0, alphas_cumprod[:-1])
    with warnings.catch_warnings():  # There was a warning of the whole process already.
        warnings.simplefilter("ignore")
        return make_schedule((before - alphas_cumprod) / before)


def alphas_cumprod_at(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """alphas_cumprod at real-valued times: its logarithm is linear between indices.

    Args:
      schedule: the noise process.
      times: float64 [S], each in 0 .. T-1.

    Returns:
      float64 [S]; at whole numbers the schedule's own values.
    """
    times = np.asarray(times, np.float64)
    before = np.floor(times).astype(int)
    after = np.minimum(before + 1, schedule.num_timesteps - 1)
    share = times - before
    with np.errstate(divide="ignore"):  # No signal at the end: none on the way there.
        log_of = np.log(schedule.alphas_cumprod)
    whole = share == 0
    # Unseen (0.5): it stands where nothing is read.
    share = np.where(whole, 0.5, share)  # Not 0, since 0 * inf is not 0.
    between = np.exp((1 - share) * log_of[before] + share * log_of[after])
    return np.where(whole, schedule.alphas_cumprod[before], between)


def times_at_log_snr(schedule: Schedule, log_snr: np.ndarray) -> np.ndarray:
    """The real-valued times with these log signal-to-noise ratios.

    The inverse of `alphas_cumprod_at`. Ratios beyond those of the schedule (of which the
    last one counts only if it is above zero) give the time of the nearest.

    Args:
      schedule: the noise process.
      log_snr: float64 [S], natural logarithms.

    Returns:
      float64 [S], each in 0 .. T-1.
    """
    noisy = schedule.alphas_cumprod > 0
    log_of = np.log(schedule.alphas_cumprod[noisy])
    # log sigmoid: alphas_cumprod is SNR / (1 + SNR). np.interp wants rising abscissas.
    return np.interp(np.logaddexp(0, -log_snr), -log_of, np.flatnonzero(noisy))


def check_betas(betas: np.ndarray) -> np.ndarray:
    """The betas as float64 [T].

    Raises:
      ValueError: naming what is wrong with them.
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1:
        raise ValueError(f"betas must have one axis; got the shape {betas.shape}")
    _check_num_timesteps(len(betas))
    good = (betas > 0) & (betas < 1)
    good[-1] |= betas[-1] == 1
    for t in np.flatnonzero(~good)[:1]:
        raise ValueError(
            f"betas[{t}] ({betas[t]}) must be between 0 and 1, both excluded (the last may "
            "be 1, for a zero terminal signal-to-noise ratio)"
        )
    return betas


class OddBetas(UserWarning):
    """A warning of betas that hardly should be trained with; given once per run."""


def _warn_of_odd_betas(betas: np.ndarray, terminal: float) -> None:
    for t in np.flatnonzero(np.diff(betas) <= 0)[:1]:
        warnings.warn(
            f"betas do not rise everywhere: betas[{t}] is {betas[t]:.6g} and "
            f"betas[{t + 1}] is {betas[t + 1]:.6g}",
            OddBetas,
            stacklevel=3,
        )
    if terminal > MAX_TERMINAL_SIGNAL:
        warnings.warn(
            f"x_T is not noise: alphas_cumprod[-1] is {terminal:.4g}, so it keeps "
            f"{100 * terminal**0.5:.3g} % of the signal's amplitude, and sampling starts "
            "from something never trained on; take more timesteps or larger betas",
            OddBetas,
            stacklevel=3,
        )


def _check_ends(num_timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_num_timesteps(num_timesteps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(
                f"{name} ({beta}) must be between 0 and 1, both excluded; "
                "DDPM uses 0.0001 to 0.02"
            )


def _check_num_timesteps(num_timesteps: int) -> None:
    if num_timesteps < 2:
        raise ValueError(
            f"num_timesteps ({num_timesteps}) must be at least 2; DDPM uses 1000"
        )
