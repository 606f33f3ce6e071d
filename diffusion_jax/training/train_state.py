"""The state of a training run: all that it needs to go on with the same bits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.config import Config
from diffusion_jax.diffusion.timestep_sampling import LossHistory, empty_history
from diffusion_jax.runs.ema import average_names
from diffusion_jax.runtime import devices


class Tally(NamedTuple):
    """Counts from step to step; scalars.

    Attributes:
      steps: float32, steps since the last log line whose update was made.
      loss, grad_norm: float32, sums over those steps.
      skipped: int32, steps of the whole run whose update was skipped, because its loss
        or gradient was not finite.
      skipped_in_a_row: int32, how many of the last steps were skipped without a break.
    """

    steps: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class TrainState(NamedTuple):
    """All that a run needs to go on.

    Attributes:
      step: int32, train steps done.
      params: float32 tree, the weights that the optimiser moves.
      emas: their moving averages by name; see `ema.average_names`.
      opt_state: the state of the optimiser.
      loss_history: what timesteps are drawn by, if they are drawn by their losses; else
        ().
      tally: what the next log line will say.
      key: typed PRNG key of the run; step n uses fold_in(key, n). Never changes.
    """

    step: jax.Array
    params: Any
    emas: dict[str, Any]
    opt_state: Any
    loss_history: LossHistory | tuple[()]
    tally: Tally
    key: jax.Array


def init_state(
    init_fn: Callable[[jax.Array], Any], tx: optax.GradientTransformation, config: Config
) -> TrainState:
    """A state at step 0, its averages equal to its weights."""
    by_loss = config.loss.timesteps == "loss_second_moment"
    # Sampling folds in the index of a sample, below 2**31; training stays clear of that.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
    k_init, k_run = jax.random.split(key)
    params = init_fn(k_init)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        emas=equal_averages(config, params),
        opt_state=tx.init(params),
        loss_history=empty_history(config.process.num_timesteps) if by_loss else (),
        tally=Tally(*[jnp.zeros(())] * 3, *[jnp.zeros((), jnp.int32)] * 2),
        key=k_run,
    )


def shardings(mesh: jax.sharding.Mesh, shapes: TrainState) -> TrainState:
    """Return how a state lies on a mesh: what has the size of the params is split."""
    whole = jax.tree.map(lambda _: devices.replicated(mesh), shapes)
    return whole._replace(
        params=devices.split_largest(mesh, shapes.params),
        emas=devices.split_largest(mesh, shapes.emas),
        opt_state=devices.split_largest(mesh, shapes.opt_state),
    )


def equal_averages(config: Config, params: Any) -> dict[str, Any]:
    """Every average of a run as a copy of these weights: each is donated on its own."""
    return {name: jax.tree.map(jnp.copy, params) for name in average_names(config.ema)}
