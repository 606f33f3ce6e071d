"""The losses of denoisers without training on the data of a run."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import fixed_choice
from diffusion_jax.evaluation.reference_losses import (
    ReferenceLosses,
    mean_and_variance,
    reference_losses,
)
from diffusion_jax.experiment.build import make_distance
from diffusion_jax.experiment.setup import Plan

_MOST_EXAMPLES, _AT_A_TIME = 2000, 100


def references_of(plan: Plan) -> ReferenceLosses | None:
    """Return the losses that the held-out loss of a run is to be compared with.

    The moments are those of up to 2,000 examples to train on, always the same ones. Of the
    hybrid loss they are of its part of the prediction; the variational bound has none.
    """
    config = plan.config
    if config.loss.kind == "variational":
        return None
    mean, variance = mean_and_variance(_examples(plan))
    distance = make_distance(config, plan.model)
    return reference_losses(plan.model, mean, variance, distance)


def _examples(plan: Plan) -> Iterator[np.ndarray]:
    split, kind = plan.data.split("train"), kind_of(plan.config.data)
    chosen = np.sort(fixed_choice(len(split), _MOST_EXAMPLES))
    for begin in range(0, len(chosen), _AT_A_TIME):
        batch = split[chosen[begin : begin + _AT_A_TIME]]
        yield np.asarray(kind.to_network(jnp.asarray(batch.x)))
