"""Training losses: draw t and noise, ask the network, compare with its target.

The network is any function `apply_fn(params, x_t, t, cond, *, train, key)` that returns
an array of the shape of x_t.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from diffusion_jax.process import prediction_target, q_sample
from diffusion_jax.schedules import Schedule

ApplyFn = Callable[..., jax.Array]
NORMS = ("l2", "l1")


def prediction_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    *,
    prediction_type: str = "eps",
    norm: str = "l2",
    cond: Any = None,
    train: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """Mean distance between prediction and target, for each image, at given t and noise.

    With prediction_type "eps" and norm "l2" its mean over t and noise is L_simple
    (DDPM eq. 14), averaged, not summed, over pixels and channels.

    Args:
      apply_fn, params: the network.
      schedule: the noise process.
      x0: [B, ...] clean images in [-1, 1].
      t: int32 [B], 0 .. T-1.
      noise: standard normal, the shape of x0.
      prediction_type: "eps", "x0" or "v".
      norm: "l2" (squared error) or "l1" (absolute error).
      cond: handed through to the network.
      train: True switches dropout on; needs `key`.
      key: PRNG key of the dropout.

    Returns:
      float32 [B].
    """
    check_norm(norm)
    chex.assert_shape(t, (x0.shape[0],))
    x_t = q_sample(schedule, x0, t, noise)
    prediction = apply_fn(params, x_t, t, cond, train=train, key=key)
    target = prediction_target(schedule, prediction_type, x0, t, noise)
    chex.assert_equal_shape([prediction, target])
    error = prediction - target
    distance = jnp.square(error) if norm == "l2" else jnp.abs(error)
    return distance.reshape(x0.shape[0], -1).mean(axis=1)


def simple_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    key: jax.Array,
    x0: jax.Array,
    *,
    prediction_type: str = "eps",
    norm: str = "l2",
    cond: Any = None,
    train: bool = True,
) -> jax.Array:
    """L_simple (DDPM eq. 14): the mean loss at t uniform over the papers' 1 .. T.

    Args:
      apply_fn, params: the network.
      schedule: the noise process.
      key: one typed PRNG key, split here into those of t, noise and dropout.
      x0: [B, ...] clean images in [-1, 1].
      prediction_type, norm, cond: as for `prediction_loss`. The sampler's table must be
        made for the same prediction type.
      train: dropout; on unless switched off, other than in `prediction_loss`.

    Returns:
      float32 scalar.
    """
    k_t, k_noise, k_dropout = jax.random.split(key, 3)
    t = jax.random.randint(k_t, x0.shape[:1], 0, schedule.num_timesteps)
    noise = jax.random.normal(k_noise, x0.shape)
    return prediction_loss(
        apply_fn,
        params,
        schedule,
        x0,
        t,
        noise,
        prediction_type=prediction_type,
        norm=norm,
        cond=cond,
        train=train,
        key=k_dropout,
    ).mean()


def check_norm(norm: str) -> None:
    """Raises ValueError unless the name is one of NORMS."""
    if norm not in NORMS:
        raise ValueError(f"loss norm {norm!r} is unknown; it can be {', '.join(NORMS)}")
