"""A measurement at many timesteps of many images, in one compiled scan.

The T timesteps are divided into M strata, and each image draws one t of each: with M = T
every t. The t and the noise of an image are functions of its number in the data set,
whatever batch it is in and however many devices there are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.runtime import cpu, devices

_SEGMENT = 50  # Strata of one dispatch; between two a job can tell its progress, or stop.

# measure(params, batch, draw) -> (float32 [B], tree of [B, ...])
Measure = Callable[[Any, Batch, Draw], tuple[jax.Array, Any]]


def strata(num_timesteps: int, num_strata: int) -> np.ndarray:
    """The edges of the strata: stratum j is edges[j] .. edges[j + 1] - 1; int [M + 1].

    They are narrow where t is small, because there the terms of the bound are large, and
    change fast: nearly T (j / M)^3, but none empty.
    """
    edges = np.rint(num_timesteps * (np.arange(num_strata + 1) / num_strata) ** 3)
    edges = edges.astype(np.int64)
    for j in range(1, num_strata + 1):
        edges[j] = max(edges[j], edges[j - 1] + 1)
    # Edges are lowered where those after them need room.
    highest = num_timesteps - np.arange(num_strata + 1)[::-1]
    return np.minimum(edges, highest).astype(np.int32)


class TimestepScan:
    """The compiled measurement."""

    def __init__(
        self,
        measure: Measure,
        num_timesteps: int,
        mesh: jax.sharding.Mesh,
        num_strata: int,
        *,
        seed: int = 0,
        same_noise: bool = False,
    ):
        """Prepare; the first batch compiles.

        Args:
          measure: what is measured; see `Measure`.
          num_timesteps: T.
          mesh: the devices that a batch is divided over.
          num_strata: M, 1 .. T.
          seed: of t and noise.
          same_noise: whether an image has the same noise at every timestep.
        """
        self.num_strata, self._mesh = num_strata, mesh
        self._measure, self._same_noise = measure, same_noise
        self._edges = strata(num_timesteps, num_strata)
        self._segment = min(_SEGMENT, num_strata)
        # As in `training.train_state.init_state`: clear of training's and sampling's.
        key = jax.random.fold_in(jax.random.key(seed), 2**32 - 4)
        self._key_t, self._key_noise = jax.random.split(key)
        rows, whole = devices.split_batch(mesh), devices.replicated(mesh)
        self._advance = jax.jit(
            self._segment_from,
            in_shardings=(whole, rows, rows, rows, rows, whole),
            out_shardings=(rows, whole),
            donate_argnums=4,
            compiler_options=cpu.compiler_options(),
        )

    def _segment_from(self, params, batch, indices, live, totals, first):
        """Measure the strata of a segment, from `first` on."""

        def step(totals: jax.Array, j: jax.Array):
            width = jnp.asarray(np.diff(self._edges))[j]
            value, others = self._measure(params, batch, self._draw(batch.x, indices, j))
            here = jnp.where(j < self.num_strata, live, 0)  # The last segment is filled up.
            added = jnp.where(here > 0, width.astype(value.dtype) * value, 0)
            sums = jax.tree.map(functools.partial(_total, here), others)
            return totals + added, (added.sum(), sums)

        return jax.lax.scan(step, totals, first + jnp.arange(self._segment))

    def _draw(self, x: jax.Array, indices: jax.Array, j: jax.Array) -> Draw:
        """Draw t and noise of each image in stratum j."""
        low = jnp.asarray(self._edges)[j]
        width = jnp.asarray(np.diff(self._edges))[j]

        def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            keys = (self._key_t, self._key_noise)
            of_t, of_noise = (jax.random.fold_in(key, index) for key in keys)
            if not self._same_noise:
                of_noise = jax.random.fold_in(of_noise, j)
            t = jax.random.randint(jax.random.fold_in(of_t, j), (), low, low + width)
            return t, jax.random.normal(of_noise, x.shape[1:])

        return Draw(*jax.vmap(draw)(indices))

    def run(
        self,
        params: Any,
        batch: Batch,
        indices: np.ndarray,
        size: int,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """Measure up to `size` images, as one batch.

        Args:
          params: of the network.
          batch: float32 [N, ...], and what they are conditioned on.
          indices: int [N], of these images in the data set.
          size: of the compiled batch, which is filled up.
          on_progress: is told of the strata done, and may raise an exception.

        Returns:
          The sum over t of the first that `measure` gives, of each image, float64 [N]; its
          mean over the images in each stratum, times the timesteps there, float64 [M]; and
          the mean of the others over the images, float64 [M, ...].
        """
        num = len(indices)
        live = (np.arange(size) < num).astype(np.float32)
        filled = devices.put_filled(self._mesh, as_float32(batch), size)
        where = devices.put_filled(self._mesh, np.asarray(indices, np.int32), size)
        alive = devices.put_rows(self._mesh, live)
        totals = 0 * alive  # Donated: not NumPy's memory.
        segments = []
        for first in range(0, self.num_strata, self._segment):
            totals, sums = self._advance(params, filled, where, alive, totals, first)
            segments.append(jax.tree.map(lambda s: np.asarray(s, np.float64), sums))
            on_progress(min(first + self._segment, self.num_strata))
        added, others = jax.tree.map(
            lambda *s: np.concatenate(s)[: self.num_strata] / num, *segments
        )
        return devices.to_host(totals).astype(np.float64)[:num], added, others


def as_float32(batch: Batch) -> Batch:
    """Return the batch with its examples in NumPy float32."""
    return Batch(np.asarray(batch.x, np.float32), batch.cond)


def _total(here: jax.Array, x: jax.Array) -> jax.Array:
    """The sum over the images that count."""
    kept = here.reshape(-1, *[1] * (x.ndim - 1)) > 0
    return jnp.where(kept, x, 0).sum(axis=0)
