"""Guidance: two predictions of x_0 put together, or one pushed by a function.

Classifier-free guidance (Ho and Salimans 2022) has one network with labels and without:
while it is trained, the label of an example is dropped now and then, so that the network
learns the score of all data as well. At sampling the two predictions of x_0,

    D = D_u + s (D_c - D_u),

are put together: s = 1 is the conditional model, s = 0 the unconditional one. The paper's
own scale is w = s - 1. In autoguidance (Karras et al. 2024) D_u, here called the base, is
that of a worse network. The further forms below change how D is formed of D_c and D_u.

A `Prior` is any function log p(y | x_t) or log p(y | x_0), whose gradient is added to the
score: a classifier, a measurement, a rule.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.model import Model, Prediction
from diffusion_jax.diffusion.noise_level import NoiseLevel

# Names in what a chain is conditioned on: of the class, and of two scales, [B] each.
LABEL, SCALE, PRIOR_SCALE = "label", "guidance", "prior_scale"

# predict(params, x_t, t, cond) -> Prediction, and both(...) -> that and the base.
Predict = Callable[[Any, jax.Array, jax.Array, Any], Prediction]
Both = Callable[[Any, jax.Array, jax.Array, Any], tuple[Prediction, Prediction]]
# log_p(x_t or x_0 [B, ...], level of x_t, cond) -> [B]
LogP = Callable[[jax.Array, NoiseLevel, Any], jax.Array]


def drop_labels(key: jax.Array, batch: Batch, num_classes: int, rate: float) -> Batch:
    """Return the batch with each label dropped with probability `rate` (algorithm 1).

    Args:
      key: of the choice.
      batch: its cond has "label", int32 [B].
      num_classes: the label of an example without one.
      rate: 0 .. 1.
    """
    label = batch.cond[LABEL]
    is_dropped = jax.random.bernoulli(key, rate, label.shape)
    kept = jnp.where(is_dropped, num_classes, label)
    return batch._replace(cond={**batch.cond, LABEL: kept})


class Projection(NamedTuple):
    """Options of adaptive projected guidance (Sadat et al. 2024, algorithm 1).

    Attributes:
      parallel: eta, the share that is kept of the part of D_c - D_u along D_c; 1 is all.
      momentum: beta; D_c - D_u gets this many times what it was in the row before, which
        slows it down where beta is below 0.
      max_norm: r, the largest norm of the sum over all dimensions of an example.
    """

    parallel: float = 1.0
    momentum: float = 0.0
    max_norm: float = float("inf")


@dataclasses.dataclass(frozen=True, eq=False)
class Guidance:
    """The source of the base, and how it is combined with the prediction.

    The scale s of each example is in what the chain is conditioned on, as "guidance" [B].

    Attributes:
      predict: gives the prediction alone, as where a table's row is not guided.
      both: gives the prediction and the base.
      rescale: phi of `rescaled`; 0 is without.
      projection: of `projected`; None is without.
      renoises_with_base: CFG++ (Chung et al. 2024): the noise in x is that which the base
        predicts. The table needs `methods.with_base_noise`.
      is_limited: whether the table has rows that are not guided; see
        `methods.with_interval`.
    """

    predict: Predict
    both: Both
    rescale: float = 0.0
    projection: Projection | None = None
    renoises_with_base: bool = False
    is_limited: bool = False

    @property
    def has_momentum(self) -> bool:
        """Return whether something is carried from row to row."""
        # Unseen: true or false.
        return self.projection is not None and self.projection.momentum != 0

    def combine(
        self, x0: jax.Array, base: jax.Array, scale: jax.Array, momentum: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the guided x_0 [B, ...], and what the next row takes as `momentum`.

        Args:
          x0, base: the predictions D_c and D_u, [B, ...].
          scale: s, [B].
          momentum: of the row before, if `has_momentum`.
        """
        if self.projection is None:
            guided = combined(x0, base, scale)
        else:
            difference = x0 - base
            if momentum is not None:
                difference = difference + self.projection.momentum * momentum
                momentum = difference
            guided = projected(x0, difference, scale, self.projection)
        return (rescaled(guided, x0, self.rescale) if self.rescale else guided), momentum


def combined(x0: jax.Array, base: jax.Array, scale: jax.Array) -> jax.Array:
    """Return D_u + s (D_c - D_u), [B, ...] (Ho and Salimans 2022, eq. 6, as x_0).

    Args:
      x0, base: D_c and D_u, [B, ...].
      scale: s, [B].
    """
    return base + _wide(scale, x0) * (x0 - base)


def projected(
    x0: jax.Array, difference: jax.Array, scale: jax.Array, options: Projection
) -> jax.Array:
    """Return D_c + (s - 1) (difference, less along D_c), [B, ...] (APG, algorithm 1).

    The part along D_c makes colours too strong. With the default options it is `combined`.

    Args:
      x0: D_c, [B, ...].
      difference: D_c - D_u with the momentum, [B, ...].
      scale: s, [B].
      options: eta and the largest norm.
    """
    if options.max_norm < float("inf"):
        square = _sum(jnp.square(difference))
        is_long = square > options.max_norm**2
        # Unseen (1.0): it stands where nothing is read, with a gradient that is finite.
        norm = jnp.sqrt(jnp.where(is_long, square, 1.0))
        difference = jnp.where(is_long, options.max_norm / norm, 1.0) * difference
    length = _sum(jnp.square(x0))
    # Unseen (1.0): what it divides is 0.
    along = _sum(difference * x0) / jnp.where(length > 0, length, 1.0) * x0
    kept = (difference - along) + options.parallel * along
    return x0 + (_wide(scale, x0) - 1.0) * kept


def rescaled(guided: jax.Array, x0: jax.Array, share: float) -> jax.Array:
    """Return the guided x_0 with the deviation of D_c (Lin et al. 2023, eqs. 15, 16).

        phi D std(D_c) / std(D) + (1 - phi) D

    with the standard deviations over all dimensions of each example. The paper's networks
    predict v; what they predict is x_0 here.

    Args:
      guided: D, [B, ...].
      x0: D_c, [B, ...].
      share: phi, 0 .. 1.
    """
    axes = tuple(range(1, x0.ndim))
    std = jnp.std(guided, axis=axes, keepdims=True)
    wanted = jnp.std(x0, axis=axes, keepdims=True)
    # Unseen (1.0): of the first one; it stands where nothing is read.
    factor = jnp.where(std > 0, wanted / jnp.where(std > 0, std, 1.0), 1.0)
    return share * factor * guided + (1.0 - share) * guided


def by_label(model: Model, num_classes: int, **options: Any) -> Guidance:
    """Return classifier-free guidance: both predictions by one call of the network with 2B.

    A learned variance is that of the conditional prediction.

    Args:
      model: conditioned on "label", int32 [B].
      num_classes: the label of an example without one.
      options: of `Guidance`.
    """

    def both(
        params: Any, x_t: jax.Array, t: jax.Array, cond: Mapping[str, Any]
    ) -> tuple[Prediction, Prediction]:
        none = jnp.full_like(cond[LABEL], num_classes)
        twice = {name: jnp.concatenate([rows, rows]) for name, rows in cond.items()}
        twice[LABEL] = jnp.concatenate([cond[LABEL], none])
        x_twice, t_twice = jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t])
        said = model.predict(params, x_twice, t_twice, twice)

        def half(rows: slice) -> Prediction:
            learned = said.variance_output
            return Prediction(
                model,
                x_t,
                t,
                said.output[rows],
                None if learned is None else learned[rows],
            )

        return half(slice(0, len(x_t))), half(slice(len(x_t), None))

    return Guidance(model.predict, both, **options)


def by_model(model: Model, guide: Model, **options: Any) -> Guidance:
    """Return autoguidance (Karras et al. 2024, eq. 4): the base is another model's.

    Args:
      model: the better one.
      guide: a smaller or less trained one, of the same data and the same process.
      options: of `Guidance`.

    Returns:
      Guidance whose params are a pair, those of the model and those of the guide.
    """

    def predict(params: Any, x_t: jax.Array, t: jax.Array, cond: Any) -> Prediction:
        return model.predict(params[0], x_t, t, cond)

    def both(
        params: Any, x_t: jax.Array, t: jax.Array, cond: Any
    ) -> tuple[Prediction, Prediction]:
        base = guide.predict(params[1], x_t, t, cond)
        return predict(params, x_t, t, cond), base

    return Guidance(predict, both, **options)


class Prior(NamedTuple):
    """A function whose gradient joins the score, scaled for each example.

    The scale is in what the chain is conditioned on, as "prior_scale" [B].

    Attributes:
      log_p: log p(y | x_t), or log p(y | x_0), up to a constant: a function of [B, ...],
        the noise level of x_t (scalars), and what the chain is conditioned on; [B].
      is_of_x0: whether it takes the predicted x_0, through which its gradient then flows,
        and not x_t.
    """

    log_p: LogP
    is_of_x0: bool


def shift_of_x0(gradient: jax.Array, scale: jax.Array, level: NoiseLevel) -> jax.Array:
    """Return what the gradient of a Prior adds to the predicted x_0, [B, ...].

    The score of q(x_t) p(y | x_t)^s is score + s grad log p (Dhariwal and Nichol 2021,
    eq. 14, after Song et al. 2021, eq. 14), and x_0 = (x_t + sigma^2 score) / alpha.

    Args:
      gradient: of log p, with respect to x_t, [B, ...].
      scale: s, [B].
      level: of x_t, scalars; its alpha must not be 0.
    """
    return _wide(scale, gradient) * (level.sigma_squared / level.alpha) * gradient


def measured(
    measure: Callable[[jax.Array], jax.Array], y: Any, variance: float, spread: float
) -> Prior:
    """Return a Prior for a measurement y = A x_0 + noise: reconstruction guidance.

    log p = -|y - A x_0|^2 / (2 (variance + r^2)), r^2 = spread sigma^2 / (spread alpha^2
    + sigma^2), the variance of x_0 given x_t if all its elements have the variance
    `spread` (Song et al. 2023, "Pseudoinverse-guided diffusion", section 3.2). Where
    `spread` is infinite that is sigma^2 / alpha^2: Ho et al. 2022, "Video diffusion
    models", eq. 8, with w_r = 1.

    Args:
      measure: A, from [B, ...] to [B, ...]; linear for Gaussian data to be exact.
      y: broadcasts to what A returns.
      variance: of the noise of the measurement, at least 0.
      spread: variance of an element of the data, above 0.
    """

    def log_p(x0: jax.Array, level: NoiseLevel, cond: Any) -> jax.Array:
        del cond
        error = jnp.square(jnp.asarray(y, x0.dtype) - measure(x0))
        noise = level.sigma_squared
        left = noise / (level.alpha_squared + noise / spread)
        return -error.reshape(len(x0), -1).sum(axis=1) / (2.0 * (variance + left))

    return Prior(log_p, is_of_x0=True)


def _wide(number: jax.Array, x: jax.Array) -> jax.Array:
    """A number [B], shaped to broadcast over x, in its dtype."""
    return jnp.asarray(number, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


def _sum(x: jax.Array) -> jax.Array:
    """The sum over all dimensions of each example, which broadcasts against x."""
    return x.sum(axis=tuple(range(1, x.ndim)), keepdims=True)
