"""Samples of a run that trains, drawn batch by batch until somebody stops it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import SamplingConfig
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.conditioning_augmentation import augmented_samples
from diffusion_jax.experiment import build_sampler
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runtime import devices
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.samplers.chain import Samples, even_frames


def held_out_cond(plan: Plan, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Return the conditions of samples of a run that refines images: of held-out examples.

    Args:
      plan: of the run.
      indices: of the samples, int32 [N]; sample i has the conditions of example i.
    """
    config, held_out = plan.config, plan.data.split("held_out")
    batch = held_out[indices % len(held_out)]
    cond = kind_of(config.data).network_batch(jax.tree.map(jnp.asarray, batch)).cond
    key, level = jax.random.key(config.seed), config.sampling.aug_level
    return jax.tree.map(np.asarray, augmented_samples(key, cond, level, indices))


class Drawing:
    """Chains of one table, whose batches are split over a mesh.

    Attributes:
      table: of the sampler.
      frames: the rows after which a frame is kept.
      size: samples of a batch.
    """

    def __init__(
        self,
        plan: Plan,
        mesh: jax.sharding.Mesh,
        stop: Stop,
        sampling: SamplingConfig,
        num_frames: int = 0,
    ):
        """Make the sampler, which is compiled for the first batch.

        Args:
          plan: of the run.
          mesh: the devices.
          stop: ends a batch that is being drawn when a stop is wanted.
          sampling: how to draw.
          num_frames: frames of the chains that are returned.
        """
        self._mesh, self._stop = mesh, stop
        self._key = jax.random.key(plan.config.seed)
        self.table = build_sampler.make_table(plan.model, sampling)
        self.frames = even_frames(self.table.num_rows, num_frames) if num_frames else ()
        self.size = -(-sampling.batch_size // mesh.size) * mesh.size
        self._sampler = build_sampler.make_sampler(
            plan.config,
            plan.model,
            mesh,
            build_sampler.chain_options(plan.config, self.frames),
            on_progress=lambda calls: self._on_progress(calls),
            in_segments=True,
        )
        self._on_progress: Callable[[int], None] = lambda calls: None

    def draw(
        self,
        params: Any,
        indices: np.ndarray,
        cond: Mapping[str, np.ndarray],
        on_progress: Callable[[int], None],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return samples and the frames of their chains, as the network gives them.

        Args:
          params: of the network.
          indices: of the samples, int32 [size].
          cond: what they are conditioned on.
          on_progress: told the calls of the network that are done.

        Raises:
          Stopped: when a stop is wanted.
        """

        def report(calls: int) -> None:
            on_progress(calls)
            self._stop.check()

        self._on_progress = report
        rows, cond = devices.put_rows(self._mesh, (indices, cond))
        drawn = self._sampler(params, self.table, Samples(self._key, rows), cond)
        self._stop.check()
        samples, frames = devices.to_host(drawn)
        return samples, frames
