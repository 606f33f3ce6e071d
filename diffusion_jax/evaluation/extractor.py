"""Features of any number of examples by one compiled program."""

import jax
import numpy as np

from diffusion_jax.evaluation.feature_networks import FeatureNetwork
from diffusion_jax.runtime import cpu, devices

BATCH = 64  # Examples that a network sees at once, or a few more for many devices.


class Extractor:
    """Features of examples by one compiled program, whose batches have one size."""

    def __init__(self, network: FeatureNetwork, mesh: jax.sharding.Mesh):
        """Begin; the first batch of a shape compiles."""
        self.network = network
        self._mesh, self._size = mesh, -(-BATCH // mesh.size) * mesh.size
        self._params = jax.device_put(network.params, devices.replicated(mesh))
        self._apply = jax.jit(network.apply, compiler_options=cpu.compiler_options())

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        """Return the features of any number of examples, and their logits beside them.

        Args:
          examples: as files have them, [N, ...].

        Returns:
          float32 [N, D + K].
        """
        rows = []
        for begin in range(0, len(examples), self._size):
            here = examples[begin : begin + self._size]
            given = devices.put_filled(self._mesh, here, self._size)
            found = [x for x in self._apply(self._params, given) if x is not None]
            rows.append(np.concatenate(devices.to_host(found), axis=1)[: len(here)])
        return np.concatenate(rows)
