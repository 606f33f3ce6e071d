"""Something measured at many timesteps of many images, in one compiled scan.

The T timesteps are divided into M strata, and each image draws one t of each: with M = T
every t. The t and the noise of an image are functions of its number in the data set,
whatever batch it is in and however many devices there are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.runtime import cpu, devices

_SEGMENT = 50  # Strata of one dispatch; between two a job can tell its progress, or stop.

# measure(params, x0 [B, ...], t [B], noise [B, ...]) -> (float32 [B], tree of [B, ...])
Measure = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def strata(num_timesteps: int, num_strata: int) -> np.ndarray:
    """The edges of the strata: stratum j is edges[j] .. edges[j + 1] - 1; int [M + 1].

    Narrow where t is small, because there the terms of the bound are large, and change
    fast: nearly T (j / M)^3, but none empty.
    """
    edges = np.rint(num_timesteps * (np.arange(num_strata + 1) / num_strata) ** 3)
    edges = edges.astype(np.int64)
    for j in range(1, num_strata + 1):
        edges[j] = max(edges[j], edges[j - 1] + 1)
    # What was pushed up at the end makes room from there.
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
        """Prepares; the first batch compiles.

        Args:
          measure: what is measured; see `Measure`.
          num_timesteps: T.
          mesh: the devices that a batch is divided over.
          num_strata: M, 1 .. T.
          seed: of t and noise.
          same_noise: whether an image has the same noise at every timestep.
        """
        self.num_strata, self._mesh = num_strata, mesh
        edges = strata(num_timesteps, num_strata)
        self._segment = min(_SEGMENT, num_strata)
        rows, whole = devices.split_batch(mesh), devices.replicated(mesh)
        # As in `training.state.init_state`: clear of what training and sampling draw.
        key = jax.random.fold_in(jax.random.key(seed), 2**32 - 4)
        k_t, k_noise = jax.random.split(key)

        def advance(params, x0, indices, live, totals, first):
            """`_segment` strata from `first` on."""

            def step(totals: jax.Array, j: jax.Array):
                low = jnp.asarray(edges)[j]
                width = jnp.asarray(np.diff(edges))[j]

                def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
                    of_t, of_noise = (jax.random.fold_in(k, index) for k in (k_t, k_noise))
                    if not same_noise:
                        of_noise = jax.random.fold_in(of_noise, j)
                    t = jax.random.randint(
                        jax.random.fold_in(of_t, j), (), low, low + width
                    )
                    return t, jax.random.normal(of_noise, x0.shape[1:])

                t, noise = jax.vmap(draw)(indices)
                value, others = measure(params, x0, t, noise)
                here = jnp.where(j < num_strata, live, 0)  # The last segment is filled up.

                def total(x: jax.Array) -> jax.Array:
                    kept = here.reshape(-1, *[1] * (x.ndim - 1)) > 0
                    return jnp.where(kept, x, 0).sum(axis=0)

                added = jnp.where(here > 0, width * value, 0)
                return totals + added, (added.sum(), jax.tree.map(total, others))

            return jax.lax.scan(step, totals, first + jnp.arange(self._segment))

        self._advance = jax.jit(
            advance,
            in_shardings=(whole, rows, rows, rows, rows, whole),
            out_shardings=(rows, whole),
            donate_argnums=4,
            compiler_options=cpu.compiler_options(),
        )

    def run(
        self,
        params: Any,
        x0: np.ndarray,
        indices: np.ndarray,
        size: int,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """Measures up to `size` images, as one batch.

        Args:
          params: the weights.
          x0: float32 [N, ...].
          indices: int [N], of these images in the data set.
          size: of the compiled batch, which is filled up.
          on_progress: is told of the strata done, and may raise an exception.

        Returns:
          Of each image the sum over t of the first that `measure` says, float64 [N]; its
          mean over the images in each stratum, times the timesteps there, float64 [M]; and
          of the others the mean over the images, float64 [M, ...].
        """
        num = len(x0)
        live = (np.arange(size) < num).astype(np.float32)
        rows = devices.split_batch(self._mesh)
        batch = devices.put_filled(self._mesh, np.asarray(x0, np.float32), size)
        where = devices.put_filled(self._mesh, np.asarray(indices, np.int32), size)
        alive = jax.device_put(live, rows)
        totals = jax.device_put(jnp.zeros(size), rows)  # Donated: not NumPy's memory.
        segments = []
        for first in range(0, self.num_strata, self._segment):
            totals, sums = self._advance(params, batch, where, alive, totals, first)
            segments.append(jax.tree.map(lambda s: np.asarray(s, np.float64), sums))
            on_progress(min(first + self._segment, self.num_strata))
        added, others = jax.tree.map(
            lambda *s: np.concatenate(s)[: self.num_strata] / num, *segments
        )
        return np.asarray(totals, np.float64)[:num], added, others
