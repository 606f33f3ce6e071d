"""Principal components of examples as a feature network that needs nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.evaluation.feature_networks import FeatureNetwork, Features
from diffusion_jax.runtime.hashing import sha256

_MOST_EXAMPLES = 10_000
_MOST_VALUES = 2**27  # Numbers of all examples together, in float32 half a GiB.


def num_examples(total: int, size: int) -> int:
    """Return how many of `total` examples of `size` numbers the components are made of."""
    return min(total, _MOST_EXAMPLES, max(2, _MOST_VALUES // size))


def principal_components(examples: np.ndarray, num: int) -> FeatureNetwork:
    """Return a network whose features are the first `num` principal components.

    The features of an example x are (x - mean) W / s: W [d, num] has the orthonormal axes
    of largest variance, and s^2 is the mean variance along them, so that distances are
    Euclidean ones in the space of the axes, in units that the range of x does not change.

    Args:
      examples: what the components are made of, as files have it, [N, ...].
      num: number of components, at most the numbers of an example.

    Raises:
      ValueError: for `num` examples or fewer, or if all are the same.
    """
    from sklearn.decomposition import PCA  # It takes a second to import.

    flat = examples.reshape(len(examples), -1).astype(np.float64)
    if len(flat) <= num:
        raise ValueError(f"{num} principal components need more than {num} examples")
    if not (flat != flat[0]).any():
        raise ValueError("principal components need examples that differ")
    solver = "full" if min(flat.shape) <= 1024 else "randomized"
    pca = PCA(num, svd_solver=solver, random_state=0).fit(flat)
    scale = np.sqrt(pca.explained_variance_.mean())
    params = {
        "mean": jnp.asarray(pca.mean_, jnp.float32),
        "axes": jnp.asarray(pca.components_.T / scale, jnp.float32),
    }
    identity = sha256([f"{num} {examples.dtype} {examples.shape}", examples])
    return FeatureNetwork(f"pca{num}", identity, num, 0, params, _components)


def _components(params: Any, x: jax.Array) -> Features:
    flat = x.reshape(len(x), -1).astype(jnp.float32) - params["mean"][None]
    return Features(jnp.matmul(flat, params["axes"], precision="highest"), None)
