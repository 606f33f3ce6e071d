"""One train step, and the loop of several that is compiled as one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.config import Config
from diffusion_jax.diffusion import timestep_sampling
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.losses import monte_carlo_draw
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.experiment.build import LossFn
from diffusion_jax.runs.ema import ema_update, update_shares
from diffusion_jax.training.optimizer import global_norm, packed
from diffusion_jax.training.train_state import Tally, TrainState


class Metrics(NamedTuple):
    """Metrics of one step, or of each step of a dispatch, [K]; float32."""

    loss: jax.Array
    grad_norm: jax.Array


class Placement(NamedTuple):
    """How the params and their gradient lie on the devices within a train step.

    Attributes:
      gathered: gathered(params) -> the params whole on every device.
      as_params: as_params(gradient) -> the gradient as the params lie between the steps.
      norm: norm(gradient that lies so) -> its global norm.
    """

    gathered: Callable[[Any], Any] = lambda params: params
    as_params: Callable[[Any], Any] = lambda gradient: gradient
    norm: Callable[[Any], jax.Array] = optax.tree.norm


AS_THEY_LIE = Placement()
JOINED = Placement(as_params=packed, norm=global_norm)  # The small arrays, in a vector.


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
    placement: Placement = AS_THEY_LIE,
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
      placement: on the devices of the params, if they are split over some.
    """

    num_parts, tx = config.optimizer.accumulate, optax.with_extra_args_support(tx)

    def mean_loss(params: Any, part: tuple[Batch, Draw, jax.Array], key: jax.Array):
        batch, drawn, weights = part
        losses = loss_fn(params, batch, drawn, key=key)
        return (weights * losses).mean(), losses

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        k_loss, k_data = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = training_batch(k_data, batch)
        draw = _timestep_sampler(config, state)

        drawn, weights, key = monte_carlo_draw(process, k_loss, batch.x, draw)
        # Whole for the network: XLA would split each convolution as its kernel is split.
        (loss, losses), grads = value_and_grad_in_parts(
            mean_loss,
            placement.gathered(state.params),
            (batch, drawn, weights),
            key,
            num_parts,
        )
        grads = placement.as_params(grads)
        metrics = Metrics(loss, placement.norm(grads))
        good = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        history = state.loss_history
        if isinstance(history, timestep_sampling.LossHistory):
            history = timestep_sampling.record_losses(history, drawn.t, losses)
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, norm=metrics.grad_norm
        )
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


def value_and_grad_in_parts(
    mean_loss: Callable[..., tuple[jax.Array, jax.Array]],
    params: Any,
    batch: Any,
    key: jax.Array,
    num_parts: int,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Return ((loss, losses [B]), gradient) of a batch, by parts of it one after another.

    The mean over the parts is that over the batch, to rounding, with the activations of
    one part in memory at a time. Part i has the examples i, i + num_parts, ..., so that
    each device keeps its own examples.

    Args:
      mean_loss: mean_loss(params, part, key) -> (mean, values of the examples).
      params: what the gradient is taken by.
      batch: tree of arrays [B, ...]; num_parts divides B.
      key: for the dropout, whose masks differ with the number of parts.
      num_parts: 1 takes the whole batch at once.
    """
    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    if num_parts == 1:
        return value_and_grad(params, batch, key)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part_and_key: tuple[Any, jax.Array]):
        part, key = part_and_key
        (loss, losses), grads = value_and_grad(params, part, key)
        return jax.tree.map(jnp.add, total, (loss, grads)), losses

    parts = jax.tree.map(split, batch), jax.random.split(key, num_parts)
    zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    total, losses = jax.lax.scan(add, zeros, parts)
    loss, grads = jax.tree.map(lambda x: x / num_parts, total)
    return (loss, losses.swapaxes(0, 1).reshape(-1)), grads


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
