"""One train step, and the loop of several that is compiled as one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.config import Config
from diffusion_jax.diffusion import timestep_sampling
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.losses import monte_carlo_loss
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.experiment.build import LossFn
from diffusion_jax.runs.ema import ema_update, update_shares
from diffusion_jax.training.train_state import Tally, TrainState


class Metrics(NamedTuple):
    """Metrics of one step, or of each step of a dispatch, [K]; float32."""

    loss: jax.Array
    grad_norm: jax.Array


class Dispatch(NamedTuple):
    """Metrics of the steps of a dispatch, and the tally after the last of them."""

    metrics: Metrics
    tally: Tally


def make_train_step(
    config: Config,
    loss_fn: LossFn,
    process: Schedule,
    tx: optax.GradientTransformation,
    training_batch: Callable[[jax.Array, Batch], Batch],
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """train_step(state, batch of B examples) -> (state, Metrics of scalars).

    If the loss or a gradient is not finite, the weights and the optimiser stay as they
    are, and the step counts as skipped; the next step has its own batch, t and noise.

    Args:
      config: for how timesteps are drawn, and the EMA.
      loss_fn: of `experiment.build.make_loss`.
      process: the noise process.
      tx: the optimiser.
      training_batch: (key, batch) -> the batch with x as the network sees it; the key is
        for augmentation.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        k_loss, k_data = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = training_batch(k_data, batch)
        draw = _timestep_sampler(config, state)

        def mean_loss(params: Any):
            per_example = functools.partial(loss_fn, params)
            return monte_carlo_loss(
                per_example, process, k_loss, batch, draw_timesteps=draw
            )

        (loss, (t, losses)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params
        )
        metrics = Metrics(loss, optax.tree.norm(grads))
        good = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        history = state.loss_history
        if isinstance(history, timestep_sampling.LossHistory):
            history = timestep_sampling.record_losses(history, t, losses)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (optax.apply_updates(state.params, updates), opt_state),
            (state.params, state.opt_state),
        )
        shares = update_shares(config.ema, state.step)
        emas = {name: ema_update(e, params, shares[name]) for name, e in state.emas.items()}
        new_line = state.step % config.training.log_every == 0
        state = TrainState(
            step=state.step + 1,
            params=params,
            emas=emas,
            opt_state=opt_state,
            loss_history=history,
            tally=_tallied(state.tally, metrics, good, new_line),
            key=state.key,
        )
        return state, metrics

    return train_step


def _tallied(tally: Tally, metrics: Metrics, good: jax.Array, new_line: jax.Array) -> Tally:
    def added(total: jax.Array, value: jax.Array | float) -> jax.Array:
        return jnp.where(new_line, 0, total) + jnp.where(good, value, 0)

    return Tally(
        steps=added(tally.steps, 1.0),
        loss=added(tally.loss, metrics.loss),
        grad_norm=added(tally.grad_norm, metrics.grad_norm),
        skipped=tally.skipped + ~good,
        skipped_in_a_row=jnp.where(good, 0, tally.skipped_in_a_row + 1),
    )


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
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Dispatch]]:
    """train_steps(state, batches [K, B, ...], count) runs the first `count` of them.

    `count` is data, so that every number of steps up to K is the same compiled program;
    entries of the metrics from `count` on are 0.
    """

    def train_steps(
        state: TrainState, batches: Batch, count: jax.Array
    ) -> tuple[TrainState, Dispatch]:
        def body(i: jax.Array, carry: tuple[TrainState, Metrics]):
            state, all_metrics = carry
            batch = jax.tree.map(lambda rows: rows[i], batches)
            state, metrics = train_step(state, batch)
            return state, jax.tree.map(lambda a, m: a.at[i].set(m), all_metrics, metrics)

        zeros = Metrics(*[jnp.zeros(len(batches.x)) for _ in Metrics._fields])
        state, metrics = jax.lax.fori_loop(0, count, body, (state, zeros))
        return state, Dispatch(metrics, state.tally)

    return train_steps
