"""Seconds that the pieces of a job take."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """The seconds of each piece of work, by its name, in the order of the work.

    Attributes:
      seconds: a list for each name; the first of a compiled piece includes compilation.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add a piece that took this many seconds."""
        self.seconds.setdefault(name, []).append(seconds)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the piece of work within this context."""
        began = time.monotonic()
        yield
        self.add(name, time.monotonic() - began)
