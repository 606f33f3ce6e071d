"""Forms of a prediction (x_0, the noise, v, the score), and the reverse step's variance.

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

from collections.abc import Callable

import chex
import jax
import numpy as np

from diffusion_jax.diffusion.forward_process import at
from diffusion_jax.diffusion.noise_level import NoiseLevel, variance_preserving
from diffusion_jax.diffusion.schedules import Schedule

PREDICTION_TYPES = ("eps", "x0", "v")  # Without "score", which no config trains.
NEED_SIGNAL = ("eps", "score")  # Without signal in x_t these do not determine x_0.
VARIANCES = ("fixed_small", "fixed_large", "learned")


def x0_from_eps(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """The x_0 that with noise eps makes x_t (DDPM eq. 15).

    Float32 rounding of x_t is amplified by 1 / sqrt(alphas_cumprod_t): 157 at T - 1 of
    the linear schedule, 20,291 of the cosine one.
    """
    return _combine(*_x0_coefficients("eps", schedule), x_t, t, eps)


def x0_from_v(schedule: Schedule, x_t: jax.Array, t: jax.Array, v: jax.Array) -> jax.Array:
    """x_0 = sqrt(alpha-bar) x_t - sqrt(1 - alpha-bar) v (Salimans & Ho, appendix D)."""
    return _combine(*_x0_coefficients("v", schedule), x_t, t, v)


def x0_from_score(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, score: jax.Array
) -> jax.Array:
    """x_0 = (x_t + (1 - alpha-bar) score) / sqrt(alpha-bar): Tweedie's formula.

    Float32 rounding is amplified as in `x0_from_eps`.
    """
    return _combine(*_x0_coefficients("score", schedule), x_t, t, score)


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
    return _combine(*_v_coefficients("eps", schedule), x_t, t, eps)


def v_from_x0(schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """v = (sqrt(alpha-bar) x_t - x_0) / sqrt(1 - alpha-bar): `x0_from_v` solved for v."""
    return _combine(*_v_coefficients("x0", schedule), x_t, t, x0)


def v_from_score(
    schedule: Schedule, x_t: jax.Array, t: jax.Array, score: jax.Array
) -> jax.Array:
    """v = -sqrt(1 - alpha-bar) (x_t + score) / sqrt(alpha-bar)."""
    return _combine(*_v_coefficients("score", schedule), x_t, t, score)


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


def converted(
    process: Schedule,
    have: str,
    wanted: str,
    x_t: jax.Array,
    t: jax.Array,
    value: jax.Array,
) -> jax.Array:
    """Return one of "x0", "eps", "v" and "score" as another one of them.

    Args:
      process: the noise process.
      have: what `value` is.
      wanted: what is returned.
      x_t: [B, ...] noised images.
      t: int32 [B] or scalar.
      value: [B, ...].
    """
    if have == wanted:
        return value
    return _CONVERSIONS[have, wanted](process, x_t, t, value)


def x0_coefficients(prediction: str, level: NoiseLevel) -> tuple[np.ndarray, np.ndarray]:
    """Return (a, b) with x_0 = a x_t + b prediction, on the host, in float64.

    For eps and the score that is x_t = alpha x_0 + sigma eps solved for x_0. v is the
    velocity of a process that preserves the variance.

    Args:
      prediction: "eps", "x0", "v" or "score".
      level: float64 [S]. For eps and the score the coefficients are infinite where alpha
        is 0.

    Returns:
      float64 [S] each.
    """
    check_prediction(prediction)
    alpha, sigma = level.alpha, level.sigma
    if prediction == "x0":
        return np.zeros_like(alpha), np.ones_like(alpha)
    if prediction == "v":
        return alpha, -sigma
    with np.errstate(divide="ignore"):
        return 1 / alpha, (-sigma if prediction == "eps" else sigma**2) / alpha


def v_coefficients(prediction: str, level: NoiseLevel) -> tuple[np.ndarray, np.ndarray]:
    """Return (a, b) with v = a x_t + b prediction, on the host, in float64.

    v is the velocity of a process that preserves the variance.

    Args:
      prediction: "eps", "x0", "v" or "score".
      level: float64 [...]. For eps and the score the coefficients are infinite where alpha
        is 0.

    Returns:
      float64 [...] each.
    """
    check_prediction(prediction)
    alpha, sigma = level.alpha, level.sigma
    if prediction == "v":
        return np.zeros_like(alpha), np.ones_like(alpha)
    if prediction == "x0":
        return alpha / sigma, -1 / sigma
    with np.errstate(divide="ignore"):
        return -sigma / alpha, (1 if prediction == "eps" else -sigma) / alpha


def log_variance_bounds(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """(log beta-tilde, log beta): the lower and upper end of a learned log variance.

    beta-tilde is right for data that is a point, beta for data of unit variance (DDPM
    section 3.2). At t = 0, where beta-tilde is 0, it is that of t = 1. float64 [T] each.
    """
    return schedule.posterior_log_variance_clipped, np.log(schedule.betas)


def fixed_log_variance(schedule: Schedule, variance: str) -> np.ndarray:
    """The log variance of a reverse step that is not learned, float64 [T].

    log beta-tilde ("fixed_small") or log beta ("fixed_large"); at t = 0, where beta-tilde
    is 0, both are log beta-tilde of t = 1, as in the authors' code.
    """
    low, high = log_variance_bounds(schedule)
    return low if variance == "fixed_small" else np.append(low[0], high[1:])


def check_prediction(prediction: str) -> None:
    """Raise ValueError unless the name is one of PREDICTION_TYPES, or "score"."""
    if prediction not in (*PREDICTION_TYPES, "score"):
        raise ValueError(
            f"prediction {prediction!r} is unknown; it can be "
            f"{', '.join((*PREDICTION_TYPES, 'score'))}"
        )


def check_variance(variance: str) -> None:
    """Raise ValueError unless the name is one of VARIANCES."""
    if variance not in VARIANCES:
        raise ValueError(
            f"variance {variance!r} is unknown; it can be {', '.join(VARIANCES)}"
        )


_CONVERSIONS: dict[tuple[str, str], Callable[..., jax.Array]] = {
    ("eps", "x0"): x0_from_eps,
    ("v", "x0"): x0_from_v,
    ("score", "x0"): x0_from_score,
    ("x0", "eps"): eps_from_x0,
    ("v", "eps"): eps_from_v,
    ("score", "eps"): eps_from_score,
    ("eps", "v"): v_from_eps,
    ("x0", "v"): v_from_x0,
    ("score", "v"): v_from_score,
    ("eps", "score"): score_from_eps,
    ("x0", "score"): score_from_x0,
    ("v", "score"): score_from_v,
}


def _x0_coefficients(prediction: str, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    return x0_coefficients(prediction, variance_preserving(schedule.alphas_cumprod))


def _v_coefficients(prediction: str, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    return v_coefficients(prediction, variance_preserving(schedule.alphas_cumprod))


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
                f"alphas_cumprod is 0, or nearly, at t = {np.flatnonzero(undefined)[0]}, "
                "where the noise does not determine x_0; predict v or x0"
            )
    scaled = at(b, t, x_t) * other
    return scaled if a is None else at(a, t, x_t) * x_t + scaled
