"""The reverse chain: one `lax.scan` that runs any sampler's table as one program."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.predictions import split_output
from diffusion_jax.samplers.tables import SamplerTable


def sample_chain(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    table: SamplerTable,
    key: jax.Array,
    sample_indices: jax.Array,
    *,
    shape: tuple[int, ...],
    clip_x0: bool = True,
    frames: Sequence[int] = (),
    cond: Any = None,
    progress_every: int = 0,
    on_progress: Callable[[Any], None] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """From noise to samples by the rows of `table`.

    The scan carries x and the few frames asked for, so memory does not grow with the
    number of rows. The noise of a sample is a function of (key, its index, row): the
    same bits in any batch on any number of devices.

    Args:
      apply_fn, params: the network; of one with learned variances, a table that does not
        use them takes the prediction alone.
      table: rows of `diffusion_jax.samplers.tables`; NumPy arrays, so under jit they
        are closed over, not an argument, like `shape` and `frames`.
      key: one typed PRNG key for all samples of a seed.
      sample_indices: int32 [B], which samples of that seed to make.
      shape: shape of one sample, such as (32, 32, 3).
      clip_x0: clip the predicted x_0 to [-1, 1] before it is used; False for data that
        is not an image.
      frames: states to keep, as different numbers of rows done: 0 is the initial noise
        and table.num_rows the finished sample.
      cond: handed through to the network.
      progress_every: call `on_progress` after every so many rows, and after the first
        two, from which the time of the others can be told; 0 is never.
      on_progress: called on the host, from inside the program, with the rows done.

    Returns:
      samples float32 [B, *shape] (images in [-1, 1] if x_0 is clipped), and
      the frames, float32 [len(frames), B, *shape].

    Raises:
      ValueError: for frames that are not different states of the chain, or a table with
        learned variances for a network without.
    """
    num_rows = table.num_rows
    if len(set(frames)) != len(frames) or not set(frames) <= set(range(num_rows + 1)):
        raise ValueError(f"frames {frames} must be different numbers in 0 .. {num_rows}")
    batch = sample_indices.shape[0]
    sample_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(sample_indices)

    def draw(position: Any) -> jax.Array:
        # Position 0 is the initial noise, row r draws at r + 1.
        return jax.vmap(
            lambda k: jax.random.normal(jax.random.fold_in(k, position), shape)
        )(sample_keys)

    # Where the state goes after `done` rows; states not asked for go past the end of
    # the buffer, where the write is dropped.
    slots = np.full(num_rows + 1, len(frames), np.int32)
    for slot, done in enumerate(frames):
        slots[done] = slot

    def keep(buffer: jax.Array, slot: Any, x: jax.Array) -> jax.Array:
        return buffer.at[slot].set(x, mode="drop") if len(frames) else buffer

    def step(carry, row):
        x, buffer = carry
        done, slot, c = row
        t = jnp.broadcast_to(c.t, (batch,))
        output = apply_fn(params, x, t, cond, train=False, key=None)
        between: Any = None
        if table.is_learned or output.shape[-1] == 2 * x.shape[-1]:
            prediction, between = split_output(output, x, "learned")
        else:
            prediction = output
        chex.assert_equal_shape([prediction, x])
        x0 = c.x0_from_x * x + c.x0_from_prediction * prediction
        if clip_x0:
            x0 = jnp.clip(x0, -1.0, 1.0)
        scale = c.w_noise
        if table.is_learned:
            scale = scale * jnp.exp(c.noise_log_range / 4 * (between + 1))
        x = c.w_x * x + c.w_x0 * x0 + scale * draw(done)
        if on_progress is not None and progress_every:
            jax.lax.cond(
                (done % progress_every == 0) | (done <= 2),
                lambda: jax.debug.callback(on_progress, done),
                lambda: None,
            )
        return (x, keep(buffer, slot, x)), None

    x = draw(0)
    buffer = keep(jnp.zeros((len(frames), batch, *shape)), slots[0], x)
    rows = SamplerTable(table.t, *(np.asarray(c, np.float32) for c in table[1:]))
    xs = (jnp.arange(1, num_rows + 1), jnp.asarray(slots[1:]), rows)
    (x, buffer), _ = jax.lax.scan(step, (x, buffer), xs)
    return x, buffer


def even_frames(num_rows: int, count: int) -> tuple[int, ...]:
    """`count` states evenly over the chain, the noise and the finished sample included.

    Fewer where the chain has fewer states than that.
    """
    return tuple(np.unique(np.linspace(0, num_rows, count).round().astype(int)).tolist())
