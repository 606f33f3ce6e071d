"""Lengths and intervals in epochs, as train steps."""

import dataclasses
import fractions
import math
from typing import Any

from diffusion_jax.config import TrainingConfig
from diffusion_jax.runtime.errors import BadRequest

# Fields in train steps, and those in epochs that count instead.
IN_EPOCHS = {
    "num_steps": "epochs",
    "eval_every": "eval_every_epochs",
    "likelihood_every": "likelihood_every_epochs",
    "checkpoint_every": "checkpoint_every_epochs",
    "sample_every": "sample_every_epochs",
    "quality_every": "quality_every_epochs",
}
_MOST_STEPS = 2**31 - 1


def are_used(training: TrainingConfig) -> bool:
    """Return whether anything is in epochs."""
    return any(getattr(training, name) for name in IN_EPOCHS.values())


def in_train_steps(
    training: TrainingConfig, num_examples: int, batch_size: int
) -> TrainingConfig:
    """Return the same lengths and intervals in train steps, and 0 for those in epochs.

    An epoch of N examples is N / B train steps of B examples, which need not be whole, so
    that e epochs are

        ceil(e N / B)

    train steps: as many as it takes to go through the examples e times. Rounded up, an
    interval of one epoch does not come more often than there are epochs.

    Args:
      training: with lengths and intervals in either.
      num_examples: N, to train on; 0 if it is not known, and then what is in train steps
        counts.
      batch_size: B.

    Raises:
      BadRequest: if a number of train steps is too large.
    """
    values: dict[str, Any] = {}
    for steps, epochs in IN_EPOCHS.items():
        wanted = getattr(training, epochs)
        if not wanted:
            continue
        values[epochs] = 0.0
        if num_examples:
            # The decimal digits of the config, not the nearest binary number.
            exact = fractions.Fraction(repr(wanted)) * num_examples / batch_size
            values[steps] = math.ceil(exact)
            if values[steps] > _MOST_STEPS:
                raise BadRequest(
                    f"training.{epochs} ({wanted:g}) is {values[steps]:,} train steps; at "
                    f"most {_MOST_STEPS:,} are possible"
                )
    return dataclasses.replace(training, **values)


def without_effect(training: TrainingConfig) -> list[str]:
    """Return, in words, the lengths and intervals in train steps that epochs replace."""
    usual, said = TrainingConfig(), []
    for steps, epochs in IN_EPOCHS.items():
        given, wanted = getattr(training, steps), getattr(training, epochs)
        if wanted and given != getattr(usual, steps):
            said.append(
                f"training.{steps} ({given:,}) has no effect: training.{epochs} is "
                f"{wanted:g}; for train steps set that to 0"
            )
    return said
