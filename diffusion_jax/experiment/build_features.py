"""The feature network of a name, of those that need no file."""

import numpy as np

from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import feature_networks
from diffusion_jax.evaluation.feature_networks import FeatureNetwork
from diffusion_jax.evaluation.principal_components import (
    num_examples,
    principal_components,
)
from diffusion_jax.experiment.feature_names import EFFICIENTNET
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.text import say


def make_network(name: str, source: Source, order: np.ndarray) -> FeatureNetwork:
    """Return a network by its name.

    Args:
      name: of `network_name`.
      source, order: examples that principal components are made of, mixed.

    Raises:
      BadRequest: if it cannot be made.
    """
    if name == EFFICIENTNET:
        return feature_networks.efficientnet_lite0()
    size = source[order[:1]][0].size
    chosen = order[: num_examples(len(order), size)]
    say(f"{name}: principal components of {len(chosen):,} examples")
    with values_refused():
        return principal_components(source[chosen], int(name.removeprefix("pca")))
