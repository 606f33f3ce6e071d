"""The number of train steps of a dispatch: as many as take about a second."""

import math

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of

_SECONDS = 1.0  # Short enough for SIGTERM, long enough that starting it costs nothing.
_MEASURED_SECONDS = 0.5  # Seconds of dispatches that are timed before the choice.
_BATCH_BYTES = 2**25  # Bytes of the batches of one dispatch, at most.
_MOST_STEPS = 100


def most_steps(config: Config) -> int:
    """Steps that one dispatch can have at most: the length of the compiled program's input.

    A function of the config alone, so that every start of a run compiles the same program.
    """
    data, chosen = config.data, config.training.steps_per_dispatch
    if chosen:
        return chosen
    item_bytes = kind_of(data).dtype.itemsize
    batch_bytes = data.batch_size * math.prod(data.shape) * item_bytes
    return max(1, min(_MOST_STEPS, _BATCH_BYTES // batch_bytes))


class Pace:
    """The choice of the number of steps, from dispatches that are timed one by one.

    Attributes:
      chosen: that number; 0 while it is not known yet.
    """

    def __init__(self, most: int, chosen: int = 0):
        """Take `most`, the largest number, and `chosen`, one that was chosen before."""
        self._most, self.chosen = most, min(chosen, most)
        self._asked, self._steps, self._seconds = 1, 0, 0.0
        self._is_first = True

    def steps(self) -> int:
        """Return the number of steps to dispatch next."""
        return self.chosen or self._asked

    def took(self, steps: int, seconds: float) -> None:
        """Take note of how long a dispatch took, from its start to its end."""
        if self.chosen:
            return
        if self._is_first:  # It was compiled as well.
            self._is_first = False
            return
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        self._asked = min(2 * self._asked, self._most)
        if self._seconds >= _MEASURED_SECONDS:
            rate = self._steps / self._seconds
            self.chosen = max(1, min(self._most, round(rate * _SECONDS)))
