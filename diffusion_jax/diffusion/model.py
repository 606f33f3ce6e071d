"""A model: a network, and how its output is read.

Everything that asks a network (losses, the bound, the flow, samplers) takes a `Model`, and
`Model.predict` is the only place where a network's output is read.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.forward_process import at, q_posterior
from diffusion_jax.diffusion.parameterization import (
    check_prediction,
    check_variance,
    converted,
    fixed_log_variance,
    log_variance_bounds,
    score_from_eps,
)
from diffusion_jax.diffusion.schedules import Schedule

# apply_fn(params, x_t, t, cond, *, train, key) -> [B, ...]: see `Model`.
ApplyFn = Callable[..., jax.Array]


def _no_network(*arguments: Any, **options: Any) -> jax.Array:
    raise TypeError("this model has no network; give Model(..., apply_fn=)")


@dataclasses.dataclass(frozen=True, eq=False)  # So that it can be a static argument.
class Model:
    """A network, the noise process that it denoises, and what it predicts.

    Attributes:
      process: the noise process.
      prediction: what the network predicts: "eps", "x0", "v" or "score".
      variance: of the reverse step: "fixed_small", "fixed_large", or "learned", where the
        network has twice the channels of x_t: the prediction first, then where between
        its bounds the log variance lies.
      apply_fn: the network, apply_fn(params, x_t, t, cond, *, train, key) -> [B, ...],
        with t [B]. A model without one makes samplers' tables.

    Raises:
      ValueError: for an unknown prediction or variance.
    """

    process: Schedule
    prediction: str = "eps"
    variance: str = "fixed_small"
    apply_fn: ApplyFn = _no_network

    def __post_init__(self) -> None:
        check_prediction(self.prediction)
        check_variance(self.variance)

    def predict(
        self,
        params: Any,
        x_t: jax.Array,
        t: jax.Array,
        cond: Any = None,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> "Prediction":
        """Ask the network.

        Args:
          params: of the network.
          x_t: [B, ...] noised examples.
          t: [B], int32; or real-valued, for which only `Prediction.output` is defined.
          cond: what the network is conditioned on.
          train: True switches dropout on; needs `key`.
          key: PRNG key of the dropout.

        Raises:
          ValueError: if the output has another shape than the variance calls for.
        """
        output = self.apply_fn(params, x_t, t, cond, train=train, key=key)
        learned = self.variance == "learned"
        channels = x_t.shape[-1] * (2 if learned else 1)
        if output.shape != (*x_t.shape[:-1], channels):
            raise ValueError(
                f"the network's output has the shape {output.shape}; with variance "
                f"{self.variance!r} and x_t of shape {x_t.shape} it must have "
                f"{channels} channels"
            )
        if not learned:
            return Prediction(self, x_t, t, output)
        half = x_t.shape[-1]
        return Prediction(self, x_t, t, output[..., :half], output[..., half:])

    def target(self, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
        """Return what the network should predict at q_sample(process, x0, t, noise).

        Returns:
          [B, ...]: the noise, x0, v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) x0, or
          the score -noise / sqrt(1 - alpha-bar).
        """
        process = self.process
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        if self.prediction == "score":
            return score_from_eps(process, noise, t, noise)
        alpha = at(process.sqrt_alphas_cumprod, t, x0)
        sigma = at(process.sqrt_one_minus_alphas_cumprod, t, x0)
        return alpha * noise - sigma * x0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A network's prediction at x_t, in any of its four forms; [B, ...] each.

    Attributes:
      model: the one that was asked.
      x_t, t: the noised examples and their timesteps.
      output: the prediction as the network gives it, of the kind `model.prediction`.
      variance_output: of a learned variance, -1 for its lower and 1 for its upper bound;
        else None.
    """

    model: Model
    x_t: jax.Array
    t: jax.Array
    output: jax.Array
    variance_output: jax.Array | None = None

    @property
    def x0(self) -> jax.Array:
        """The clean example."""
        return self._as("x0")

    @property
    def eps(self) -> jax.Array:
        """The noise in x_t."""
        return self._as("eps")

    @property
    def v(self) -> jax.Array:
        """The velocity sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x_0."""
        return self._as("v")

    @property
    def score(self) -> jax.Array:
        """The gradient of log q(x_t)."""
        return self._as("score")

    @property
    def log_variance(self) -> jax.Array:
        """The log variance of the reverse step, which broadcasts against x_t.

        If it is learned, w log beta + (1 - w) log beta-tilde, w = (variance_output + 1) / 2
        (IDDPM eq. 15); else that of `parameterization.fixed_log_variance`.
        """
        process = self.model.process
        if self.variance_output is None:
            if self.model.variance == "learned":
                raise ValueError(
                    "variance 'learned' needs the variance output of the network"
                )
            fixed = fixed_log_variance(process, self.model.variance)
            return at(fixed, self.t, self.x_t)
        low, high = log_variance_bounds(process)
        share = (self.variance_output + 1) / 2
        upper, lower = at(high, self.t, self.x_t), at(low, self.t, self.x_t)
        return share * upper + (1 - share) * lower

    def with_fixed_mean(self) -> "Prediction":
        """Return this prediction with a mean through which no gradient flows."""
        return dataclasses.replace(self, output=jax.lax.stop_gradient(self.output))

    def clipped_x0(self, clip: bool = True) -> jax.Array:
        """Return x0, clipped to [-1, 1] if wanted."""
        return jnp.clip(self.x0, -1, 1) if clip else self.x0

    def _as(self, wanted: str) -> jax.Array:
        return converted(
            self.model.process, self.model.prediction, wanted, self.x_t, self.t, self.output
        )


def p_mean_log_variance(
    prediction: Prediction, x0: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return p(x_{t-1} | x_t), the Gaussian of the reverse step, at a predicted x_0.

    The mean is that of q(x_{t-1} | x_t, x_0) (DDPM eq. 7).

    Args:
      prediction: of the network at x_t.
      x0: [B, ...] instead of the predicted x_0, such as a clipped one.

    Returns:
      mean [B, ...], and the log variance, which broadcasts against it.
    """
    x0 = prediction.x0 if x0 is None else x0
    process, x_t, t = prediction.model.process, prediction.x_t, prediction.t
    return q_posterior(process, x0, x_t, t)[0], prediction.log_variance
