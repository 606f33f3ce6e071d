"""Moving averages of the weights: exponential, power-function, and rebuilt afterwards.

Every average is the recursion average += weight * (params - average), once per step. With
a constant weight 1 - rate it forgets exponentially. With weight_t = 1 - (1 - 1/t)^(g + 1)
it is the power-function average of Karras et al. 2024 (EDM2, section 3.1): after step t
the weights of time tau in (0, t] count with the density

    p_{g,t}(tau) = (g + 1) tau^g / t^(g + 1),

so that its length is a fixed share of the training so far. That share is told by the
standard deviation of the density over t, `std` (their sigma_rel). Snapshots of two such
averages hold nearly any other: one finds the combination of their densities that is next
to the density wanted, and combines the snapshots likewise (their section 3.2).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import EMAConfig

STD = "std:"  # The name of a power-function average begins with this.


def average_names(config: EMAConfig) -> tuple[str, ...]:
    """Return the names of a run's averages, "0.9999", "std:0.05"; the main one first."""
    rates = (config.decay, *config.more_decays)
    return (*map(str, map(float, rates)), *(f"{STD}{float(s)}" for s in config.stds))


def update_shares(config: EMAConfig, step: jax.Array) -> dict[str, jax.Array]:
    """Return the share by which each average moves to the weights at a step (0, 1, ...).

    It is 1 - rate, with the warm-up at least 9 / (10 + step); for a power-function average
    1 - (1 - 1/t)^(g + 1) with t = step + 1. float32, by name.
    """
    step = jnp.asarray(step, jnp.float32)
    shares = {}
    for name in average_names(config):
        if name.startswith(STD):
            exponent = power_exponent(float(name.removeprefix(STD)))
            # 1 - x^n by way of logarithms: float32 holds no 1 - 1/t for a large t.
            log_share = jnp.log1p(-1 / (step + 1))
            shares[name] = -jnp.expm1((exponent + 1) * log_share)
        else:
            weight = jnp.float32(1 - float(name))
            warm = jnp.maximum(weight, 9 / (10 + step)) if config.warmup else weight
            shares[name] = jnp.broadcast_to(warm, step.shape)
    return shares


def ema_update(average: Any, params: Any, weight: jax.Array | float) -> Any:
    """average + weight * (params - average): where they are equal they stay equal."""
    return jax.tree.map(lambda a, p: a + weight * (p - a), average, params)


def power_exponent(std: float) -> float:
    """The g of a power-function average: std^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    Args:
      std: standard deviation of its density over the time of training, in
        0 < std < 12^-0.5.

    Raises:
      ValueError: for another std.
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"std ({std}) must be above 0 and below 12**-0.5 = 0.2887")
    # (g + 2)^2 (g + 3) - (g + 1) / std^2 = 0; g is the only root above 0.
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(np.max(roots.real))


class Moment(NamedTuple):
    """A power-function average at one time.

    Attributes:
      step: train steps done.
      std: see `power_exponent`.
    """

    step: int
    std: float


def rebuilding_coefficients(
    moments: Sequence[Moment], wanted: Moment
) -> tuple[np.ndarray, float]:
    """The combination of snapshots that is nearest to another average.

    Least squares over the densities (EDM2, algorithm 3), with weights that add up to 1, so
    that what has not changed in training is rebuilt as it is.

    Args:
      moments: of the snapshots, all different.
      wanted: the average to rebuild.

    Returns:
      float64 weights, one for each moment, and the misfit: the root-mean-square distance
      of the two densities over that of the wanted one from 0.
    """
    steps = np.array([m.step for m in (*moments, wanted)], np.float64)
    exponents = np.array([power_exponent(m.std) for m in (*moments, wanted)])
    products = _products(steps, exponents)
    # In units of each density's own length the equations are better conditioned.
    lengths = np.sqrt(np.diag(products))
    cosines = products / np.outer(lengths, lengths)
    gram, towards, scale = cosines[:-1, :-1], cosines[:-1, -1], 1 / lengths[:-1]
    # Minimum under the constraint, by a Lagrange multiplier.
    system = np.block([[gram, scale[:, None]], [scale[None], np.zeros((1, 1))]])
    right = np.append(towards, 1 / lengths[-1])
    # Unseen (1e-14): what counts as zero, at the edge of float64.
    weights = np.linalg.lstsq(system, right, rcond=1e-14)[0][:-1]
    squared = weights @ gram @ weights - 2 * weights @ towards + 1
    return weights * scale * lengths[-1], float(np.sqrt(max(squared, 0)))


def _products(steps: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Integrals of p_i(tau) p_j(tau) over tau, of all pairs; float64 [N, N]."""
    n, k = exponents + 1, np.log(steps)
    both = n[:, None] + n[None] - 1
    shared = np.minimum(k[:, None], k[None]) * both - (k * n)[:, None] - (k * n)[None]
    # Unseen (n[:, None] ...): only ratios of these are used.
    return n[:, None] * n[None] / both * np.exp(shared)
