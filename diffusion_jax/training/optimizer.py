"""The optimiser: clip by global norm, then Adam or AdamW with a scheduled rate."""

import jax.numpy as jnp
import optax

from diffusion_jax.config import OptimizerConfig


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
    are clipped.
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
    return optax.chain(optax.clip_by_global_norm(config.grad_clip), step)
