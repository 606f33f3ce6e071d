"""This project beside PyTorch and diffusers: the same work, weights and machine, in turns.

    make bench-against

Each side has a process of its own (ours.py, theirs.py), which waits while the other is
timed. First both show that they compute the same; then they take turns, and a figure is
the median of the ratios of neighbours.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from record import ROOT, Figure, record
from worker import Worker

from diffusion_jax.command_line import load_config
from diffusion_jax.config import to_json

TURN = 1.0  # Seconds, at least, of one side at a time.
ROUNDS = 5
VARIANTS = ("eager", "channels_last", "compile", "compile channels_last")
# (work, config, batch, options, the largest difference that is rounding, what we want)
CASES = (
    ("forward", "cifar10", 8, {}, 1e-4, 1.1),
    ("forward", "digits", 64, {}, 1e-4, 0.9),
    ("train", "cifar10", 8, {"steps": 1}, 1e-3, 1.0),
    ("train", "digits", 64, {"steps": 20}, 1e-3, 0.9),
    ("sample", "digits", 64, {"sampler": "ddim", "steps": 50}, 1e-3, 1.2),
    ("sample", "cifar10", 8, {"sampler": "ddim", "steps": 50}, 1e-3, 1.2),
    ("sample", "digits", 64, {"sampler": "ddpm", "steps": 1000}, 0, 1.5),
)


def as_json(name: str, batch: int, dtype: str) -> dict[str, Any]:
    config = load_config(str(ROOT / "configs" / f"{name}.py"))
    config.data.batch_size = batch
    config.ema = dataclasses.replace(config.ema, stds=(), more_decays=())
    config.optimizer = dataclasses.replace(config.optimizer, warmup_steps=0)
    config.model = dataclasses.replace(config.model, dtype=dtype)
    return json.loads(to_json(config))


def ratios(ours: Worker, theirs: Worker) -> tuple[list[float], float]:
    """Their seconds over ours, turn by turn, and our seconds."""
    repeats, found, mine = {}, [], []
    for side in (ours, theirs):
        once = side.ask(do="time", repeats=1)["seconds"]
        repeats[side] = max(1, round(TURN / once))
    for _ in range(ROUNDS):
        a, b = (side.ask(do="time", repeats=repeats[side]) for side in (ours, theirs))
        found.append(b["seconds"] / a["seconds"])
        mine.append(a["seconds"])
    return found, statistics.median(mine)


def compared(cases: Any, dtype: str) -> Iterator[Figure]:
    for work, name, batch, options, rounding, target in cases:
        config = as_json(name, batch, dtype)
        case = " ".join([work, name, str(batch), *map(str, options.values())])
        ours, best = Worker("ours.py"), {}
        with tempfile.TemporaryDirectory() as folder:
            asked = {"folder": folder, "work": work, "config": config, **options}
            said = ours.ask(do="prepare", **asked)
            yield f"{case}: ours, seconds to compile", said["seconds"], ""
            for variant in VARIANTS if work != "sample" else VARIANTS[1::2]:
                theirs = Worker("theirs.py")
                other = theirs.ask(do="prepare", variant=variant, dtype=dtype, **asked)
                if "gap" in other:
                    assert other["gap"] < rounding, (case, variant, other)
                    yield f"{case}: {variant}, largest difference", other["gap"], ""
                found, seconds = ratios(ours, theirs)
                best[variant] = statistics.median(found)
                yield f"{case}: {variant}, seconds to compile", other["seconds"], ""
                yield f"{case}: {variant} over ours, time", best[variant], ""
                memory = theirs.ask(do="time", repeats=1)["memory"] / 2**30
                yield f"{case}: {variant}, largest memory, GiB", memory, ""
                theirs.close()
            least = min(best.values())
            yield f"{case}: best of theirs over ours, time", least, f">= {target}"
            yield f"{case}: ours, seconds", seconds, ""
            last = ours.ask(do="time", repeats=1)
            yield f"{case}: ours, largest memory, GiB", last["memory"] / 2**30, ""
            if "flops" in said:
                rate = options.get("steps", 1) / seconds / 1e9
                yield f"{case}: ours, GFLOP/s", said["flops"] * rate, ""
                yield f"{case}: ours, GB/s", said["bytes"] * rate, ""
        ours.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases that begin with this")
    wanted = parser.parse_args().only
    chosen = [c for c in CASES if " ".join(map(str, c[:3])).startswith(wanted)]

    def on_cpu() -> Iterator[Figure]:
        return compared(chosen, "float32")

    record(on_cpu)
