"""This project beside PyTorch and diffusers: the same work, weights and machine, in turns.

    make bench

Each side has a process of its own (ours.py, theirs.py), which waits while the other is
timed. First both show that they compute the same; then they take turns, and a figure is
the median of the ratios of neighbours. (What both compile is kept in .venv-parity, so that
only the first run waits for it: --compile.) Then whole commands (commands.py), and how far
the machine's own limits are: FLOP as XLA counts them over the fastest matrix product,
bytes over the fastest copy.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # Two sides share a GPU.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from commands import start_up, whole_training
from record import ROOT, Figure, record
from worker import Worker

from diffusion_jax.config import to_json
from diffusion_jax.jobs.command_line import load_config

TURN = 0.4  # Seconds, at least, of one side at a time.
SECONDS = 6.0  # Of all turns of a variant, about.
FEW, MANY = 4, 11  # Rounds,
LONG = 20.0  # of what takes less than that; of the rest three.
PLAIN = ("eager", "channels_last")
ALL = (*PLAIN, "compile channels_last")
GPU = ("channels_last", "compile channels_last")


class Case(NamedTuple):
    """Work of `ours.py` and `theirs.py`.

    Attributes:
      work: a function of both.
      config: whose network.
      batch: images at a time.
      options: of the work.
      rounding: the largest difference between both sides that is rounding.
      target: what is wanted of the best variant's time over ours.
      variants: of theirs.
    """

    work: str
    config: str
    batch: int
    options: dict[str, Any]
    rounding: float
    target: str
    variants: tuple[str, ...]

    def __str__(self) -> str:
        words = (self.work, self.config, self.batch, *self.options.values())
        return " ".join(map(str, words))


DDIM = {"sampler": "ddim", "steps": 50}
DDPM = {"sampler": "ddpm", "steps": 1000}
CPU_CASES = (
    Case("forward", "cifar10", 8, {}, 1e-4, ">= 1.1", ALL),
    Case("forward", "digits", 64, {}, 1e-4, ">= 0.9", ALL),
    Case("train", "cifar10", 8, {"steps": 1}, 1e-3, ">= 1.0", ALL),
    Case("train", "digits", 64, {"steps": 20}, 1e-3, ">= 0.9", ALL),
    Case("sample", "digits", 64, DDIM, 1e-3, ">= 1.2", PLAIN),
    Case("sample", "cifar10", 4, DDIM, 1e-3, ">= 1.2", PLAIN[1:]),
    Case("sample", "digits", 64, DDPM, 0, ">= 1.5", PLAIN[1:]),
    Case("bound", "digits", 64, {"steps": 50}, 1e-3, "", PLAIN[1:]),
    Case("load", "cifar10", 128, {"kind": "memory"}, 1e-6, "", ("0 workers", "2 workers")),
    Case("load", "cifar10", 128, {"kind": "files"}, 1e-6, "", ("2 workers",)),
)
# bfloat16 has 8 bits: what is equal here differs by some of the last of them.
GPU_CASES = (
    Case("forward", "cifar10", 128, {}, 0.1, "", GPU),
    Case("train", "cifar10", 128, {"steps": 10}, 0.05, ">= 1.3", GPU),
    Case("train", "cifar10", 512, {"steps": 5}, 0.05, ">= 1.3", GPU),
    Case("train", "digits", 64, {"steps": 100}, 0.05, ">= 1.3", GPU),
    Case("sample", "cifar10", 128, DDIM, 0.05, ">= 1.5", GPU[1:]),
    Case("sample", "digits", 64, DDIM, 0.05, ">= 1.5", GPU[1:]),
    Case("sample", "digits", 64, DDPM, 0, ">= 1.5", GPU[1:]),
)


def as_json(case: Case, dtype: str) -> dict[str, Any]:
    """The config, with one moving average and no warm-up, as the other side has it."""
    config = load_config(str(ROOT / "configs" / f"{case.config}.py"))
    config.data.batch_size = case.batch
    config.ema = dataclasses.replace(config.ema, stds=(), more_decays=())
    config.optimizer = dataclasses.replace(config.optimizer, warmup_steps=0)
    config.model = dataclasses.replace(config.model, dtype=dtype)
    return json.loads(to_json(config))


def in_turns(ours: Worker, theirs: Worker) -> tuple[list[float], list[float], list[float]]:
    """Their seconds over ours, turn by turn; ours; the largest memory of each, GiB."""

    def turn(*repeats: int) -> list[dict[str, Any]]:
        sides = zip((ours, theirs), repeats, strict=True)
        return [side.ask(do="time", repeats=n) for side, n in sides]

    once = turn(1, 1)
    seconds = [said["seconds"] for said in once]
    if sum(seconds) > LONG:
        turns = [once, turn(1, 1), turn(1, 1)]
    else:  # The first does not count: memory is being taken.
        turns = []
        repeats = [max(1, round(TURN / each)) for each in seconds]
        each = sum(n * each for n, each in zip(repeats, seconds, strict=True))
        while len(turns) < min(MANY, max(FEW, round(SECONDS / each))):
            turns.append(turn(*repeats))
    ratios = [b["seconds"] / a["seconds"] for a, b in turns]
    memory = [said["memory"] / 2**30 for said in turns[-1]]
    return ratios, [a["seconds"] for a, _ in turns], memory


def limits(dtype: str) -> dict[str, float]:
    """The fastest matrix product, FLOP/s, and copy, bytes/s, that either side makes."""
    best = dict.fromkeys(("matmul", "copy"), 0.0)
    for script in ("ours.py", "theirs.py"):
        worker = Worker(script)
        for work in best:
            amount = worker.ask(do="prepare", work=work, dtype=dtype)["amount"]
            worker.ask(do="time", repeats=2)
            seconds = [worker.ask(do="time", repeats=3)["seconds"] for _ in range(3)]
            best[work] = max(best[work], amount / min(seconds))
        worker.close()
    return best


def question(case: Case, dtype: str, folder: str) -> dict[str, Any]:
    config = as_json(case, dtype)
    return {"work": case.work, "config": config, "folder": folder, **case.options}


def agreeing(
    case: Case, variant: str, dtype: str, folder: str
) -> tuple[Worker, list[Figure]]:
    """Theirs, prepared after ours; how far both differ, if their results are compared."""
    theirs = Worker("theirs.py")
    asked = {**question(case, dtype, folder), "variant": variant, "dtype": dtype}
    said = theirs.ask(do="prepare", **asked)
    if "gap" not in said:
        return theirs, []
    assert said["gap"] < case.rounding, (case, variant, said)
    return theirs, [(f"{case}: {variant}, largest difference", said["gap"], "")]


def compiled(cases: list[Case], dtype: str) -> Iterator[Figure]:
    """What takes long to compile is kept for the comparison."""
    pairs = [(case, v) for case in cases for v in case.variants if "compile" in v]
    for case, variant in pairs:
        with tempfile.TemporaryDirectory() as folder:
            ours = Worker("ours.py")
            ours.ask(do="prepare", **question(case, dtype, folder))
            ours.close()
            theirs, difference = agreeing(case, variant, dtype, folder)
            theirs.close()
        yield from difference


def compared(case: Case, dtype: str, limit: dict[str, float]) -> Iterator[Figure]:
    ours, best, mine = Worker("ours.py"), {}, []
    with tempfile.TemporaryDirectory() as folder:
        said = ours.ask(do="prepare", **question(case, dtype, folder))
        for variant in case.variants:
            theirs, difference = agreeing(case, variant, dtype, folder)
            yield from difference
            found, seconds, memory = in_turns(ours, theirs)
            mine += seconds
            best[variant] = statistics.median(found)
            yield f"{case}: {variant} over ours, time", best[variant], ""
            yield f"{case}: {variant} over ours, least", min(found), ""
            yield f"{case}: {variant} over ours, most", max(found), ""
            yield f"{case}: {variant}, largest memory, GiB", memory[1], ""
            theirs.close()
        yield f"{case}: best of theirs over ours, time", min(best.values()), case.target
        seconds = statistics.median(mine)
        yield f"{case}: ours, seconds", seconds, ""
        yield f"{case}: ours, largest memory, GiB", memory[0], ""
        if "flops" in said:
            each = seconds / case.options.get("steps", 1)
            share = said["flops"] / each / limit["matmul"]
            wanted = ">= 0.45" if (case.batch, dtype) == (512, "bfloat16") else ""
            yield f"{case}: ours, share of the fastest matrix product", share, wanted
            share = said["bytes"] / each / limit["copy"]
            yield f"{case}: ours, share of the fastest copy", share, ""
    ours.close()


def networks(cases: list[Case], dtype: str) -> Iterator[Figure]:
    limit = limits(dtype)
    yield "limit: matrix product, GFLOP/s", limit["matmul"] / 1e9, ""
    yield "limit: copy, GB/s", limit["copy"] / 1e9, ""
    for case in cases:
        yield from compared(case, dtype, limit)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases that begin with this")
    parser.add_argument("--gpu", action="store_true", help="the cases for a GPU")
    parser.add_argument("--compile", action="store_true", help="only what takes minutes")
    options = parser.parse_args()
    of_device, dtype = (GPU_CASES, "bfloat16") if options.gpu else (CPU_CASES, "float32")
    chosen = [case for case in of_device if str(case).startswith(options.only)]
    of_cases = compiled if options.compile else networks
    parts: list[Any] = [functools.partial(of_cases, chosen, dtype)] if chosen else []
    if not options.compile:
        commands = (start_up, whole_training)
        parts += [f for f in commands if f.__name__.startswith(options.only)]
    if not parts:
        names = [*map(str, of_device), start_up.__name__, whole_training.__name__]
        parser.error(f"--only {options.only!r} is the beginning of none of {names}")
    record(
        *parts,
        **{name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
    )
