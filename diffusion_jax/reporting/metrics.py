"""metrics.jsonl and TensorBoard: the numbers of a run, one line a time."""

import json
import pathlib
from typing import Any

from tensorboardX import SummaryWriter


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one torn by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class MetricLog:
    """Appends to a run's metrics.jsonl and its TensorBoard events."""

    def __init__(self, workdir: pathlib.Path, start_step: int):
        """Goes on after `start_step`: later lines, of steps to be done again, go."""
        path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= start_step]
        # By way of a second file: a kill in between leaves the old or the new one.
        cut = path.with_suffix(".tmp")
        cut.write_text("".join(json.dumps(line) + "\n" for line in kept))
        cut.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, with these values at this step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Everything is on disk after this."""
        self._file.close()
        self._board.close()
