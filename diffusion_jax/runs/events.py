"""events.jsonl of a run: starts, stops, skipped updates and warnings, with their times.

Its lines stay when a resumed run does train steps again; --overwrite deletes it.
"""

import contextlib
import json
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from diffusion_jax.runtime import files
from diffusion_jax.runtime.text import utc_now

STARTED, RESUMED, STOPPED, FINISHED = "started", "resumed", "stopped", "finished"
FAILED, SKIPPED, WARNING, CHANGED = "failed", "skipped", "warning", "changed"
KINDS = (STARTED, RESUMED, CHANGED, WARNING, SKIPPED, STOPPED, FAILED, FINISHED)


class Event(NamedTuple):
    """Something that happened to a run.

    Attributes:
      kind: one of `KINDS`.
      step: train steps done by then.
      text: what happened, in words; for a start or resume the command, "" if unknown.
      time: date and time, UTC.
    """

    kind: str
    step: int
    text: str
    time: str


def path_of(workdir: pathlib.Path) -> pathlib.Path:
    """Return the path of the events of a run."""
    return workdir / "events.jsonl"


def add(workdir: pathlib.Path, kind: str, step: int, text: str, time: str = "") -> None:
    """Append an event, of this moment unless a time is given."""
    event = Event(kind, int(step), text, time or utc_now())
    line = json.dumps(event._asdict()) + "\n"
    with files.open_for_appending(path_of(workdir)) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # A kill has torn the last line.
                line = "\n" + line
        file.write(line.encode())


def read(workdir: pathlib.Path) -> list[Event]:
    """Return the events of a run, without lines that a kill or an editor has torn.

    Raises:
      OSError: if there is a file that cannot be read.
    """
    path = path_of(workdir)
    texts = files.read_text(path, "replace").splitlines() if path.exists() else []
    found = map(_parsed, texts)
    return [event for event in found if event is not None]


def _parsed(text: str) -> Event | None:
    try:
        event = Event(**files.parse_json(text))
    except (ValueError, TypeError):
        return None
    kinds: tuple[Any, ...] = (str, int, str, str)
    fits = all(type(value) is kind for value, kind in zip(event, kinds, strict=True))
    return event if fits and event.kind in KINDS and event.step >= 0 else None


class Notes:
    """Events that wait for the folder, or for the train step, that they belong to."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: list[tuple[str, str, str]] = []

    def keep(self, kind: str, text: str) -> None:
        """Keep an event of this moment."""
        self._kept.append((kind, text, utc_now()))

    def write(self, workdir: pathlib.Path, step: int) -> None:
        """Append what was kept to the events of a run, as of this train step."""
        while self._kept:
            kind, text, time = self._kept.pop(0)
            add(workdir, kind, step, text, time)


@contextlib.contextmanager
def noting_warnings() -> Iterator[Notes]:
    """Keep each warning that is shown within this context."""
    notes, show = Notes(), warnings.showwarning

    def keep(message: Warning | str, *rest: Any, **named: Any) -> None:
        notes.keep(WARNING, str(message))
        show(message, *rest, **named)

    warnings.showwarning = keep  # type: ignore[assignment]
    try:
        yield notes
    finally:
        if warnings.showwarning is keep:
            warnings.showwarning = show
