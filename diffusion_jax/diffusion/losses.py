"""Training losses: draw t and noise, ask the network, compare with what it should say.

The network is any function `apply_fn(params, x_t, t, cond, *, train, key)` that returns
an array of the shape of x_t, or one of twice its channels where the variance of the
reverse step is learned (`predictions.split_output`).

Every loss of this file is given for each image of a batch, at given t and noise;
`monte_carlo_loss` draws those and takes the mean.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.forward_process import at, q_sample
from diffusion_jax.diffusion.parameterization import (
    prediction_target,
    score_from_eps,
    split_output,
    x0_from_prediction,
)
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.timestep_sampling import uniform_timesteps
from diffusion_jax.diffusion.variational_bound import variational_terms

ApplyFn = Callable[..., jax.Array]
NORMS = ("l2", "l1", "huber")


def distance(error: jax.Array, norm: str, huber_delta: float = 1.0) -> jax.Array:
    """The loss of each element of `error`.

    "l2": e^2. "l1": |e|. "huber": e^2 / 2 up to |e| = delta, and from there on
    delta (|e| - delta / 2), the tangent (Huber 1964).
    """
    if norm == "l2":
        return jnp.square(error)
    if norm == "l1":
        return jnp.abs(error)
    if norm == "huber":
        inside = jnp.minimum(jnp.abs(error), huber_delta)
        return inside * (jnp.abs(error) - inside / 2)
    raise ValueError(f"loss norm {norm!r} is unknown; it can be {', '.join(NORMS)}")


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
    huber_delta: float = 1.0,
    weights: np.ndarray | None = None,
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
      norm, huber_delta: see `distance`.
      weights: of each t, float64 [T], made by `weightings.loss_weights` for the same
        prediction type; 1 unless given.
      cond: handed through to the network.
      train: True switches dropout on; needs `key`.
      key: PRNG key of the dropout.

    Returns:
      float32 [B].
    """
    x_t = q_sample(schedule, x0, t, noise)
    output = apply_fn(params, x_t, t, cond, train=train, key=key)
    target = prediction_target(schedule, prediction_type, x0, t, noise)
    chex.assert_equal_shape([output, target])
    return _of_each_image(distance(output - target, norm, huber_delta), t, weights)


def score_matching_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    *,
    weights: np.ndarray | None = None,
    cond: Any = None,
    train: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """Denoising score matching (Vincent 2011): the network's output is the score itself.

    |output - grad log q(x_t | x_0)|^2, the mean over the elements of each image. Weighted
    by 1 - alphas_cumprod it is the eps loss of the network -sqrt(1 - alphas_cumprod)
    output (Song et al. 2021, eq. 7).

    Args:
      as for `prediction_loss`.

    Returns:
      float32 [B].
    """
    x_t = q_sample(schedule, x0, t, noise)
    output = apply_fn(params, x_t, t, cond, train=train, key=key)
    target = score_from_eps(schedule, x_t, t, noise)
    chex.assert_equal_shape([output, target])
    return _of_each_image(jnp.square(output - target), t, weights)


def variational_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    *,
    prediction_type: str = "eps",
    variance_type: str = "learned",
    cond: Any = None,
    train: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """L_vlb: T times L_{t-1} (L_0 at t = 0), in bits per dimension (IDDPM eqs. 4-7).

    Its mean over uniform t is the variational bound but for L_T, which has no parameter.

    Args:
      variance_type: of the reverse step: "fixed_small", "fixed_large" or "learned".
      others: as for `prediction_loss`; x0 are 8-bit images as float32 k / 127.5 - 1.

    Returns:
      float32 [B].
    """
    x_t = q_sample(schedule, x0, t, noise)
    output = apply_fn(params, x_t, t, cond, train=train, key=key)
    prediction, variance_output = split_output(output, x_t, variance_type)
    return _variational(
        schedule, prediction_type, variance_type, x0, x_t, t, prediction, variance_output
    )


def hybrid_loss(
    apply_fn: ApplyFn,
    params: Any,
    schedule: Schedule,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    *,
    prediction_type: str = "eps",
    norm: str = "l2",
    huber_delta: float = 1.0,
    weights: np.ndarray | None = None,
    variational_scale: float = 0.001,
    cond: Any = None,
    train: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """L_hybrid = prediction loss + variational_scale L_vlb (IDDPM eq. 16).

    For a network with learned variances. L_vlb gets the prediction behind a
    stop_gradient: it moves the variances alone, and the prediction loss the mean alone.

    Args:
      variational_scale: lambda of the paper, for L_vlb in bits per dimension.
      others: as for `prediction_loss` and `variational_loss`.

    Returns:
      float32 [B].
    """
    x_t = q_sample(schedule, x0, t, noise)
    output = apply_fn(params, x_t, t, cond, train=train, key=key)
    prediction, variance_output = split_output(output, x_t, "learned")
    target = prediction_target(schedule, prediction_type, x0, t, noise)
    loss = _of_each_image(distance(prediction - target, norm, huber_delta), t, weights)
    fixed = jax.lax.stop_gradient(prediction)
    return loss + variational_scale * _variational(
        schedule, prediction_type, "learned", x0, x_t, t, fixed, variance_output
    )


def monte_carlo_loss(
    loss_fn: Callable[..., jax.Array],
    schedule: Schedule,
    key: jax.Array,
    x0: jax.Array,
    *,
    draw_timesteps: Callable[..., tuple[jax.Array, jax.Array]] = uniform_timesteps,
    train: bool = True,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """An unbiased estimate of a loss's mean over t and noise.

    Args:
      loss_fn: loss_fn(x0, t, noise, train=..., key=...) -> float32 [B], such as
        `prediction_loss` with its first arguments bound.
      schedule: the noise process.
      key: one typed PRNG key, split here into those of t, noise and dropout.
      x0: [B, ...] clean images.
      draw_timesteps: (key, B, T) -> (t [B], weights [B]), see `timestep_sampling`.
      train: dropout.

    Returns:
      The estimate, a float32 scalar, and (t, the losses [B] without those weights).
    """
    k_t, k_noise, k_dropout = jax.random.split(key, 3)
    t, weights = draw_timesteps(k_t, x0.shape[0], schedule.num_timesteps)
    noise = jax.random.normal(k_noise, x0.shape)
    losses = loss_fn(x0, t, noise, train=train, key=k_dropout)
    return (weights * losses).mean(), (t, losses)


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

    def loss_fn(x0: jax.Array, t: jax.Array, noise: jax.Array, **options: Any):
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
            **options,
        )

    return monte_carlo_loss(loss_fn, schedule, key, x0, train=train)[0]


def _of_each_image(
    distances: jax.Array, t: jax.Array, weights: np.ndarray | None
) -> jax.Array:
    """The mean over each image's elements, times the weight of its timestep; [B]."""
    chex.assert_shape(t, (distances.shape[0],))
    losses = distances.reshape(distances.shape[0], -1).mean(axis=1)
    return losses if weights is None else at(weights, t, losses) * losses


def _variational(
    schedule: Schedule,
    prediction_type: str,
    variance_type: str,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    prediction: jax.Array,
    variance_output: jax.Array | None,
) -> jax.Array:
    predicted_x0 = x0_from_prediction(schedule, prediction_type, x_t, t, prediction)
    terms = variational_terms(
        schedule, variance_type, x0, x_t, t, predicted_x0, variance_output
    )
    return schedule.num_timesteps * terms
