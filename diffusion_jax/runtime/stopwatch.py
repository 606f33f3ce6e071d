"""Seconds that the pieces of a job take."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """The seconds of each piece of work by its name, in the order of the first pieces.

    Attributes:
      seconds: for each name a list, a number for each piece of that name; where a program
        is compiled, the first number includes the compilation.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add a piece of work that took this many seconds."""
        self.seconds.setdefault(name, []).append(seconds)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the work within this context as a piece, unless it raises an exception."""
        began = time.monotonic()
        yield
        self.add(name, time.monotonic() - began)
