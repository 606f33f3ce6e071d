"""metrics.jsonl, TensorBoard and others: the numbers of a run, one line at a time."""

import contextlib
import json
import math
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from PIL import Image

from diffusion_jax.runtime import files, first_process


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Hide a module that nobody has imported yet, as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _hidden("torch"):  # tensorboardX would import it: two seconds, and none of it used.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import image as summary_image
    from tensorboardX.summary import scalar


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that a kill or an editor has torn."""
    lines = map(_parsed, _texts(path))
    return [line for line in lines if line is not None]


def losses_by_step(path: pathlib.Path, name: str) -> dict[int, float]:
    """Return the finite values of one name ("held_out_loss") in a metrics.jsonl."""
    found = {line["step"]: line[name] for line in read_metrics(path) if name in line}
    return {
        step: value
        for step, value in found.items()
        if type(value) in (int, float) and math.isfinite(value)
    }


def _texts(path: pathlib.Path) -> list[str]:
    return files.read_text(path, "replace").splitlines() if path.exists() else []


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = files.parse_json(text)
    except ValueError:
        return None
    known = isinstance(line, dict) and type(line.get("step")) is int and line["step"] >= 0
    return line if known and all(map(_is_written, line.values())) else None


def _is_written(value: Any) -> bool:
    """Return whether `MetricLog.write` may have written this: numbers, by name or alone."""
    if isinstance(value, dict):
        return all(map(_is_number, value.values()))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


class Sink(Protocol):
    """A place that gets the numbers and pictures of a run besides metrics.jsonl."""

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Take numbers of this step."""

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Take a picture, uint8 [H, W, 3]."""

    def sync(self) -> None:
        """Put all that was taken on disk."""

    def close(self) -> None:
        """Put everything on disk, and close."""


class TensorBoard:
    """The events of a run for TensorBoard.

    There is no thread of TensorBoard's own: a full disk is an error where it is met.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int):
        """Begin a file of events, of steps after `start_step`."""
        (workdir / "tensorboard").mkdir(exist_ok=True)
        suffix = f".{secrets.token_hex(4)}"  # A name that no link can wait under.
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"), suffix)
        # TensorBoard forgets what an earlier file says of later steps.
        forget = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.write_event(
            event_pb2.Event(wall_time=time.time(), step=start_step + 1, session_log=forget)
        )

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Write numbers of this step."""
        for name, number in values.items():
            self._show(step, scalar(name, number))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write a picture."""
        self._show(step, summary_image(name, pixels, dataformats="HWC"))

    def _show(self, step: int, summary: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        self._events.write_event(event)

    def sync(self) -> None:
        """Put all that was written on disk."""
        self._events.flush()

    def close(self) -> None:
        """Put everything on disk, and close."""
        self._events.close()


class MetricLog:
    """Writer of a run's metrics.jsonl, which passes all of it on to TensorBoard and others.

    In other processes than the first one it writes nothing.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int, *others: Sink):
        """Go on after `start_step`: later lines, of steps to be done again, are removed."""
        path = workdir / "metrics.jsonl"
        texts = _texts(path)
        kept = []
        for i, text in enumerate(texts):
            line = _parsed(text)
            torn = line is None and i == len(texts) - 1
            if not torn and (line is None or line["step"] <= start_step):
                kept.append(text + "\n")
        files.write_whole(path, "".join(kept))
        self._file = files.open_for_appending(path)
        self._sinks: list[Sink] = []
        if first_process.is_here():
            self._sinks = [TensorBoard(workdir, start_step), *others]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a line with these values at this step: numbers, or dicts of numbers."""
        self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        self._file.flush()
        flat = dict[str, float]()
        for name, value in values.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            flat |= {f"{name}/{part}" if part else name: number for part, number in parts}
        for sink in self._sinks:
            sink.numbers(step, flat)

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Pass a picture on."""
        if self._sinks:
            with Image.open(path) as image:
                pixels = np.asarray(image)
            for sink in self._sinks:
                sink.picture(step, name, pixels)

    def sync(self) -> None:
        """Put all that was written on disk."""
        for sink in self._sinks:
            sink.sync()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Put everything on disk, and close."""
        self._file.close()
        for sink in self._sinks:
            sink.close()
