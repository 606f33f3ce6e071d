"""Averages rebuilt from snapshots against the same averages tracked, on the digits run.

The run of configs/digits.py tracks the averages of lengths 0.05 and 0.1, whose snapshots
are used, and others, whose last value is what is to be rebuilt. Errors are distances of all
weights together, over the distance of that average from the nearer of the two snapshots
at the end: what one would be off without rebuilding.
"""

import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
from record import Figure, record

from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runs import ema_snapshots, weight_files
from diffusion_jax.runs.ema import Moment, rebuilding_coefficients
from diffusion_jax.training import train

CONFIG = str(pathlib.Path(__file__).parent.parent / "configs" / "digits.py")
KEPT, WANTED = (0.05, 0.1), (0.03, 0.08, 0.15, 0.2)


def rebuilt() -> Iterator[Figure]:
    """For 10, 25 and 50 moments of the run, two snapshots each."""
    config = load_config(CONFIG)
    config.ema.stds = (*KEPT, *WANTED)
    config.training.eval_every = config.training.sample_every = 0
    config.training.checkpoint_every = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "run"
        state = train.train(config, folder)
        saved = {
            moment: flat(weight_files.read(path).params)
            for moment, path in ema_snapshots.moments(folder).items()
            if moment.std in KEPT
        }
    end = config.training.num_steps
    every = sorted({moment.step for moment in saved})
    for std in WANTED:
        tracked = flat(weight_files.named(state.emas[f"std:{std}"]))
        nearest = min(np.linalg.norm(saved[Moment(end, s)] - tracked) for s in KEPT)
        for count in (10, 25, 50):
            chosen = every[:: -len(every) // count][:count]
            moments = [m for m in saved if m.step in chosen]
            weights, misfit = rebuilding_coefficients(moments, Moment(end, std))
            found = sum(w * saved[m] for w, m in zip(weights, moments, strict=True))
            error = np.linalg.norm(found - tracked)
            name = f"std {std} from {count} moments"
            yield f"{name}: error over the nearest snapshot's", error / nearest, ""
            relative = error / np.linalg.norm(tracked)
            yield f"{name}: error over the weights", relative, ""
            yield f"{name}: misfit of the density", misfit, ""


def flat(arrays: dict) -> np.ndarray:
    """All weights as one vector."""
    return np.concatenate([np.asarray(arrays[n], float).ravel() for n in sorted(arrays)])


if __name__ == "__main__":
    record(rebuilt)
