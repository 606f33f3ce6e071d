"""Loss weightings: how much each timestep counts, as a table made on the host.

Every weighting here is defined by the weight w(t) of the squared error of x_0. The errors
of the three predictions differ by the signal-to-noise ratio alone,

    |eps error|^2 = SNR |x_0 error|^2        |v error|^2 = (SNR + 1) |x_0 error|^2,

so a network that predicts eps or v gets w / SNR or w / (SNR + 1), and the same loss. The
exception is "simple": weight 1 on whatever is predicted. The weights are those of squared
errors; with another norm they are used as they are.
"""

import math

import numpy as np

from diffusion_jax.diffusion.parameterization import (
    check_prediction_type,
    check_variance_type,
    fixed_log_variance,
)
from diffusion_jax.diffusion.schedules import Schedule

WEIGHTINGS = (
    "simple",
    "snr",
    "truncated_snr",
    "min_snr",
    "p2",
    "sigmoid",
    "variational",
    "score_matching",
)


def snr_weights(schedule: Schedule) -> np.ndarray:
    """SNR: the weight that the plain eps loss gives to x_0 (Salimans & Ho, section 4)."""
    return schedule.snr


def truncated_snr_weights(schedule: Schedule) -> np.ndarray:
    """max(SNR, 1): the larger of the eps and the x_0 loss (Salimans & Ho, section 4)."""
    return np.maximum(schedule.snr, 1.0)


def min_snr_weights(schedule: Schedule, gamma: float = 5.0) -> np.ndarray:
    """min(SNR, gamma): less for the nearly clean (Hang et al. 2023).

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
    with np.errstate(over="ignore", divide="ignore"):
        return schedule.snr / (k + schedule.snr) ** gamma


def sigmoid_weights(schedule: Schedule, bias: float = 0.0) -> np.ndarray:
    """sigmoid(bias - log SNR) times the variational weight (Kingma & Gao 2023).

    The variational weight carries the step in log SNR, so that the loss does not depend
    on how the schedule spreads its timesteps. Hoogeboom et al. 2024, eq. 4, in steps.
    """
    return variational_weights(schedule) / (1 + schedule.snr * math.exp(-bias))


def variational_weights(
    schedule: Schedule, variance_type: str = "fixed_small"
) -> np.ndarray:
    """T times the exact weight of L_{t-1} in the variational bound, in bits (DDPM eq. 12).

    coef1^2 / (2 variance); with fixed_small that is half the fall of SNR in the step
    (Kingma et al. 2021, section 4). So the mean over uniform t is the bound but for L_T,
    for the constants that a fixed_large variance adds, and for L_0, whose bins are left
    out: at t = 0 this is the Gaussian's own log density, of the variance that t = 1 has.

    Raises:
      ValueError: for a learned variance, whose bound is no weighted error.
    """
    check_variance_type(variance_type)
    if variance_type == "learned":
        raise ValueError("a learned variance has no variational weights; use its own loss")
    variance = np.exp(fixed_log_variance(schedule, variance_type))
    nats = schedule.posterior_mean_coef1**2 / (2 * variance)
    return schedule.num_timesteps * nats / math.log(2)


def score_matching_weights(schedule: Schedule) -> np.ndarray:
    """SNR / (1 - alphas_cumprod): denoising score matching (Vincent 2011), unweighted.

    The score is -eps / sqrt(1 - alphas_cumprod): its squared error is that of eps over
    1 - alphas_cumprod.
    """
    return schedule.snr / (1 - schedule.alphas_cumprod)


def loss_weights(
    schedule: Schedule,
    prediction_type: str,
    weighting: str,
    *,
    variance_type: str = "fixed_small",
    min_snr_gamma: float = 5.0,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
    sigmoid_bias: float = 0.0,
) -> np.ndarray:
    """The weight of the prediction's squared error at each t, float64 [T].

    Args:
      schedule: the noise process.
      prediction_type: "eps", "x0" or "v".
      weighting: one of WEIGHTINGS.
      variance_type: of the reverse step; for "variational".
      min_snr_gamma, p2_gamma, p2_k, sigmoid_bias: of the weighting of that name.

    Raises:
      ValueError: for an unknown name, or a parameter that the weighting refuses.
    """
    check_prediction_type(prediction_type)
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f"weighting {weighting!r} is unknown; it can be {', '.join(WEIGHTINGS)}"
        )
    if weighting == "simple":
        return np.ones(schedule.num_timesteps)
    if prediction_type == "eps" and schedule.has_zero_terminal_snr:
        raise ValueError(
            "eps prediction has no weights at a zero terminal signal-to-noise ratio; "
            "predict v or x0"
        )
    if weighting == "snr":
        weights = snr_weights(schedule)
    elif weighting == "truncated_snr":
        weights = truncated_snr_weights(schedule)
    elif weighting == "min_snr":
        weights = min_snr_weights(schedule, min_snr_gamma)
    elif weighting == "p2":
        weights = p2_weights(schedule, p2_gamma, p2_k)
    elif weighting == "sigmoid":
        weights = sigmoid_weights(schedule, sigmoid_bias)
    elif weighting == "variational":
        weights = variational_weights(schedule, variance_type)
    else:
        weights = score_matching_weights(schedule)
    if prediction_type == "eps":
        weights = weights / schedule.snr
    elif prediction_type == "v":
        weights = weights / (schedule.snr + 1)
    largest = weights.max()
    if not largest <= np.finfo(np.float32).max:
        raise ValueError(
            f"weighting {weighting!r} has a largest weight of {largest:.3g}, beyond "
            "float32; change its parameters"
        )
    return weights
