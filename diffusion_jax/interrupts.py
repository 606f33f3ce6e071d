"""Ctrl-C: the first one asks the job to save and stop, a second one leaves at once."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Stop:
    """What a long job looks at between its steps."""

    wanted: bool = False


@contextlib.contextmanager
def stop_on_interrupt(say: Callable[[str], None]) -> Iterator[Stop]:
    """Within this context Ctrl-C sets `stop.wanted` instead of raising.

    Raising is no choice: it may strike inside the compiler, or inside a callback of a
    running program, and crash the process.
    """
    stop = Stop()

    def ask(*_: Any) -> None:
        if stop.wanted:
            leave()
        stop.wanted = True
        say(
            "stopping at the next point where all can be saved; Ctrl-C again leaves at once"
        )

    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only.
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def leave() -> None:
    """Ends the process with status 130, without the clean-up that would wait or crash."""
    if sys.stdout.isatty():
        sys.stdout.write("\033[?25h\n")  # The progress bar has hidden the cursor.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(130)
