"""Progress of a long job: a live bar on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from diffusion_jax.runtime import first_process
from diffusion_jax.runtime.text import going_on, shown

_LINE_EVERY = 10.0  # Seconds between lines where there is no terminal.


class ProgressBar:
    """Progress of a job, its rate, and the time left.

    The rate is measured from the first report on, so that it leaves compilation out.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        start: int = 0,
        *,
        above: "ProgressBar | None" = None,
    ):
        """Show a bar of progress.

        Args:
          what: the name of the job.
          total: units of the whole job.
          unit: the name of the units, in the plural ("steps").
          start: units that are done already.
          above: a bar below which this one is shown; see `part`.
        """
        self._what, self._total, self._unit = what, total, unit
        self._first: tuple[float, int] | None = None
        self._announced = False
        self._last_line = time.monotonic()
        self._console: Console = above._console if above else _console()
        self._bar: Progress = above._bar if above else _bar(self._console)
        self._task = self._bar.add_task(what, total=total, completed=start, text="")
        if above is None:
            self._bar.start()

    def report(self, done: int, text: str = "") -> None:
        """Report that `done` units are done, with any other text to show beside that."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        rate = self.rate(done)
        parts = [text] if text else []
        if rate:
            parts.append(f"{amount(rate)} {self._unit}/s")
            left = (self._total - done) / rate
            parts.append(f"{duration(left)} left")
            if not self._announced and left > 3 and now - self._first[0] > 1.0:
                self._announced = True
                self.say(
                    f"{self._what}: about {duration(left)} left "
                    f"for {self._total - done:,} {self._unit}"
                )
        self._bar.update(self._task, completed=done, text="  ".join(parts))
        if self._bar.disable and now - self._last_line > _LINE_EVERY:
            self._last_line = now
            self.say("  ".join([f"{self._what} {done:,}/{self._total:,}", *parts]))

    def rate(self, done: int) -> float | None:
        """Return the units per second since the first report; None before a second one."""
        if self._first is None or done <= self._first[1]:
            return None
        return (done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one; of processes the first one does."""
        if not first_process.is_here():
            return
        with going_on():
            self._console.print(Text(shown(line)))

    @contextlib.contextmanager
    def part(self, what: str, total: int, unit: str) -> Iterator["ProgressBar"]:
        """Show a bar for a part of this job below its own, while this job waits."""
        bar = ProgressBar(what, total, unit, above=self)
        try:
            yield bar
        finally:
            with going_on():
                self._bar.remove_task(bar._task)

    def close(self) -> None:
        """Remove the bar, and leave the terminal as it was."""
        with going_on():
            self._bar.stop()


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not (console.is_terminal and first_process.is_here()),
    )


def amount(rate: float) -> str:
    """Return "1,240", "12.3" or "0.054": a rate to as many digits as can be trusted."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Return "8 s", "1 min 40 s", "3 h 5 min", "2 d 4 h"."""
    whole = round(seconds)
    for large, size, small, unit in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // unit} {small}"
    return f"{whole} s"
