"""Ctrl-C and SIGTERM as requests to save and stop; a second Ctrl-C leaves at once."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from diffusion_jax.runtime import processes


@dataclasses.dataclass
class Stop:
    """The signals that a long job looks at between its steps.

    A signal reaches one process, and all stop at the same point: of several, each calls
    `begin` and `settle`, or `update`, in the same order, and `wanted` changes there only.

    Attributes:
      wanted: whether the job is to stop.
      by_system: whether SIGTERM asked, as when a machine is taken away; not the user.
      asked: what this process was told: 0 nothing, 1 to stop by the system, 2 by the user.
    """

    wanted: bool = False
    by_system: bool = False
    asked: int = 0
    _answer: Any = None

    def ask(self, asked: int) -> None:
        """Ask the job to stop; see `asked`. The first to ask counts."""
        self.asked = self.asked or asked
        if not processes.are_many():
            self._take(self.asked)

    def begin(self) -> None:
        """Begin to tell the other processes, behind what the devices were given before."""
        if processes.are_many():
            self._answer = processes.most_later(self.asked)

    def settle(self) -> None:
        """Take what `begin` has found, once for each."""
        if self._answer is not None:
            answer, self._answer = int(self._answer), None
            self._take(answer)

    def update(self) -> None:
        """Tell the other processes, and take what they say."""
        self.begin()
        self.settle()

    def check(self) -> None:
        """Raise Stopped if the job is to stop."""
        self.update()
        if self.wanted:
            raise Stopped

    def _take(self, asked: int) -> None:
        if asked and not self.wanted:
            self.wanted, self.by_system = True, asked == 1


class Stopped(Exception):
    """A request of somebody who waits for the job to stop."""


@contextlib.contextmanager
def stop_on_interrupt(say: Callable[[str], None], *, sigterm: bool) -> Iterator[Stop]:
    """Let Ctrl-C set `stop.wanted` within this context, instead of raising.

    Raising is no choice: it may strike inside the compiler, or inside a callback of a
    running program, and crash the process. A thread is told of the signal: the main one
    may wait for a device, and Python's own handlers run there.

    Args:
      say: is told what the user should know.
      sigterm: treat SIGTERM likewise; otherwise it ends the process, as usual.
    """
    stop = Stop()

    def watch() -> None:
        was_interrupted = False
        while signals := os.read(told, 1):
            is_interrupt = signals[0] == signal.SIGINT
            if is_interrupt and was_interrupted:
                leave()
            if signals[0] in numbers and not (stop.asked and not is_interrupt):
                again = "; Ctrl-C again leaves at once" if is_interrupt else ""
                say(f"stopping at the next point where everything can be saved{again}")
                was_interrupted |= is_interrupt
                stop.ask(2 if is_interrupt else 1)  # The first decides the exit status.
        os.close(told)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only.
        return
    numbers = (signal.SIGINT, signal.SIGTERM) if sigterm else (signal.SIGINT,)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    threading.Thread(target=watch, daemon=True).start()
    pipe_before = signal.set_wakeup_fd(tell)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe_before)
        os.close(tell)


def leave() -> None:
    """End the process with status 130, without the clean-up that would wait or crash."""
    if sys.stdout.isatty():
        sys.stdout.write("\033[?25h\n")  # The progress bar has hidden the cursor.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(130)
