"""The reverse chain: one `lax.scan` that runs any sampler's table as one program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.guidance import (
    PRIOR_SCALE,
    SCALE,
    Guidance,
    Prior,
    shift_of_x0,
)
from diffusion_jax.diffusion.model import Model, Prediction
from diffusion_jax.diffusion.noise_level import NoiseLevel
from diffusion_jax.samplers.table import Coefficients, SamplerTable
from diffusion_jax.samplers.thresholding import Hook, static_threshold


class Start(NamedTuple):
    """The state that a chain starts from, mean + std N(0, I); a pytree.

    Pure noise has the mean 0 and the std 1. A clean example at the first row's noise level
    has alpha x_0 and sigma, and a state that is known has itself and 0.

    Attributes:
      mean: [B, ...].
      std: [B, ...], or what broadcasts to it.
    """

    mean: jax.Array
    std: jax.Array


class Samples(NamedTuple):
    """Samples to make: those of these indices, of one seed; a pytree.

    Attributes:
      key: one typed PRNG key for all samples of a seed.
      indices: int32 [B].
      start: where their chains start; None is pure noise.
    """

    key: jax.Array
    indices: Any
    start: Start | None = None


class ChainOptions(NamedTuple):
    """Options of a chain, beside the rows of its table.

    Attributes:
      hook: hook(x0, x_t, level, cond) changes each predicted x_0 [B, ...] before it is
        used, and after it was guided: `static_threshold` or `dynamic_threshold` for
        images, None for other data, or any function, such as inpainting or a projection.
      frames: states to keep, as different numbers of rows done: 0 is the initial noise
        and table.num_rows the finished sample.
      progress_every: number of rows between two calls of `on_progress`, which is also
        called after each of the first two rows, from which the time of the others can be
        told; 0 is never.
      on_progress: called on the host, from inside the program, with the rows done.
      guidance: by a second prediction; its scale is in cond, as "guidance" [B].
      prior: guidance by a function; its scale is in cond, as "prior_scale" [B].
    """

    hook: Hook | None = static_threshold
    frames: Sequence[int] = ()
    progress_every: int = 0
    on_progress: Callable[[Any], None] | None = None
    guidance: Guidance | None = None
    prior: Prior | None = None


DEFAULT_OPTIONS = ChainOptions()


class ChainState(NamedTuple):
    """The state between two rows: no more than the table's method needs.

    Attributes:
      x: [B, ...].
      anchor: [B, ...], or None.
      previous: the predicted x_0 of earlier rows, the newest first.
      momentum: [B, ...], of projected guidance; or None.
      frames: [number of frames, B, ...], the states asked for.
    """

    x: jax.Array
    anchor: jax.Array | None
    previous: tuple[jax.Array, ...]
    momentum: jax.Array | None
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
    samples: Samples,
    shape: tuple[int, ...],
    options: ChainOptions = DEFAULT_OPTIONS,
) -> ChainState:
    """Return the state before the first row. Arguments as in `sample_chain`."""
    x, frames = _draw(samples, 0, shape), options.frames
    if samples.start is not None:
        x = samples.start.mean + samples.start.std * x
    kept = jnp.zeros((len(frames), *x.shape), x.dtype)
    if 0 in frames:
        kept = kept.at[list(frames).index(0)].set(x)
    zeros = jnp.zeros_like(x)
    anchor = zeros if table.has_anchor else None
    guidance = options.guidance
    momentum = zeros if guidance is not None and guidance.has_momentum else None
    return ChainState(x, anchor, (zeros,) * table.num_previous, momentum, kept)


def run_rows(
    model: Model,
    params: Any,
    state: ChainState,
    rows: Rows,
    samples: Samples,
    cond: Any = None,
    options: ChainOptions = DEFAULT_OPTIONS,
) -> ChainState:
    """Return the state after these rows, by one scan. Arguments as in `sample_chain`."""
    run = functools.partial(
        _run_row, model, params, samples=samples, cond=cond, options=options
    )

    def step(state: ChainState, row: Rows) -> tuple[ChainState, None]:
        if row.table.is_padded:
            live = row.table.is_live
            state = jax.lax.cond(live, lambda s: run(s, row), lambda s: s, state)
        else:
            state = run(state, row)
        report, every = options.on_progress, options.progress_every
        if report is not None and every:
            jax.lax.cond(
                (row.done % every == 0) | (row.done <= 2),
                lambda: jax.debug.callback(report, row.done),
                lambda: None,
            )
        return state, None

    # float32, unless jax.enable_x64 says otherwise.
    return jax.lax.scan(step, state, jax.tree.map(jnp.asarray, rows))[0]


def _run_row(
    model: Model,
    params: Any,
    state: ChainState,
    row: Rows,
    samples: Samples,
    cond: Any,
    options: ChainOptions,
) -> ChainState:
    """Return the state after one row; table.py has the equations."""
    table, x = row.table, state.x
    said = _denoised(model, params, state, table, cond, options)
    x0, base = said.x0, said.base
    if options.hook is not None:
        x0 = options.hook(x0, x, table.level, cond)
    noise = _draw(samples, row.done, x.shape[1:])
    if table.is_learned:
        if said.variance_output is None:
            raise ValueError(
                "the table's variance is learned, and that of the model is not"
            )
        noise = jnp.exp(table.noise_log_range / 4 * (said.variance_output + 1)) * noise
    values: dict[str, Any] = {"x": x, "x0": x0, "noise": noise}
    if options.guidance is not None and options.guidance.renoises_with_base:
        if options.hook is not None:
            base = options.hook(base, x, table.level, cond)
        values |= {"x0": base, "gain": x0 - base}
        x0 = base
    values |= zip(("x0_prev", "x0_prev2"), state.previous, strict=False)
    if table.has_anchor:
        values["anchor"] = state.anchor
    new = _combined(table.to_x, values)
    newest = [jnp.where(table.is_remembered, x0, p) for p in state.previous[:1]]
    older = [
        jnp.where(table.is_remembered, p, q)
        for p, q in zip(state.previous, state.previous[1:], strict=False)
    ]
    frames = state.frames
    if len(frames):  # A slot past the end of the buffer is dropped.
        frames = frames.at[row.slots].set(new, mode="drop")
    anchor = _combined(table.to_anchor, values) if table.has_anchor else None
    return ChainState(new, anchor, (*newest, *older), said.momentum, frames)


class _Denoised(NamedTuple):
    """The predicted x_0 of a row, guided, and the base of the guidance."""

    x0: jax.Array
    base: jax.Array
    variance_output: jax.Array | None
    momentum: jax.Array | None


def _denoised(
    model: Model,
    params: Any,
    state: ChainState,
    row: SamplerTable,
    cond: Any,
    options: ChainOptions,
) -> _Denoised:
    """Ask the network, and guide what it predicts."""

    def ask(x: jax.Array) -> tuple[jax.Array, _Denoised]:
        t = jnp.broadcast_to(row.t, x.shape[:1])
        read = functools.partial(_x0_of, row, x)
        guidance = options.guidance
        if guidance is None:
            said = model.predict(params, x, t, cond)
            x0 = read(said.output)
            return x0, _Denoised(x0, x0, said.variance_output, state.momentum)
        output, base_output, variance = _both(guidance, params, x, t, cond, row)
        x0, base = read(output), read(base_output)
        scale = jnp.where(row.is_guided, cond[SCALE], 1)
        guided, momentum = guidance.combine(x0, base, scale, state.momentum)
        if momentum is not None and state.momentum is not None:
            momentum = jnp.where(row.is_guided, momentum, state.momentum)
        return guided, _Denoised(guided, base, variance, momentum)

    if options.prior is None:
        return ask(state.x)[1]
    said, gradient = _with_gradient(options.prior, ask, state.x, row.level, cond)
    # A threshold would hide one that is infinite.
    gradient = jnp.where(jnp.isfinite(gradient), gradient, jnp.nan)
    shift = shift_of_x0(gradient, cond[PRIOR_SCALE], row.level)
    return said._replace(x0=said.x0 + shift, base=said.base + shift)


def _x0_of(row: SamplerTable, x: jax.Array, output: jax.Array) -> jax.Array:
    return row.x0_from_x * x + row.x0_from_prediction * output


def _both(
    guidance: Guidance,
    params: Any,
    x: jax.Array,
    t: jax.Array,
    cond: Any,
    row: SamplerTable,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return the outputs of the prediction and the base, which are one if not guided."""

    def both() -> tuple[jax.Array, jax.Array, jax.Array | None]:
        said, base = guidance.both(params, x, t, cond)
        return said.output, base.output, said.variance_output

    def alone() -> tuple[jax.Array, jax.Array, jax.Array | None]:
        said: Prediction = guidance.predict(params, x, t, cond)
        return said.output, said.output, said.variance_output

    return jax.lax.cond(row.is_guided, both, alone) if guidance.is_limited else both()


def _with_gradient(
    prior: Prior,
    ask: Callable[[jax.Array], tuple[jax.Array, _Denoised]],
    x: jax.Array,
    level: NoiseLevel,
    cond: Any,
) -> tuple[_Denoised, jax.Array]:
    """Return what is predicted at x, and the gradient of log p there."""

    def total(at: jax.Array) -> jax.Array:
        return prior.log_p(at, level, cond).sum()

    if not prior.is_of_x0:
        return ask(x)[1], jax.grad(total)(x)
    x0, pull, said = jax.vjp(ask, x, has_aux=True)
    return said, pull(jax.grad(total)(x0))[0]


def _combined(coefficients: Coefficients, values: dict[str, jax.Array]) -> jax.Array:
    terms = [getattr(coefficients, name) * value for name, value in values.items()]
    return sum(terms[1:], terms[0])


def sample_chain(
    model: Model,
    params: Any,
    table: SamplerTable,
    samples: Samples,
    shape: tuple[int, ...],
    cond: Any = None,
    options: ChainOptions = DEFAULT_OPTIONS,
) -> tuple[jax.Array, jax.Array]:
    """Turn noise into samples by the rows of `table`, as one scan.

    The scan carries x, what the method remembers and the few frames asked for, so memory
    does not grow with the number of rows. The noise of a sample is a function of (key,
    its index, row): the same bits in any batch on any number of devices. Computes in
    float32, or in float64 under jax.enable_x64.

    Args:
      model, params: the network; t comes to it as real numbers, [B]. A table that does not
        use its learned variance takes the prediction alone.
      table: rows of `diffusion_jax.samplers.methods`, made for the same model; under jit an
        argument, so that another table of the same length needs no compilation.
      samples: which samples to make.
      shape: shape of one sample, such as (32, 32, 3).
      cond: what the network is conditioned on, [B, ...] each.
      options: the hook on the predicted x_0, frames to keep, progress, and guidance.

    Returns:
      samples [B, *shape] (images in [-1, 1] if x_0 is thresholded), and the frames,
      [len(frames), B, *shape].

    Raises:
      ValueError: for frames that are not different states of the chain, or a table with
        learned variances for a model without.
    """
    rows = chain_rows(table, options.frames)
    state = start_chain(table, samples, shape, options)
    state = run_rows(model, params, state, rows, samples, cond, options)
    return state.x, state.frames


def even_frames(num_rows: int, count: int) -> tuple[int, ...]:
    """`count` states evenly over the chain, the noise and the finished sample included.

    There are fewer where the chain has fewer states than that.
    """
    return tuple(np.unique(np.linspace(0, num_rows, count).round().astype(int)).tolist())


def _draw(samples: Samples, position: Any, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal [B, *shape]; 0 is the initial noise, row r draws at r + 1."""
    keys = jax.vmap(lambda i: jax.random.fold_in(samples.key, i))(samples.indices)
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, position), shape))(
        keys
    )
