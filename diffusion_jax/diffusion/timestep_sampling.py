"""Timesteps that a batch trains on: uniform, stratified, or where the loss is large.

Each function returns (t, weights): the mean over the batch of weights * loss(t) is an
unbiased estimate of the mean loss over all T timesteps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TIMESTEP_SAMPLERS = ("uniform", "stratified", "loss_second_moment")
MAX_STRATA = 2**30 - 1  # Batch size times T of a stratified draw, in int32.
_HISTORY = 10  # Losses kept for each timestep.
_UNIFORM_SHARE = 0.001  # Share of draws that ignore the losses (IDDPM's code).


class LossHistory(NamedTuple):
    """The last losses of every timestep, a part of the train state.

    Attributes:
      losses: float32 [T, 10], in no particular order.
      counts: int32 [T], how many losses of each timestep were ever recorded.
    """

    losses: jax.Array
    counts: jax.Array


def uniform_timesteps(
    key: jax.Array, num: int, num_timesteps: int
) -> tuple[jax.Array, jax.Array]:
    """`num` independent draws from 0 .. T-1; int32 [num], float32 [num] of ones."""
    # Unseen (0): randint makes it an integer.
    return jax.random.randint(key, (num,), 0, num_timesteps), jnp.ones(num)


def stratified_timesteps(
    key: jax.Array, num: int, num_timesteps: int
) -> tuple[jax.Array, jax.Array]:
    """One draw spread evenly over the batch (Kingma et al. 2021, appendix I).

    Each t alone is uniform over 0 .. T-1, exactly: the arithmetic is in integers. The
    timesteps of a batch are equally far apart, modulo T, which lowers the variance.

    Returns:
      int32 [num], float32 [num] of ones.

    Raises:
      ValueError: if num * num_timesteps is not below 2^30.
    """
    total = num * num_timesteps
    if total > MAX_STRATA:
        raise ValueError(
            f"the batch size ({num}) times num_timesteps ({num_timesteps}) must be below "
            "2^30 for stratified timesteps"
        )
    # Unseen (0): randint makes it an integer.
    first = jax.random.randint(key, (), 0, total)
    t = (first + jnp.arange(num) * num_timesteps) % total // num
    return t.astype(jnp.int32), jnp.ones(num)


def empty_history(num_timesteps: int) -> LossHistory:
    """A history without any loss."""
    return LossHistory(
        losses=jnp.zeros((num_timesteps, _HISTORY)),
        counts=jnp.zeros(num_timesteps, jnp.int32),
    )


def timestep_probabilities(history: LossHistory) -> jax.Array:
    """p_t ~ sqrt(E[L_t^2]) over the last ten losses (IDDPM eq. 18); float32 [T], sum 1.

    They are uniform until every timestep has ten. A thousandth is always shared out
    evenly, so that none is forgotten.
    """
    num_timesteps = history.losses.shape[0]
    rms = jnp.sqrt(jnp.square(history.losses).mean(axis=1))
    total = rms.sum()
    known = (history.counts >= _HISTORY).all() & (total > 0)
    # Unseen (1.0): a divisor that keeps 0 / 0 out of a branch that is not taken.
    by_loss = jnp.where(known, rms / jnp.where(known, total, 1.0), 1 / num_timesteps)
    return (1 - _UNIFORM_SHARE) * by_loss + _UNIFORM_SHARE / num_timesteps


def importance_timesteps(
    key: jax.Array, num: int, history: LossHistory
) -> tuple[jax.Array, jax.Array]:
    """`num` draws by `timestep_probabilities`; int32 [num], float32 [num] of 1 / (T p)."""
    probabilities = timestep_probabilities(history)
    num_timesteps = probabilities.shape[0]
    # Unseen (probabilities): jax.random.choice divides by their sum.
    t = jax.random.choice(key, num_timesteps, (num,), p=probabilities)
    return t, 1 / (num_timesteps * probabilities[t])


def record_losses(history: LossHistory, t: jax.Array, losses: jax.Array) -> LossHistory:
    """The history with a batch's losses in it, each in place of the oldest of its t.

    Losses are entered as if one after another; those that are not finite are left out.

    Args:
      history: of the state before.
      t: int32 [B].
      losses: float32 [B], of each example alone, without weights.
    """
    num_timesteps, size = history.losses.shape
    finite = jnp.isfinite(losses)
    t = jnp.where(finite, t, num_timesteps)  # Out of range, so never written.
    same = t[:, None] == t[None, :]
    position = jnp.arange(t.shape[0])
    before = (same & (position[None, :] < position[:, None])).sum(axis=1)
    # Only the last ten of one t stay, so no slot is written twice.
    # Unseen (size): integers, above n - 10.1 where they are above n - 10.
    stays = before >= same.sum(axis=1) - size
    row = jnp.where(stays, t, num_timesteps)
    counts = history.counts.at[t].get(mode="fill", fill_value=0)
    return LossHistory(
        losses=history.losses.at[row, (counts + before) % size].set(losses, mode="drop"),
        # Unseen (1): it is added to integers, as an integer.
        counts=history.counts.at[t].add(1, mode="drop"),
    )
