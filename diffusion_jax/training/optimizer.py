"""The optimiser: clip by global norm, then Adam or AdamW with a scheduled rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.config import OptimizerConfig

SMALL = 2**12  # Numbers of a leaf that is put together with others.


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Rate at each step: linear from 0 over the warm-up, then as `config.decay` says.

    constant: learning_rate. cosine: from it to 0 at `num_steps`. inverse_sqrt:
    learning_rate * sqrt(w / step) with w the length of the warm-up, or, without one,
    learning_rate / sqrt(1 + step).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay == "constant":
        after = optax.constant_schedule(peak)
    elif config.decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1))
    elif config.decay == "inverse_sqrt":
        scale = max(warmup, 1)

        def after(count):
            # join_schedules also asks for the counts before the warm-up's end.
            return peak * jnp.sqrt(scale / (scale + jnp.maximum(count, 0)))

    else:
        raise ValueError(f"optimizer.decay {config.decay!r} is unknown")
    if not warmup:
        return after
    ramp = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return the optimiser, which turns gradients into updates of the parameters.

    With jit over a mesh the gradients are already the mean over all devices when they
    are clipped. The clip may be given their `norm`, as update(..., norm=).
    """
    rate = learning_rate_schedule(config, num_steps)
    if config.name == "adam":
        step = optax.adam(rate, config.b1, config.b2, config.eps)
    elif config.name == "adamw":
        step = optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
        )
    else:
        raise ValueError(f"optimizer.name {config.name!r} is unknown")
    if not config.grad_clip:
        return step
    return optax.chain(clip_by_global_norm(config.grad_clip), step)


def packed(tree: Any) -> Any:
    """Return the same tree, with its small leaves read from one vector.

    The values are not changed. On a GPU the updates of leaves that are read from the same
    array share a kernel, and otherwise each has one of its own, which takes the time of a
    launch and not that of its work. The barrier keeps the compiler from reading the
    leaves where they were. It is for leaves that are whole on each device: others would be
    gathered for the vector, each on its own.
    """
    leaves, structure = jax.tree.flatten(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size <= SMALL]
    if not small:
        return tree
    vector, end = jax.lax.optimization_barrier(jnp.concatenate(small)), 0
    for i, leaf in enumerate(leaves):
        if leaf.size <= SMALL:
            start, end = end, end + leaf.size
            leaves[i] = vector[start:end].reshape(leaf.shape)
    return jax.tree.unflatten(structure, leaves)


def global_norm(tree: Any) -> jax.Array:
    """Return the root of the sum of squares of all numbers of a tree.

    Its small leaves are first put into one vector, so that there is one sum for them all.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size <= SMALL]
    parts = [leaf for leaf in leaves if leaf.size > SMALL]
    if small:
        parts.append(jnp.concatenate(small))
    return jnp.sqrt(jnp.stack([jnp.sum(jnp.square(part)) for part in parts]).sum())


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Return `optax.clip_by_global_norm`, whose update may be given the `norm`."""

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        norm: jax.Array | None = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        del params
        size = global_norm(updates) if norm is None else norm

        def clipped(update: jax.Array) -> jax.Array:
            return jnp.where(size < max_norm, update, update / size * max_norm)

        return jax.tree.map(clipped, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
