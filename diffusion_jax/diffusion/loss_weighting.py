"""Loss weightings: the weight of each timestep, as a table made on the host.

Every weighting here is defined by the weight w(t) of the squared error of x_0. The errors
of the three predictions differ by the signal-to-noise ratio alone,

    |eps error|^2 = SNR |x_0 error|^2        |v error|^2 = (SNR + 1) |x_0 error|^2,

so a network that predicts eps or v gets w / SNR or w / (SNR + 1), and the same loss. The
exception is "simple": weight 1 on whatever is predicted. The weights are those of squared
errors; with another norm they are used as they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import variance_preserving
from diffusion_jax.diffusion.parameterization import (
    NEED_SIGNAL,
    check_variance,
    fixed_log_variance,
    x0_coefficients,
)
from diffusion_jax.diffusion.schedules import Schedule


class Parameters(NamedTuple):
    """Parameters of the weightings; each name begins with that of its weighting."""

    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    sigmoid_bias: float = 0.0


PAPERS = Parameters()  # The values of the papers.


def snr_weights(schedule: Schedule) -> np.ndarray:
    """SNR: the weight that the plain eps loss gives to x_0 (Salimans & Ho, section 4)."""
    return schedule.snr


def truncated_snr_weights(schedule: Schedule) -> np.ndarray:
    """max(SNR, 1): the larger of the eps and the x_0 loss (Salimans & Ho, section 4)."""
    return np.maximum(schedule.snr, 1.0)


def min_snr_weights(schedule: Schedule, gamma: float = 5.0) -> np.ndarray:
    """min(SNR, gamma): less for nearly clean x_t (Hang et al. 2023).

    Raises:
      ValueError: unless gamma > 0.
    """
    if not gamma > 0:
        raise ValueError(f"min_snr_gamma ({gamma}) must be above 0; the paper uses 5")
    return np.minimum(schedule.snr, gamma)


def p2_weights(schedule: Schedule, gamma: float = 1.0, k: float = 1.0) -> np.ndarray:
    """SNR / (k + SNR)^gamma: less for imperceptible noise (Choi et al. 2022).

    Raises:
      ValueError: unless gamma >= 0 and k > 0.
    """
    if not (gamma >= 0 and k > 0):
        raise ValueError(
            f"p2_gamma ({gamma}) must be at least 0 and p2_k ({k}) above 0; the paper "
            "uses 1 and 1"
        )
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return schedule.snr / (k + schedule.snr) ** gamma


def sigmoid_weights(schedule: Schedule, bias: float = 0.0) -> np.ndarray:
    """sigmoid(bias - log SNR) times the variational weight (Kingma & Gao 2023).

    The variational weight carries the step in log SNR, so that the loss does not depend
    on how the schedule spreads its timesteps. Hoogeboom et al. 2024, eq. 4, in steps.
    """
    return variational_weights(schedule) / (1 + schedule.snr * math.exp(-bias))


def variational_weights(schedule: Schedule, variance: str = "fixed_small") -> np.ndarray:
    """T times the exact weight of L_{t-1} in the variational bound, in bits (DDPM eq. 12).

    coef1^2 / (2 variance); with fixed_small that is half the fall of SNR in the step
    (Kingma et al. 2021, section 4). So the mean over uniform t is the bound except for
    L_T, the constants that a fixed_large variance adds, and L_0, whose bins are left
    out: at t = 0 this is the Gaussian's own log density, of the variance that t = 1 has.

    Raises:
      ValueError: for a learned variance, whose bound is no weighted error.
    """
    check_variance(variance)
    if variance == "learned":
        raise ValueError(
            "variance 'learned' has no variational weights; use the variational loss"
        )
    spread = np.exp(fixed_log_variance(schedule, variance))
    nats = schedule.posterior_mean_coef1**2 / (2 * spread)
    return schedule.num_timesteps * nats / math.log(2)


def score_matching_weights(schedule: Schedule) -> np.ndarray:
    """SNR / (1 - alphas_cumprod): denoising score matching (Vincent 2011), unweighted.

    The score is -eps / sqrt(1 - alphas_cumprod): its squared error is that of eps over
    1 - alphas_cumprod.
    """
    return schedule.snr / (1 - schedule.alphas_cumprod)


# w(t) by name, of a process and a variance of its reverse step; "simple" is not of x_0.
WEIGHTINGS: dict[str, Callable[[Schedule, str, Parameters], np.ndarray]] = {
    "simple": lambda process, variance, p: np.ones(process.num_timesteps),
    "snr": lambda process, variance, p: snr_weights(process),
    "truncated_snr": lambda process, variance, p: truncated_snr_weights(process),
    "min_snr": lambda process, variance, p: min_snr_weights(process, p.min_snr_gamma),
    "p2": lambda process, variance, p: p2_weights(process, p.p2_gamma, p.p2_k),
    "sigmoid": lambda process, variance, p: sigmoid_weights(process, p.sigmoid_bias),
    "variational": lambda process, variance, p: variational_weights(process, variance),
    "score_matching": lambda process, variance, p: score_matching_weights(process),
}


def loss_weights(
    model: Model, weighting: str, parameters: Parameters = PAPERS
) -> np.ndarray:
    """Return the weight of the prediction's squared error at each t, float64 [T].

    Args:
      model: its process, what it predicts, and its variance; the network is not used.
      weighting: one of WEIGHTINGS.
      parameters: of the weightings that have some.

    Raises:
      ValueError: for an unknown name, or a parameter that the weighting refuses.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f"weighting {weighting!r} is unknown; it can be {', '.join(WEIGHTINGS)}"
        )
    process = model.process
    if (
        weighting != "simple"
        and model.prediction in NEED_SIGNAL
        and process.has_zero_terminal_snr
    ):
        raise ValueError(
            f"prediction {model.prediction!r} has no weights at a zero terminal "
            "signal-to-noise ratio; predict v or x0"
        )
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        weights = WEIGHTINGS[weighting](process, model.variance, parameters)
        if weighting == "simple":
            return weights
        level = variance_preserving(process.alphas_cumprod)
        _, of_prediction = x0_coefficients(model.prediction, level)
        # x_0 error = of_prediction * prediction error.
        weights = weights * of_prediction**2
    largest = weights.max()
    of_float32 = np.finfo(np.float32)
    if not of_float32.tiny <= largest <= of_float32.max:
        own = [
            f"{name} ({value:g})"
            for name, value in parameters._asdict().items()
            if name.startswith(f"{weighting}_")
        ]
        raise ValueError(
            f"weighting {weighting!r} has a largest weight of {largest:.3g}, beyond "
            f"float32; change {' or '.join(own) or 'the schedule'}"
        )
    return weights
