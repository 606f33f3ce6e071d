"""The losses of three denoisers that need no training, in closed form.

A loss alone does not say whether a network has learned anything. Beside it belong the
losses of denoisers that know nothing of the data, or only the mean m and the variance v
of each value. The network's target is

    y = p eps + q x_0,    (p, q) = (1, 0) for eps, (0, 1) for x_0,
                          (alpha, -sigma) for v, (-1 / sigma, 0) for the score,

and the mean and variance of their errors are

    untrained, output 0:          -q m,    p^2 + q^2 v
    mean, output E[y | t] = q m:     0,    p^2 + q^2 v
    linear in x_t, the best one:     0,    (p alpha - q sigma)^2 v / (alpha^2 v + sigma^2).

The last is p^2 + q^2 v - Cov[y, x_t]^2 / Var[x_t]: the error of a Wiener filter that sees
one value at a time. For eps the first two are the same. The losses are exact for the norm
"l2"; with "l1" and "huber" they are those of Gaussian data of these moments (of eps and
the score they are exact for the first two).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from diffusion_jax.diffusion.losses import Distance
from diffusion_jax.diffusion.model import Model

_MOST_VALUES = 4096  # Values of an example that count; more say nothing else.


class ReferenceLosses(NamedTuple):
    """Mean losses over uniform t.

    Attributes:
      untrained: of the output 0.
      mean: of the mean of the target.
      linear: of the best output that is linear in the same value of x_t.
    """

    untrained: float
    mean: float
    linear: float


def reference_losses(
    model: Model, mean: np.ndarray, variance: np.ndarray, distance: Distance
) -> ReferenceLosses:
    """Return the losses of the three denoisers.

    Of examples with more than 4,096 values, that many count, evenly spaced.

    Args:
      model: the noise process, and what is predicted; the network is not used.
      mean, variance: of each value of the data, [D...].
      distance: the norm, and the weight of each timestep.
    """
    # Unseen: the indices are rounded to whole numbers.
    chosen = np.unique(np.linspace(0, mean.size - 1, _MOST_VALUES).round().astype(int))
    m, v = (np.asarray(x, np.float64).ravel()[chosen] for x in (mean, variance))
    process = model.process
    alpha = process.sqrt_alphas_cumprod[:, None]
    sigma = process.sqrt_one_minus_alphas_cumprod[:, None]
    of_target: dict[str, tuple[Any, Any]] = {
        "eps": (1.0, 0.0),
        "x0": (0.0, 1.0),
        "v": (alpha, -sigma),
        "score": (-1 / sigma, 0.0),
    }
    p, q = of_target[model.prediction]
    whole = p**2 + q**2 * v
    left = (p * alpha - q * sigma) ** 2 * v / (alpha**2 * v + sigma**2)
    weights = 1.0 if distance.weights is None else distance.weights[:, None]

    def averaged(mean_error: Any, variance: np.ndarray) -> float:
        losses = expected_distance(distance, mean_error, np.sqrt(variance))
        return float((weights * losses).mean())

    return ReferenceLosses(
        averaged(-q * m, whole), averaged(0.0, whole), averaged(0.0, left)
    )


def expected_distance(distance: Distance, mean: Any, std: Any) -> np.ndarray:
    """Return E[distance(e)] of a Gaussian error e, without the loss weight.

    With a = (-delta - mean) / std, b = (delta - mean) / std and the standard normal's
    density phi and distribution function Phi, the parts inside and outside of
    |e| <= delta are

        E[e^2; inside] = (mean^2 + std^2) (Phi(b) - Phi(a))
                         + std (2 mean (phi(a) - phi(b)) + std (a phi(a) - b phi(b)))
        E[|e|; outside] = mean (Phi(-b) - Phi(a)) + std (phi(a) + phi(b)).

    "l1" is the second at delta = 0, and "huber" half of the first and delta times what
    is outside, less delta^2 / 2.

    Args:
      distance: "l2", "l1" or "huber".
      mean, std: of the error; they broadcast. A std of 0 is an error without chance.
    """
    mean, std = np.broadcast_arrays(mean, std)
    if distance.norm == "l2":
        return mean**2 + std**2
    delta = distance.huber_delta if distance.norm == "huber" else 0.0
    # Unseen (1e-300): a divisor for errors without chance, whatever it is.
    safe = np.maximum(std, 1e-300)
    a, b = (-delta - mean) / safe, (delta - mean) / safe
    low, high = ndtr(a), ndtr(-b)
    phi_a, phi_b = _density(a), _density(b)
    outside = mean * (high - low) + std * (phi_a + phi_b)
    if distance.norm == "l1":
        return outside
    inside = 1 - low - high
    squares = (mean**2 + std**2) * inside
    with np.errstate(invalid="ignore"):
        ends = np.nan_to_num(a * phi_a - b * phi_b)
    squares = squares + std * (2 * mean * (phi_a - phi_b) + std * ends)
    return squares / 2 + delta * outside - delta**2 / 2 * (low + high)


def mean_and_variance(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the variance of each value of examples; float64 [D...].

    The batches are merged as by Chan et al. (1979), so that a mean far from 0 takes no
    digits from the variance, which is divided by N.

    Args:
      batches: arrays [N, D...], at least one example in all.
    """
    total, mean, squares = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        batch = np.asarray(batch, np.float64)
        num, of_batch = len(batch), batch.mean(axis=0)
        offset, whole = of_batch - mean, total + num
        squares = squares + np.square(batch - of_batch).sum(axis=0)
        squares = squares + np.square(offset) * (total * num / whole)
        mean, total = mean + offset * (num / whole), whole
    return mean, squares / total


def _density(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(-np.square(x) / 2) / np.sqrt(2 * np.pi)
