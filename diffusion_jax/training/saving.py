"""Saving a run: its checkpoints, and their record in run.json."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.metrics_log import MetricLog
from diffusion_jax.runs.record import Record, write_record
from diffusion_jax.runtime import processes
from diffusion_jax.training.train_state import TrainState

_READING_SHARE = 0.01  # Share of the time between checkpoints, for reading them back.


class Saver:
    """The saving of states in the background; run.json names those that are on disk."""

    def __init__(
        self,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        record: Record,
        log: MetricLog,
        on_host: Mapping[str, Any],
    ):
        """Begin to measure the time.

        Args:
          workdir: the run.
          checkpoints: its checkpoints.
          record: the contents of run.json.
          log: of what leads up to a checkpoint.
          on_host: the parts of a state, for reading checkpoints back; see
            `Checkpoints.read_back`.
        """
        self.record, self.checkpoints = record, checkpoints
        self._workdir, self._log, self._on_host = workdir, log, on_host
        self._began = self._saved_at = time.monotonic()
        self._wall_time, self._reading_took = record.wall_time_s, 0.0
        self._waiting: tuple[int, float] | None = None

    def save(self, state: TrainState) -> None:
        """Save in the background."""
        self._log.sync()  # No checkpoint before the lines that lead up to it.
        self.checkpoints.save(state)
        self._note_saved()  # The checkpoint before is on disk now.
        seconds = self._wall_time + time.monotonic() - self._began
        self._waiting = int(state.step), round(seconds, 1)

    def note_if_saved(self) -> None:
        """Note in run.json what was saved, if it is on disk."""
        if self._waiting is not None and not processes.most(self.checkpoints.is_saving):
            self._note_saved()

    def wait(self) -> None:
        """Wait until what was saved is on disk, and noted."""
        self.checkpoints.wait()
        self._note_saved()

    def choose_steps_per_dispatch(self, chosen: int) -> None:
        """Note in run.json how many train steps a dispatch has."""
        self.record.steps_per_dispatch = chosen
        write_record(self._workdir, self.record)

    def _note_saved(self) -> None:
        if self._waiting is not None:
            (step, wall_time), self._waiting = self._waiting, None
            self._read_back(step)
            self.record.step, self.record.wall_time_s = step, wall_time
            write_record(self._workdir, self.record)

    def _read_back(self, step: int) -> None:
        """Read back the first checkpoint of a start, and others where it costs little."""
        began = time.monotonic()
        interval, self._saved_at = processes.most(began - self._saved_at), began
        if self._reading_took <= _READING_SHARE * interval:  # Nothing before the first.
            self.checkpoints.read_back(step, self._on_host)
            self._reading_took = processes.most(time.monotonic() - began)
