"""What a network's prediction says: x_0, the noise, v, the score, and the reverse step.

A network predicts eps (the noise in x_t), x0, or v = sqrt(alpha-bar) eps
- sqrt(1 - alpha-bar) x_0 (Salimans & Ho 2022). The score, the gradient of
log q(x_t | x_0), is -eps / sqrt(1 - alpha-bar). Given x_t each of the four determines the
others, linearly; the twelve functions below are those lines.

How exact they can be lies in the problem: with ulp = 2^-23 max|x_t|, results are within
1e-6 for v -> x0 and v -> eps; towards x0 (and v from eps or score) within
4 ulp / sqrt(alpha-bar); towards eps and score (and v from x0) within
4 ulp / sqrt(1 - alpha-bar); score from x0 within that divided by sqrt(1 - alpha-bar) once
more. Where alpha-bar is 0 the noise and the score say nothing of x_0: there a ValueError
refuses them, and under jit, where t is not known, the result is NaN.

Shapes: images are [B, ...], `t` is int32 [B] or a scalar, as in
`diffusion_jax.diffusion.forward_process`.
"""

import chex
import jax
import numpy as np

from diffusion_jax.diffusion.forward_process import at, q_posterior
from diffusion_jax.diffusion.schedules import Schedule

PREDICTION_TYPES = ("eps", "x0", "v")
VARIANCES = ("fixed_small", "fixed_large", "learned")


def x0_from_eps(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """The x_0 that with noise eps makes x_t (DDPM eq. 15).

    Float32 rounding of x_t is amplified by 1 / sqrt(alphas_cumprod_t): 157 at T - 1 of
    the linear schedule, 20,291 of the cosine one.
    """
    return _combine(*x0_coefficients("eps", schedule.alphas_cumprod), x_t, t, eps)


def x0_from_v(schedule: Schedule, x_t: jax.Array, t: jax.Array, v: jax.Array) -> jax.Array:
    """x_0 = sqrt(alpha-bar) x_t - sqrt(1 - alpha-bar) v (Salimans & Ho, appendix D)."""
    return _combine(*x0_coefficients("v", schedule.alphas_cumprod), x_t, t, v)


def x0_from_score(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, score: jax.Array
) -> jax.Array:
    """x_0 = (x_t + (1 - alpha-bar) score) / sqrt(alpha-bar): Tweedie's formula.

    Float32 rounding is amplified as in `x0_from_eps`.
    """
    signal, sigma = _signal_and_sigma(schedule)
    with np.errstate(divide="ignore"):
        return _combine(1 / signal, sigma**2 / signal, x_t, t, score)


def eps_from_x0(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array
) -> jax.Array:
    """The noise that with x_0 makes x_t: DDPM eq. 4 solved for eps.

    Float32 rounding is amplified by 1 / sqrt(1 - alphas_cumprod_t), at t = 0 by
    100 (linear schedule) or 156 (cosine).
    """
    signal, sigma = _signal_and_sigma(schedule)
    return _combine(1 / sigma, -signal / sigma, x_t, t, x0)


def eps_from_v(schedule: Schedule, x_t: jax.Array, t: jax.Array, v: jax.Array) -> jax.Array:
    """eps = sqrt(1 - alpha-bar) x_t + sqrt(alpha-bar) v (Salimans & Ho, appendix D)."""
    signal, sigma = _signal_and_sigma(schedule)
    return _combine(sigma, signal, x_t, t, v)


def eps_from_score(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, score: jax.Array
) -> jax.Array:
    """eps = -sqrt(1 - alpha-bar) score (Song et al. 2021)."""
    return _combine(None, -schedule.sqrt_one_minus_alphas_cumprod, x_t, t, score)


def v_from_eps(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """v = (eps - sqrt(1 - alpha-bar) x_t) / sqrt(alpha-bar): `eps_from_v` solved for v."""
    signal, sigma = _signal_and_sigma(schedule)
    with np.errstate(divide="ignore"):
        return _combine(-sigma / signal, 1 / signal, x_t, t, eps)


def v_from_x0(schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """v = (sqrt(alpha-bar) x_t - x_0) / sqrt(1 - alpha-bar): `x0_from_v` solved for v."""
    signal, sigma = _signal_and_sigma(schedule)
    return _combine(signal / sigma, -1 / sigma, x_t, t, x0)


def v_from_score(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, score: jax.Array
) -> jax.Array:
    """v = -sqrt(1 - alpha-bar) (x_t + score) / sqrt(alpha-bar)."""
    signal, sigma = _signal_and_sigma(schedule)
    with np.errstate(divide="ignore"):
        return _combine(-sigma / signal, -sigma / signal, x_t, t, score)


def score_from_eps(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """score = -eps / sqrt(1 - alpha-bar) (Song et al. 2021)."""
    return _combine(None, -1 / schedule.sqrt_one_minus_alphas_cumprod, x_t, t, eps)


def score_from_x0(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array
) -> jax.Array:
    """score = (sqrt(alpha-bar) x_0 - x_t) / (1 - alpha-bar): grad log q(x_t | x_0).

    Float32 rounding is amplified by 1 / (1 - alphas_cumprod_t), at t = 0 by 10,000
    (linear schedule) or 24,000 (cosine).
    """
    signal, sigma = _signal_and_sigma(schedule)
    return _combine(-1 / sigma**2, signal / sigma**2, x_t, t, x0)


def score_from_v(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, v: jax.Array
) -> jax.Array:
    """score = -x_t - sqrt(alpha-bar) / sqrt(1 - alpha-bar) v."""
    signal, sigma = _signal_and_sigma(schedule)
    return _combine(-np.ones_like(signal), -signal / sigma, x_t, t, v)


def x0_from_prediction(
    schedule: Schedule,
    prediction_type: str,
    x_t: jax.Array,
    t: jax.Array,
    prediction: jax.Array,
) -> jax.Array:
    """x_0 from what a network predicted: "eps", "x0" or "v". [B, ...] -> [B, ...]."""
    a, b = x0_coefficients(prediction_type, schedule.alphas_cumprod)
    return _combine(a, b, x_t, t, prediction)


def prediction_target(
    schedule: Schedule,
    prediction_type: str,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """What a network of this prediction type should say at q_sample(x0, t, noise).

    Returns:
      [B, ...]: the noise, x0, or v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) x0.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "eps":
        return noise
    if prediction_type == "x0":
        return x0
    signal, sigma = _signal_and_sigma(schedule)
    return at(signal, t, x0) * noise - at(sigma, t, x0) * x0


def x0_coefficients(
    prediction_type: str, alphas_cumprod: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) with x_0 = a x_t + b prediction, on the host, in float64.

    Args:
      prediction_type: "eps", "x0" or "v".
      alphas_cumprod: alpha-bar of each noise level, in [0, 1), float64 [S]. For eps the
        coefficients are infinite where it is 0.
    """
    check_prediction_type(prediction_type)
    signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    if prediction_type == "eps":
        with np.errstate(divide="ignore"):
            return 1 / signal, -sigma / signal
    if prediction_type == "x0":
        return np.zeros_like(signal), np.ones_like(signal)
    return signal, -sigma


def split_output(
    output: jax.Array, x_t: jax.Array, variance_type: str
) -> tuple[jax.Array, jax.Array | None]:
    """A network's output as (prediction, variance output).

    With variance_type "learned" the last axis holds the prediction first and then as many
    channels that say where between its bounds the log variance lies; otherwise it is the
    prediction, and the second part None.

    Raises:
      ValueError: if the output has another number of channels.
    """
    check_variance_type(variance_type)
    channels = x_t.shape[-1] * (2 if variance_type == "learned" else 1)
    if output.shape != (*x_t.shape[:-1], channels):
        raise ValueError(
            f"the network's output has the shape {output.shape}; with variance "
            f"{variance_type!r} and x_t of shape {x_t.shape} it must have "
            f"{channels} channels"
        )
    if variance_type != "learned":
        return output, None
    return output[..., : x_t.shape[-1]], output[..., x_t.shape[-1] :]


def prediction_alone(output: jax.Array, x_t: jax.Array) -> jax.Array:
    """The prediction in a network's output, whether or not it says variances as well."""
    learned = output.shape[-1] == 2 * x_t.shape[-1]
    return split_output(output, x_t, "learned" if learned else "fixed_small")[0]


def log_variance_bounds(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """(log beta-tilde, log beta): the lower and upper end of a learned log variance.

    beta-tilde is right for data that is a point, beta for data of unit variance (DDPM
    section 3.2). At t = 0, where beta-tilde is 0, it is that of t = 1. float64 [T] each.
    """
    return schedule.posterior_log_variance_clipped, np.log(schedule.betas)


def fixed_log_variance(schedule: Schedule, variance_type: str) -> np.ndarray:
    """The log variance of a reverse step that is not learned, float64 [T].

    log beta-tilde ("fixed_small") or log beta ("fixed_large"); at t = 0, where beta-tilde
    is 0, both are log beta-tilde of t = 1, as in the authors' code.
    """
    low, high = log_variance_bounds(schedule)
    return low if variance_type == "fixed_small" else np.append(low[0], high[1:])


def p_mean_log_variance(
    schedule: Schedule,
    variance_type: str,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    variance_output: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """p(x_{t-1} | x_t), the Gaussian of the reverse step, at a predicted x_0.

    The mean is that of q(x_{t-1} | x_t, x_0) (DDPM eq. 7). The variance is

    - "fixed_small" or "fixed_large": that of `fixed_log_variance`,
    - "learned": exp(w log beta + (1 - w) log beta-tilde), w = (variance_output + 1) / 2
      (IDDPM eq. 15).

    Args:
      schedule: the noise process.
      variance_type: one of VARIANCES.
      x0: [B, ...] predicted clean images.
      x_t: [B, ...] noised images.
      t: int32 [B] or scalar.
      variance_output: [B, ...] of `split_output`, for "learned" alone.

    Returns:
      mean [B, ...], and the log variance, which broadcasts against it.
    """
    check_variance_type(variance_type)
    mean, _, log_small = q_posterior(schedule, x0, x_t, t)
    if variance_type != "learned":
        return mean, at(fixed_log_variance(schedule, variance_type), t, x0)
    if variance_output is None:
        raise ValueError("variance 'learned' needs the variance output of the network")
    _, high = log_variance_bounds(schedule)
    share = (variance_output + 1) / 2
    return mean, share * at(high, t, x0) + (1 - share) * log_small


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError unless the name is one of PREDICTION_TYPES."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction type {prediction_type!r} is unknown; it can be "
            + ", ".join(PREDICTION_TYPES)
        )


def check_variance_type(variance_type: str) -> None:
    """Raises ValueError unless the name is one of VARIANCES."""
    if variance_type not in VARIANCES:
        raise ValueError(
            f"variance {variance_type!r} is unknown; it can be {', '.join(VARIANCES)}"
        )


def _signal_and_sigma(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    return schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod


def _combine(a: np.ndarray | None, b: np.ndarray, x_t, t, other) -> jax.Array:
    """a_t x_t + b_t other; NaN, or an error, where b_t is infinite."""
    chex.assert_equal_shape([x_t, other])
    with np.errstate(over="ignore"):
        undefined = ~np.isfinite(b.astype(np.float32))
    if undefined.any():
        b = np.where(undefined, np.nan, b)
        known = not isinstance(t, jax.core.Tracer)
        if known and np.isin(np.asarray(t), np.flatnonzero(undefined)).any():
            raise ValueError(
                f"alphas_cumprod is 0, or nearly, at t = {np.flatnonzero(undefined)[0]}: "
                "the noise there says nothing of x_0; predict v or x0"
            )
    scaled = at(b, t, x_t) * other
    return scaled if a is None else at(a, t, x_t) * x_t + scaled
