"""The loss on examples that are never trained on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import parallel
from diffusion_jax.config import Config
from diffusion_jax.data.sources import Source, fixed_choice
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.experiment import LossFn
from diffusion_jax.interrupts import Stop
from diffusion_jax.schedules import Schedule


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


class HeldOut:
    """The held-out loss of a run, in batches of one shape over its mesh."""

    def __init__(
        self,
        config: Config,
        source: Source,
        loss_fn: LossFn,
        schedule: Schedule,
        mesh: jax.sharding.Mesh,
    ):
        self._source, self._mesh = source, mesh
        self._batch_size = config.data.batch_size
        self._wanted = config.training.num_held_out
        self._loss = jax.jit(make_held_out_loss(loss_fn, schedule))
        self._examples: np.ndarray | None = None

    def examples(self) -> np.ndarray:
        """Those that the loss is taken of, always the same ones."""
        if self._examples is None:
            chosen = fixed_choice(len(self._source), self._wanted)
            self._examples = self._source[chosen]
        return self._examples

    def loss(self, params: Any, stop: Stop) -> float | None:
        """The mean loss with these weights; None if it was stopped."""
        examples = self.examples()
        size, total = self._batch_size, len(examples)
        rows = parallel.split_batch(self._mesh)
        losses = []
        for begin in range(0, total, size):
            # The last batch is filled up with examples that are then left out.
            indices = np.arange(begin, begin + size) % total
            x0 = to_model_range(jax.device_put(examples[indices], rows))
            where = jax.device_put(indices.astype(np.int32), rows)
            losses.append(np.asarray(self._loss(params, x0, where)))
            if stop.wanted:
                return None
        return float(np.concatenate(losses)[:total].mean())
