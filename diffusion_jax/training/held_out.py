"""The loss, and the bound, on examples that are never trained on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import fixed_choice
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.evaluation.bound import BatchTerms, Bound, combined
from diffusion_jax.experiment.build import LossFn
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runtime import cpu, devices
from diffusion_jax.runtime.interrupts import Stop, Stopped
from diffusion_jax.runtime.progress import ProgressBar


def held_out_timesteps(indices: jax.Array, num_timesteps: int) -> jax.Array:
    """The t of each example, int32 [B]: evenly through 0 .. T-1 with its index.

    It goes by the golden ratio, whose multiples stay even for any number of examples.
    """
    golden = (5**0.5 - 1) / 2
    position = (indices.astype(jnp.float32) + 0.5) * golden % 1.0
    t = jnp.floor(position * num_timesteps).astype(jnp.int32)
    return jnp.minimum(t, num_timesteps - 1)


def make_held_out_loss(
    loss_fn: LossFn, num_timesteps: int
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """held_out_loss(params, batch of B examples, indices [B]) -> float32 [B].

    Example i always gets the same t and noise, so that the losses of two checkpoints
    differ by their weights alone.
    """

    def held_out_loss(params: Any, batch: Batch, indices: jax.Array) -> jax.Array:
        t = held_out_timesteps(indices, num_timesteps)
        key = jax.random.fold_in(jax.random.key(0), 2**32 - 2)  # As in `init_state`.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, batch.x.shape[1:]))(keys)
        return loss_fn(params, batch, Draw(t, noise))

    return held_out_loss


class HeldOut:
    """Loss and bound of a run, in batches of one shape over its mesh; None if stopped."""

    def __init__(self, plan: Plan, mesh: jax.sharding.Mesh, stop: Stop, bar: ProgressBar):
        """Prepare; the first batch compiles. `bar` is that of the training."""
        self._split, self._mesh, self._stop = plan.data.split("held_out"), mesh, stop
        self._bar = bar
        self._kind = kind_of(plan.config.data)
        self._num_timesteps = plan.model.process.num_timesteps
        self._batch_size = plan.config.data.batch_size
        self._wanted = plan.config.training.num_held_out
        self._loss = jax.jit(
            make_held_out_loss(plan.loss_fn, self._num_timesteps),
            compiler_options=cpu.compiler_options(),
        )
        if plan.config.training.likelihood_every:
            num_strata = plan.config.training.likelihood_timesteps
            self._bound = Bound(plan.model, mesh, min(num_strata, self._num_timesteps))
        self._examples: Batch | None = None

    def examples(self) -> Batch:
        """Return the examples that are evaluated, always the same ones."""
        if self._examples is None:
            chosen = fixed_choice(len(self._split), self._wanted)
            self._examples = self._split[chosen]
        return self._examples

    def loss(self, params: Any) -> tuple[float, dict[str, float]] | None:
        """The mean loss with these weights; and that of each quarter of the timesteps."""
        examples = self.examples()
        size, total = self._batch_size, len(examples.x)
        losses = []
        with self._bar.part("held-out loss", total, self._kind.name) as bar:
            for begin in range(0, total, size):
                # The last batch is filled up with examples that are then left out.
                indices = np.arange(begin, begin + size) % total
                batch = self._kind.network_batch(_on_device(_rows(examples, indices)))
                given = devices.put_rows(self._mesh, (batch, indices.astype(np.int32)))
                losses.append(devices.to_host(self._loss(params, *given)))
                bar.report(min(begin + size, total))
                self._stop.update()
                if self._stop.wanted:
                    return None
        all_losses = np.concatenate(losses)[:total]
        t = np.asarray(held_out_timesteps(jnp.arange(total), self._num_timesteps))
        ends = [i * self._num_timesteps // 4 for i in range(5)]
        by_quarter = {}
        for low, high in zip(ends[:-1], ends[1:], strict=True):
            there = all_losses[(low <= t) & (t < high)]
            if len(there):
                by_quarter[f"{low}-{high - 1}"] = float(there.mean())
        return float(all_losses.mean()), by_quarter

    def bound(self, params: Any) -> BatchTerms | None:
        """The terms of the bound with these weights."""
        examples, size = self.examples(), self._batch_size
        parts, begins = list[BatchTerms](), range(0, len(examples.x), size)
        calls = self._bound.num_strata

        def on_progress(done: int) -> None:
            bar.report(len(parts) * calls + done)
            self._stop.check()

        try:
            with self._bar.part("bits/dim", len(begins) * calls, "calls") as bar:
                for begin in begins:
                    here = np.arange(begin, min(begin + size, len(examples.x)))
                    batch = self._kind.network_batch(_on_device(_rows(examples, here)))
                    batch = jax.tree.map(np.asarray, batch)
                    terms = self._bound.terms(params, batch, here, size, on_progress)
                    parts.append(terms)
        except Stopped:
            return None
        return combined(parts)


def _on_device(batch: Batch) -> Batch:
    return jax.tree.map(jnp.asarray, batch)


def _rows(batch: Batch, indices: np.ndarray) -> Batch:
    return jax.tree.map(lambda rows: rows[indices], batch)
