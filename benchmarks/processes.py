"""The cost of a second process: two processes of one device each, and one of two.

The whole loop of the digits, by the command, in turns. The rate is that of the last log
line, which leaves out compilation; medians; record.py says where they go.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from record import ROOT, Figure, record

STEPS = 150
ROUNDS = 3
ARGUMENTS = (
    "--config=configs/digits.py",
    f"--config.training.num_steps={STEPS}",
    f"--config.training.log_every={STEPS}",
    "--config.training.eval_every=0",
    "--config.training.sample_every=0",
    "--config.training.checkpoint_every=0",
    "--config.ema.snapshots=0",
)


def rate(folder: pathlib.Path, count: int) -> float:
    """Train steps per second of this many processes, which have two devices in all."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    processes = []
    for i in range(count):
        place = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}")
        place = (*place, f"--process_id={i}") if count > 1 else ()
        line = [sys.executable, "train.py", *ARGUMENTS, f"--workdir={folder}", *place]
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // count)}
        processes.append(
            subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        )
    if any([process.wait() for process in processes]):
        raise RuntimeError(f"{count} processes failed")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["steps_per_sec"]


def loop() -> Iterator[Figure]:
    """The digits' own network and batch."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(ROUNDS):
            for count, found in rates.items():
                found.append(rate(pathlib.Path(name) / f"{count}_{turn}", count))
    one, two = (statistics.median(rates[count]) for count in (1, 2))
    yield "digits: steps/s of one process with two devices", one, ""
    yield "digits: steps/s of two processes with one device each", two, ""
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    yield "digits: two processes over one, steps/s", statistics.median(ratios), ""


if __name__ == "__main__":
    record(loop)
