"""Training losses: draw t and noise, ask the network, compare with the target.

Every loss of this file is given for each example of a batch, at given t and noise;
`monte_carlo_loss` draws those and takes the mean.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.forward_process import at, q_sample
from diffusion_jax.diffusion.model import Model, Prediction
from diffusion_jax.diffusion.parameterization import score_from_eps
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.diffusion.timestep_sampling import uniform_timesteps
from diffusion_jax.diffusion.variational_bound import variational_terms

NORMS = ("l2", "l1", "huber")


class Distance(NamedTuple):
    """Distance of a prediction from its target.

    Attributes:
      norm: "l2", "l1" or "huber"; see `elementwise`.
      huber_delta: where "huber" turns from squares to absolute values.
      weights: the loss weight of each t, float64 [T], made by
        `loss_weighting.loss_weights` for what the model predicts; None is 1.
    """

    norm: str = "l2"
    huber_delta: float = 1.0
    weights: np.ndarray | None = None

    def elementwise(self, error: jax.Array) -> jax.Array:
        """Return the loss of each element of `error`, without its weight.

        "l2": e^2. "l1": |e|. "huber": e^2 / 2 up to |e| = delta, and from there on
        delta (|e| - delta / 2), the tangent (Huber 1964).

        Raises:
          ValueError: for an unknown norm.
        """
        if self.norm == "l2":
            return jnp.square(error)
        if self.norm == "l1":
            return jnp.abs(error)
        if self.norm == "huber":
            inside = jnp.minimum(jnp.abs(error), self.huber_delta)
            return inside * (jnp.abs(error) - inside / 2)
        raise ValueError(
            f"loss norm {self.norm!r} is unknown; it can be {', '.join(NORMS)}"
        )

    def of_each_example(
        self, output: jax.Array, target: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Return the mean over the elements of each example, times the weight of t; [B]."""
        chex.assert_equal_shape([output, target])
        chex.assert_shape(t, (output.shape[0],))
        losses = self.elementwise(output - target).reshape(output.shape[0], -1).mean(axis=1)
        return losses if self.weights is None else at(self.weights, t, losses) * losses


SQUARED_ERROR = Distance()


def prediction_loss(
    model: Model,
    params: Any,
    batch: Batch,
    draw: Draw,
    *,
    distance: Distance = SQUARED_ERROR,
    key: jax.Array | None = None,
) -> jax.Array:
    """Distance between prediction and target, for each example, at given t and noise.

    For a model of eps, with the norm "l2", its mean over t and noise is L_simple
    (DDPM eq. 14), averaged, not summed, over pixels and channels.

    Args:
      model, params: the network.
      batch: clean examples [B, ...], images in [-1, 1].
      draw: of t and noise.
      distance: the norm, and the weight of each timestep.
      key: PRNG key of the dropout, which is off without one.

    Returns:
      float32 [B].
    """
    prediction = _predict(model, params, batch, draw, key)
    target = model.target(batch.x, draw.t, draw.noise)
    return distance.of_each_example(prediction.output, target, draw.t)


def score_matching_loss(
    model: Model,
    params: Any,
    batch: Batch,
    draw: Draw,
    *,
    distance: Distance = SQUARED_ERROR,
    key: jax.Array | None = None,
) -> jax.Array:
    """Denoising score matching (Vincent 2011), of any model: its score is compared.

    |score - grad log q(x_t | x_0)|^2, the mean over the elements of each example.
    Weighted by 1 - alphas_cumprod it is the eps loss of the same model (Song et al. 2021,
    eq. 7).

    Args:
      as for `prediction_loss`; the weights are those of the score's squared error.

    Returns:
      float32 [B].
    """
    prediction = _predict(model, params, batch, draw, key)
    target = score_from_eps(model.process, prediction.x_t, draw.t, draw.noise)
    return distance.of_each_example(prediction.score, target, draw.t)


def variational_loss(
    model: Model,
    params: Any,
    batch: Batch,
    draw: Draw,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """L_vlb: T times L_{t-1} (L_0 at t = 0), in bits per dimension (IDDPM eqs. 4-7).

    Its mean over uniform t is the variational bound except L_T, which has no parameter.

    Args:
      as for `prediction_loss`; the batch is of 8-bit images as float32 k / 127.5 - 1.

    Returns:
      float32 [B].
    """
    prediction = _predict(model, params, batch, draw, key)
    return model.process.num_timesteps * variational_terms(prediction, batch.x)


def hybrid_loss(
    model: Model,
    params: Any,
    batch: Batch,
    draw: Draw,
    *,
    distance: Distance = SQUARED_ERROR,
    variational_scale: float = 0.001,
    key: jax.Array | None = None,
) -> jax.Array:
    """L_hybrid = prediction loss + variational_scale L_vlb (IDDPM eq. 16).

    The model has a learned variance. L_vlb gets the prediction behind a stop_gradient:
    it moves the variances alone, and the prediction loss the mean alone.

    Args:
      variational_scale: lambda of the paper, for L_vlb in bits per dimension.
      others: as for `prediction_loss` and `variational_loss`.

    Returns:
      float32 [B].

    Raises:
      ValueError: for a model without a learned variance.
    """
    if model.variance != "learned":
        raise ValueError(
            f"the hybrid loss needs variance 'learned'; got {model.variance!r}"
        )
    prediction = _predict(model, params, batch, draw, key)
    target = model.target(batch.x, draw.t, draw.noise)
    loss = distance.of_each_example(prediction.output, target, draw.t)
    terms = variational_terms(prediction.with_fixed_mean(), batch.x)
    return loss + variational_scale * (model.process.num_timesteps * terms)


def monte_carlo_loss(
    loss_fn: Callable[..., jax.Array],
    process: Schedule,
    key: jax.Array,
    batch: Batch,
    *,
    draw_timesteps: Callable[..., tuple[jax.Array, jax.Array]] = uniform_timesteps,
    train: bool = True,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """An unbiased estimate of a loss's mean over t and noise.

    Args:
      loss_fn: loss_fn(batch, draw, key=) -> float32 [B], such as `prediction_loss` with
        its first two arguments bound.
      process: the noise process.
      key: one typed PRNG key, split here into those of t, noise and dropout.
      batch: clean examples, [B, ...].
      draw_timesteps: (key, B, T) -> (t [B], weights [B]), see `timestep_sampling`.
      train: dropout.

    Returns:
      The estimate, a float32 scalar, and (t, the losses [B] without those weights).
    """
    draw, weights, k_dropout = monte_carlo_draw(process, key, batch.x, draw_timesteps)
    losses = loss_fn(batch, draw, key=k_dropout if train else None)
    return (weights * losses).mean(), (draw.t, losses)


def monte_carlo_draw(
    process: Schedule,
    key: jax.Array,
    x0: jax.Array,
    draw_timesteps: Callable[..., tuple[jax.Array, jax.Array]] = uniform_timesteps,
) -> tuple[Draw, jax.Array, jax.Array]:
    """Return what `monte_carlo_loss` draws for x0 [B, ...]: a Draw, weights [B], a key.

    The key is that of the dropout; the other arguments are those of `monte_carlo_loss`.
    """
    k_t, k_noise, k_dropout = jax.random.split(key, 3)
    t, weights = draw_timesteps(k_t, x0.shape[0], process.num_timesteps)
    return Draw(t, jax.random.normal(k_noise, x0.shape)), weights, k_dropout


def simple_loss(
    model: Model,
    params: Any,
    key: jax.Array,
    batch: Batch,
    *,
    norm: str = "l2",
    train: bool = True,
) -> jax.Array:
    """L_simple (DDPM eq. 14): the mean loss at t uniform over the papers' 1 .. T.

    Args:
      model, params: the network.
      key: one typed PRNG key, split here into those of t, noise and dropout.
      batch: clean examples [B, ...], images in [-1, 1].
      norm: of `Distance`.
      train: dropout.

    Returns:
      float32 scalar.
    """

    def loss_fn(batch: Batch, draw: Draw, *, key: jax.Array | None) -> jax.Array:
        distance = Distance(norm)
        return prediction_loss(model, params, batch, draw, distance=distance, key=key)

    return monte_carlo_loss(loss_fn, model.process, key, batch, train=train)[0]


def _predict(
    model: Model, params: Any, batch: Batch, draw: Draw, key: jax.Array | None
) -> Prediction:
    """Return the network's prediction at x_t of this draw."""
    x_t = q_sample(model.process, batch.x, draw.t, draw.noise)
    return model.predict(params, x_t, draw.t, batch.cond, train=key is not None, key=key)
