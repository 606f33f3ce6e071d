"""The state of a training run, and the moving average of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.config import Config, EMAConfig
from diffusion_jax.timestep_sampling import LossHistory, empty_history


class TrainState(NamedTuple):
    """All that a run needs to go on.

    Attributes:
      step: int32, train steps done.
      params: float32 tree, the weights that the optimiser moves.
      ema_params: their moving average, which samples are drawn with.
      opt_state: the optimiser's.
      loss_history: what timesteps are drawn by, if they are drawn by their losses; else
        ().
      key: typed PRNG key of the run; step n uses fold_in(key, n). Never changes.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    loss_history: LossHistory | tuple[()]
    key: jax.Array


def init_state(
    init_fn: Callable[[jax.Array], Any], tx: optax.GradientTransformation, config: Config
) -> TrainState:
    """A state at step 0, its average equal to its weights."""
    by_loss = config.loss.timesteps == "loss_second_moment"
    # Sampling folds in the index of a sample, below 2**31; training stays clear of that.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1)
    k_init, k_run = jax.random.split(key)
    params = init_fn(k_init)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
        loss_history=empty_history(config.process.num_timesteps) if by_loss else (),
        key=k_run,
    )


def ema_decay(config: EMAConfig, step: jax.Array) -> jax.Array:
    """Weight of the old average at this step (0, 1, ...), with the warm-up if wanted."""
    step = jnp.asarray(step, jnp.float32)
    if not config.warmup:
        return jnp.full_like(step, config.decay)
    return jnp.minimum(config.decay, (1 + step) / (10 + step))


def ema_update(ema: Any, params: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * params, as a step towards params: equal stay equal."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
