"""The reverse chain: one `lax.scan` that runs any sampler's table as one program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.parameterization import split_output
from diffusion_jax.samplers.table import SamplerTable, Weights
from diffusion_jax.samplers.thresholding import Hook, static_threshold


class ChainState(NamedTuple):
    """What one row hands to the next: no more than the table's method needs.

    Attributes:
      x: [B, ...].
      anchor: [B, ...], or None.
      previous: the predicted x_0 of earlier rows, the newest first.
      frames: [number of frames, B, ...], the states asked for.
    """

    x: jax.Array
    anchor: jax.Array | None
    previous: tuple[jax.Array, ...]
    frames: jax.Array


class Rows(NamedTuple):
    """A stretch of a chain: what its scan runs over.

    Attributes:
      done: int32 [S], how many rows of the chain are done after each.
      slots: int32 [S], where each row's state goes among the frames; past the end of
        them if it is not asked for.
      table: the rows themselves.
    """

    done: np.ndarray
    slots: np.ndarray
    table: SamplerTable


def chain_rows(table: SamplerTable, frames: Sequence[int] = ()) -> Rows:
    """All rows of a table, and which states to keep.

    Raises:
      ValueError: for frames that are not different states of the chain.
    """
    num_rows = table.num_rows
    if len(set(frames)) != len(frames) or not set(frames) <= set(range(num_rows + 1)):
        raise ValueError(f"frames {frames} must be different numbers in 0 .. {num_rows}")
    done = np.arange(1, num_rows + 1, dtype=np.int32)
    slots = np.full(num_rows + 1, len(frames), np.int32)
    slots[np.array(frames, int)] = np.arange(len(frames))
    return Rows(done, slots[1:], table)


def start_chain(
    table: SamplerTable,
    key: jax.Array,
    sample_indices: jax.Array,
    *,
    shape: tuple[int, ...],
    frames: Sequence[int] = (),
) -> ChainState:
    """The state before the first row: x is noise. Arguments as in `sample_chain`."""
    x = _draw(key, sample_indices, 0, shape)
    kept = jnp.zeros((len(frames), *x.shape), x.dtype)
    if 0 in frames:
        kept = kept.at[list(frames).index(0)].set(x)
    zeros = jnp.zeros_like(x)
    anchor = zeros if table.has_anchor else None
    return ChainState(x, anchor, (zeros,) * table.num_previous, kept)


def run_rows(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    state: ChainState,
    rows: Rows,
    key: jax.Array,
    sample_indices: jax.Array,
    *,
    x0_hook: Hook | None = static_threshold,
    cond: Any = None,
    progress_every: int = 0,
    on_progress: Callable[[Any], None] | None = None,
) -> ChainState:
    """The state after these rows, by one scan. Arguments as in `sample_chain`."""
    table = rows.table
    batch, *shape = state.x.shape
    num_frames = len(state.frames)

    def run(state: ChainState, row: Rows) -> ChainState:
        c, x = row.table, state.x
        output = apply_fn(
            params, x, jnp.broadcast_to(c.t, (batch,)), cond, train=False, key=None
        )
        between: Any = None
        if table.is_learned or output.shape[-1] == 2 * x.shape[-1]:
            prediction, between = split_output(output, x, "learned")
        else:
            prediction = output
        chex.assert_equal_shape([prediction, x])
        x0 = c.x0_from_x * x + c.x0_from_prediction * prediction
        if x0_hook is not None:
            x0 = x0_hook(x0)
        noise = _draw(key, sample_indices, row.done, tuple(shape))
        if table.is_learned:
            noise = jnp.exp(c.noise_log_range / 4 * (between + 1)) * noise
        values = {"x": x, "x0": x0, "noise": noise}
        values |= zip(("x0_prev", "x0_prev2"), state.previous, strict=False)
        if table.has_anchor:
            values["anchor"] = state.anchor

        def weighted(weights: Weights) -> jax.Array:
            terms = [getattr(weights, name) * value for name, value in values.items()]
            return sum(terms[1:], terms[0])

        new = weighted(c.to_x)
        newest = [jnp.where(c.is_remembered, x0, p) for p in state.previous[:1]]
        older = [
            jnp.where(c.is_remembered, p, q)
            for p, q in zip(state.previous, state.previous[1:], strict=False)
        ]
        return ChainState(
            new,
            weighted(c.to_anchor) if table.has_anchor else None,
            (*newest, *older),
            # A slot past the end of the buffer is dropped.
            state.frames.at[row.slots].set(new, mode="drop")
            if num_frames
            else state.frames,
        )

    def step(state: ChainState, row: Rows) -> tuple[ChainState, None]:
        if table.is_padded:
            live = row.table.is_live
            state = jax.lax.cond(live, lambda s: run(s, row), lambda s: s, state)
        else:
            state = run(state, row)
        if on_progress is not None and progress_every:
            jax.lax.cond(
                (row.done % progress_every == 0) | (row.done <= 2),
                lambda: jax.debug.callback(on_progress, row.done),
                lambda: None,
            )
        return state, None

    # float32, unless jax.enable_x64 says otherwise.
    return jax.lax.scan(step, state, jax.tree.map(jnp.asarray, rows))[0]


def sample_chain(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    table: SamplerTable,
    key: jax.Array,
    sample_indices: jax.Array,
    *,
    shape: tuple[int, ...],
    x0_hook: Hook | None = static_threshold,
    frames: Sequence[int] = (),
    cond: Any = None,
    progress_every: int = 0,
    on_progress: Callable[[Any], None] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """From noise to samples by the rows of `table`, as one scan.

    The scan carries x, what the method remembers and the few frames asked for, so memory
    does not grow with the number of rows. The noise of a sample is a function of (key,
    its index, row): the same bits in any batch on any number of devices. Computes in
    float32, or in float64 under jax.enable_x64.

    Args:
      apply_fn, params: the network; t comes to it as real numbers, [B]. Of one with
        learned variances, a table that does not use them takes the prediction alone.
      table: rows of `diffusion_jax.samplers.methods`; under jit an argument, so that
        another table of the same length needs no compilation.
      key: one typed PRNG key for all samples of a seed.
      sample_indices: int32 [B], which samples of that seed to make.
      shape: shape of one sample, such as (32, 32, 3).
      x0_hook: changes each predicted x_0 [B, ...] before it is used: `static_threshold`
        or `dynamic_threshold` for images, None for other data, or any function.
      frames: states to keep, as different numbers of rows done: 0 is the initial noise
        and table.num_rows the finished sample.
      cond: handed through to the network.
      progress_every: call `on_progress` after every so many rows, and after the first
        two, from which the time of the others can be told; 0 is never.
      on_progress: called on the host, from inside the program, with the rows done.

    Returns:
      samples [B, *shape] (images in [-1, 1] if x_0 is thresholded), and the frames,
      [len(frames), B, *shape].

    Raises:
      ValueError: for frames that are not different states of the chain, or a table with
        learned variances for a network without.
    """
    rows = chain_rows(table, frames)
    state = run_rows(
        apply_fn,
        params,
        start_chain(table, key, sample_indices, shape=shape, frames=frames),
        rows,
        key,
        sample_indices,
        x0_hook=x0_hook,
        cond=cond,
        progress_every=progress_every,
        on_progress=on_progress,
    )
    return state.x, state.frames


def even_frames(num_rows: int, count: int) -> tuple[int, ...]:
    """`count` states evenly over the chain, the noise and the finished sample included.

    Fewer where the chain has fewer states than that.
    """
    return tuple(np.unique(np.linspace(0, num_rows, count).round().astype(int)).tolist())


def _draw(
    key: jax.Array, sample_indices: jax.Array, position: Any, shape: tuple[int, ...]
) -> jax.Array:
    """Standard normal [B, *shape]; 0 is the initial noise, row r draws at r + 1."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(sample_indices)
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, position), shape))(
        keys
    )
