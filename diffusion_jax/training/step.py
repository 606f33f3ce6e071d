"""One train step, and the loop of several that is compiled as one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax import timestep_sampling
from diffusion_jax.config import Config
from diffusion_jax.experiment import LossFn
from diffusion_jax.losses import monte_carlo_loss
from diffusion_jax.schedules import Schedule
from diffusion_jax.training.state import TrainState, ema_decay, ema_update


class Metrics(NamedTuple):
    """Of each step of a dispatch: float32 [K]."""

    loss: jax.Array
    grad_norm: jax.Array


def make_train_step(
    config: Config,
    loss_fn: LossFn,
    schedule: Schedule,
    tx: optax.GradientTransformation,
    to_x0: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """train_step(state, examples [B, *shape]) -> (state, Metrics of scalars).

    Args:
      config: for how timesteps are drawn, and the EMA.
      loss_fn: of `experiment.make_loss`.
      schedule: the noise process.
      tx: the optimiser.
      to_x0: (key, examples) -> float32 [B, *shape]; the key is for augmentation.
    """

    def train_step(state: TrainState, examples: jax.Array) -> tuple[TrainState, Metrics]:
        k_loss, k_data = jax.random.split(jax.random.fold_in(state.key, state.step))
        x0 = to_x0(k_data, examples)
        draw = _timestep_sampler(config, state)

        def mean_loss(params: Any):
            per_example = functools.partial(loss_fn, params)
            return monte_carlo_loss(per_example, schedule, k_loss, x0, draw_timesteps=draw)

        (loss, (t, losses)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params
        )
        history = state.loss_history
        if isinstance(history, timestep_sampling.LossHistory):
            history = timestep_sampling.record_losses(history, t, losses)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config.ema, state.step)
        state = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema_update(state.ema_params, params, decay),
            opt_state=opt_state,
            loss_history=history,
            key=state.key,
        )
        return state, Metrics(loss, optax.tree.norm(grads))

    return train_step


def _timestep_sampler(
    config: Config, state: TrainState
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    history = state.loss_history
    if isinstance(history, timestep_sampling.LossHistory):
        return lambda key, num, _: timestep_sampling.importance_timesteps(key, num, history)
    if config.loss.timesteps == "stratified":
        return timestep_sampling.stratified_timesteps
    return timestep_sampling.uniform_timesteps


def make_train_steps(
    train_step: Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """train_steps(state, batches [K, B, *shape], count) runs the first `count` of them.

    `count` is data, so that every number of steps up to K is the same compiled program;
    entries of the metrics from `count` on are 0.
    """

    def train_steps(
        state: TrainState, batches: jax.Array, count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def body(i: jax.Array, carry: tuple[TrainState, Metrics]):
            state, all_metrics = carry
            state, metrics = train_step(state, batches[i])
            return state, jax.tree.map(lambda a, m: a.at[i].set(m), all_metrics, metrics)

        zeros = Metrics(*[jnp.zeros(batches.shape[0]) for _ in Metrics._fields])
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    return train_steps


def make_held_out_loss(
    loss_fn: LossFn, schedule: Schedule
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """held_out_loss(params, x0 [B, *shape], indices [B]) -> float32 [B].

    Example i always gets the same t and noise, so that the losses of two checkpoints
    differ by their weights alone. t runs evenly through 0 .. T-1 with i (by the golden
    ratio, whose multiples stay even for any number of examples).
    """

    def held_out_loss(params: Any, x0: jax.Array, indices: jax.Array) -> jax.Array:
        golden = (5**0.5 - 1) / 2
        position = (indices.astype(jnp.float32) + 0.5) * golden % 1.0
        t = jnp.floor(position * schedule.num_timesteps).astype(jnp.int32)
        t = jnp.minimum(t, schedule.num_timesteps - 1)
        key = jax.random.fold_in(jax.random.key(0), 2**32 - 2)  # As in `init_state`.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(keys)
        return loss_fn(params, x0, t, noise)

    return held_out_loss
