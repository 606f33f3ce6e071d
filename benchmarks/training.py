"""What the training loop adds to the bare compiled step, and a resume to a start.

The loop of a real run of the digits, logging and checkpointing, in turns with its own
program called without it; and the whole command, from the start to its first step, new
and resumed in turns. Medians; record.py says where they go.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from record import ROOT, Figure, record

from diffusion_jax.config import TrainingConfig
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training.train import prepared_trainer

CONFIG = str(ROOT / "configs" / "digits.py")
DISPATCH = 25  # Steps: about a second.
TURN = 4  # Dispatches in a row on each side: short, against what else the machine does.
CYCLES = {5000: 2, 1000: 3}  # Steps between checkpoints, the default's and the digits'.


def loop(interval: int) -> Iterator[Figure]:
    """Digits, batch 64: turns of 100 steps, and a checkpoint each `interval` steps.

    Logging and snapshots go on in both; the held-out loss and samples, which have their
    own intervals, are off.
    """
    config = load_config(CONFIG)
    steps = TURN * DISPATCH
    cycle = interval // steps  # Turns; a checkpoint in the middle of the last.
    rounds = CYCLES[interval] * cycle
    config.training.num_steps = (rounds + 2) * steps
    config.ema.snapshots = rounds // 2 + 1  # All dispatches are of the same length.
    config.training.steps_per_dispatch = DISPATCH
    config.training.eval_every = config.training.sample_every = 0
    config.training.checkpoint_every = interval
    bare, whole, loading = [], [], []
    calls, since, load_seconds = 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with Checkpoints(folder, writing=True) as checkpoints:
            trainer = prepared_trainer(make_plan(config), folder, checkpoints, Stop())
            program, load = trainer.train_steps, trainer._load

            def timed_load(*arguments):
                nonlocal load_seconds
                start = time.perf_counter()
                batches = load(*arguments)
                load_seconds += time.perf_counter() - start
                return batches

            def timed(state, batches, count):
                nonlocal calls, since, load_seconds
                assert count == DISPATCH
                if calls % TURN == TURN // 2:  # Checkpoints fall into the middle.
                    jax.block_until_ready(state)
                    if calls > TURN:
                        whole.append(time.perf_counter() - since)
                        loading.append(load_seconds)
                    copy = jax.tree.map(jnp.copy, state)
                    copy, _ = jax.block_until_ready(program(copy, batches, count))
                    since = time.perf_counter()
                    for _ in range(TURN):
                        copy, _ = program(copy, batches, count)
                    jax.block_until_ready(copy)
                    bare.append(time.perf_counter() - since)
                    since, load_seconds = time.perf_counter(), 0.0
                calls += 1
                return program(state, batches, count)

            trainer.train_steps, trainer._load = timed, timed_load
            trainer.run()
    # The turns begin and end between two checkpoints: the last of a cycle has one.
    neighbours = [(b + c) / 2 for b, c in zip(bare, bare[1:], strict=False)]
    saving = range(cycle - 1, len(whole), cycle)
    cycles = [range(i, i + cycle) for i in range(0, len(whole) - cycle + 1, cycle)]
    ratios = [sum(neighbours[i] for i in c) / sum(whole[i] for i in c) for c in cycles]
    relative = [w / b for w, b in zip(whole, neighbours, strict=True)]
    without = statistics.median(r for i, r in enumerate(relative) if i not in saving)
    turn = statistics.median(bare)
    cost = turn * (statistics.median(relative[i] for i in saving) - without)
    yield f"train, {interval}: digits steps/s, batch 64", steps / turn, ">= 16"
    loop_over_bare = statistics.median(ratios)
    yield f"train, {interval}: loop over bare step, images/s", loop_over_bare, ">= 0.97"
    yield f"train, {interval}: the same without a checkpoint", 1 / without, ">= 0.97"
    share = statistics.median(t / w for t, w in zip(loading, whole, strict=True))
    yield f"train, {interval}: data wait, share of the loop", share, "<= 0.01"
    yield f"train, {interval}: seconds that a checkpoint costs", cost, "not promised"
    wanted = "<= 0.02" if interval == TrainingConfig().checkpoint_every else "not promised"
    yield (
        f"train, {interval}: a checkpoint, share of the interval",
        cost / (turn * cycle),
        wanted,
    )


def to_next_line(
    command: list[str], lines: pathlib.Path
) -> tuple[float, subprocess.Popen[bytes]]:
    """Seconds from the start of a command to a new line of metrics; it goes on."""
    before = len(lines.read_text().splitlines()) if lines.exists() else 0
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not lines.exists() or len(lines.read_text().splitlines()) <= before:
        assert process.poll() is None, command
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    assert json.loads(lines.read_text().splitlines()[before])["loss"]
    return seconds, process


def first_step(*flags: str) -> float:
    """Seconds from the start of train.py to its first line of metrics."""
    workdir = pathlib.Path(flags[0].partition("=")[2])
    command = [sys.executable, "train.py", f"--config={CONFIG}", *flags]
    seconds, process = to_next_line(command, workdir / "metrics.jsonl")
    process.terminate()
    assert process.wait() == 0
    return seconds


def resume() -> Iterator[Figure]:
    """The demo's command with a warm compilation cache; a line of metrics each step."""
    often = ("--config.training.log_every=1", "--config.training.eval_every=0")
    with tempfile.TemporaryDirectory() as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/cache"
        run = (f"--workdir={name}/run", *often)
        first_step(f"--workdir={name}/warm", *often)
        first_step(*run)
        pairs = []
        for i in range(7):
            fresh = first_step(f"--workdir={name}/{i}", *often)
            pairs.append((fresh, first_step(*run)))
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
    ratio = statistics.median(b / a for a, b in pairs)
    yield (
        "start: seconds to the first step",
        statistics.median(a for a, _ in pairs),
        "<= 10",
    )
    yield "start: resumed over new, to the first step", ratio, "<= 1.3"


if __name__ == "__main__":
    record(*(functools.partial(loop, interval) for interval in CYCLES), resume)
