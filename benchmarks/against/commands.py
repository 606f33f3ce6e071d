"""Whole commands: train.py beside diffusers' own example of unconditional training.

The same digits, network, batch and number of steps. Ours logs, keeps its averages and
saves a checkpoint; the example (diffusers_example.py) logs each step, as it is published.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from record import ROOT, Figure
from training import CONFIG, first_step, to_next_line

from diffusion_jax.config import to_json
from diffusion_jax.jobs.command_line import load_config

HERE = pathlib.Path(__file__).parent
ROUNDS = 2
FIRST, LAST = 50, 150  # Steps between which images are counted.


def example(folder: str, steps: int) -> tuple[list[str], pathlib.Path]:
    """The command of theirs, and where it writes its lines."""
    config = load_config(CONFIG)
    config.training.num_steps = steps
    path = pathlib.Path(folder, "config.json")
    path.write_text(to_json(config))
    lines = pathlib.Path(folder, "metrics.jsonl")
    return [
        sys.executable,
        str(HERE / "diffusers_example.py"),
        str(path),
        str(lines),
    ], lines


def own(folder: str, steps: int) -> tuple[list[str], pathlib.Path]:
    """The command of ours: the example has no held-out loss and makes no pictures."""
    off = [f"--config.training.{name}_every=0" for name in ("eval", "sample")]
    command = [sys.executable, "train.py", f"--config={CONFIG}", f"--workdir={folder}/run"]
    number = f"--config.training.num_steps={steps}"
    return [*command, number, *off], pathlib.Path(folder, "run", "metrics.jsonl")


def images_per_second(command: list[str], lines: pathlib.Path) -> tuple[float, float]:
    """Between the lines of FIRST and LAST steps; and the seconds of the whole command."""
    start, times = time.perf_counter(), {}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.01)
        text = lines.read_text().splitlines() if lines.exists() else []
        for line in text[-1:]:
            step = json.loads(line)["step"]
            for wanted in (FIRST, LAST):
                if step >= wanted:
                    times.setdefault(wanted, time.perf_counter())
    assert process.returncode == 0
    batch = load_config(CONFIG).data.batch_size
    rate = (LAST - FIRST) * batch / (times[LAST] - times[FIRST])
    return rate, time.perf_counter() - start


def whole_training() -> Iterator[Figure]:
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for side, command in (("ours", own), ("theirs", example)):
            with tempfile.TemporaryDirectory() as folder:
                rate, whole = images_per_second(*command(folder, LAST + FIRST))
            rates[side].append(rate)
            seconds[side].append(whole)
    name = "whole training digits 64"
    for side in rates:
        yield f"{name}: {side}, images/s", statistics.median(rates[side]), ""
        whole = statistics.median(seconds[side])
        yield f"{name}: {side}, seconds of {LAST + FIRST} steps", whole, ""
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
    yield f"{name}: ours over theirs, images/s", statistics.median(ratios), ""


def start_up() -> Iterator[Figure]:
    """From the command to the first line of metrics, with a line for each step."""
    flag = "--config.training.log_every=1"
    name = "start up digits 64"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        cold = first_step(f"--workdir={folder}/cold", flag)
        warm = [first_step(f"--workdir={folder}/{i}", flag) for i in range(2)]
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
    yield f"{name}: ours, cold, seconds to the first step", cold, ""
    yield f"{name}: ours, warm, seconds to the first step", min(warm), "<= 10"
    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            seconds, process = to_next_line(*example(folder, 10_000))
            found.append(seconds)
            process.kill()
            process.wait()
    yield f"{name}: theirs, seconds to the first step", min(found), ""
