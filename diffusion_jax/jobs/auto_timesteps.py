"""The timesteps of --spacing auto: the best for a checkpoint, and kept beside it."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.evaluation.optimal_timesteps import (
    Statistics,
    best_timesteps,
    last_costs,
    make_measure,
    prior_costs,
    shares_of,
    step_costs,
)
from diffusion_jax.evaluation.timestep_scan import TimestepScan
from diffusion_jax.experiment import build
from diffusion_jax.jobs.batches import means, over_examples, select
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import check_data_there, load_plan
from diffusion_jax.runs.weight_files import Weights
from diffusion_jax.runs.weights import identity_of
from diffusion_jax.runtime import devices, files, locks, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.text import say

_NUM_IMAGES = 128  # Training images that are measured, at most.


def with_timesteps(
    workdir: pathlib.Path,
    config: Config,
    weights: Weights,
    beside: pathlib.Path,
) -> Config:
    """The config with the best `sampling.timesteps` for these weights in it."""
    sampling = config.sampling
    of_ddpm = sampling.variance if sampling.sampler == "ddpm" else ""
    timesteps = choose(
        workdir,
        config,
        weights,
        sampling.steps,
        variance=of_ddpm or config.process.variance,
        clip=sampling.threshold != "none",
        beside=beside,
    )
    chosen = dataclasses.replace(sampling, timesteps=tuple(timesteps.tolist()))
    return dataclasses.replace(config, sampling=chosen)


def check_can_choose(workdir: pathlib.Path, config: Config) -> None:
    """Raise BadRequest if nothing is kept for any weights, and the data are not there."""
    if not any(run_folder.auto_timesteps_path(workdir).glob("*.npz")):
        check_data_there(workdir, config)


def choose(
    workdir: pathlib.Path,
    config: Config,
    weights: Weights,
    num: int,
    *,
    variance: str,
    clip: bool,
    beside: pathlib.Path,
) -> np.ndarray:
    """The `num` timesteps with the best bound for these weights.

    The statistics that decide are measured once, on up to 128 training images, and kept in
    the run's auto_timesteps/, or, if that cannot be written, in a folder of that name
    where the results go.

    Args:
      workdir: the run.
      config: its config.
      weights: of the network.
      num: K, 2 .. T.
      variance: of the reverse steps.
      clip: whether the predicted x_0 is clipped to [-1, 1].
      beside: that folder.

    Returns:
      float64 [K], falling.
    """
    process = build.make_schedule(config.process)
    about = identity_of(weights)
    kind = f"{about['weights']}_{about['checkpoint_step']:06d}".replace(":", "")
    name = f"{kind}_{variance}{'' if clip else '_unclipped'}"
    own, other = (
        folder / name for folder in (run_folder.auto_timesteps_path(workdir), beside)
    )
    about = {**about, "variance": variance, "clip": clip, "num_images": _NUM_IMAGES}
    for out in (own, other):
        if result_path(out, ".npz").is_dir():
            raise BadRequest(f"{out}.npz is a folder, but must be a file; move it away")
    kept = _read(result_path(own, ".npz"), about) or _read(
        result_path(other, ".npz"), about
    )
    out = own if files.is_writable(own.parent) else other
    if not processes.of_first(kept is not None):
        say(
            f"choosing timesteps by the likelihood of up to {_NUM_IMAGES} training images, "
            f"once for these weights: {out}.npz will keep the statistics"
        )
        kept = _measure(workdir, config, weights.params, about, out, variance, clip)
    chosen: list[float] = []
    if kept is not None:  # As in the first process.
        best, _ = best_timesteps(
            step_costs(process, variance, kept),
            last_costs(process, variance, kept),
            prior_costs(process, kept.second_moment),
            num,
        )
        chosen = best.tolist()
    timesteps = np.array(processes.of_first(chosen))
    shown = ", ".join(f"{t:g}" for t in timesteps)
    say(f"chose the timesteps {shown}")
    return timesteps


def _measure(
    workdir: pathlib.Path,
    config: Config,
    params: Any,
    about: dict[str, Any],
    out: pathlib.Path,
    variance: str,
    clip: bool,
) -> Statistics | None:
    plan, mesh = load_plan(workdir, config), devices.make_mesh()
    total = plan.model.process.num_timesteps
    measure = make_measure(plan.model, variance, clip=clip)
    # With the same noise everywhere, what differs between neighbours is not chance.
    scan = TimestepScan(measure, total, mesh, total, same_noise=True)
    images = select(
        kind_of(config.data),
        plan.data.split("train"),
        _NUM_IMAGES,
        config.data.batch_size,
        mesh,
    )
    size = images.size

    def row(batch: Batch, indices: np.ndarray, on_progress: Any) -> np.ndarray:
        _, _, found = scan.run(params, batch, indices, size, on_progress)
        second_moment = np.full((total, 1), np.square(batch.x).mean())
        return np.concatenate([*found, second_moment], axis=1)

    partial = Partial(out, {**about, "batch_size": size})
    partial.begin()
    with locks.locked(partial.folder, "writing to"):
        rows = over_examples(partial, "timesteps", images, total, row)
        if not rows:
            return None
        mean = means(rows, len(images.chosen), size)
        w = len(shares_of(variance))
        last, fractions, errors = np.split(mean[:, :-1], [-2 * w, -w], axis=1)
        found = Statistics(last, fractions, errors, float(mean[0, -1]))
        with files.replacing(result_path(out, ".npz")) as file:
            digest = _digest(found)
            np.savez(file, about=json.dumps(about), sha256=digest, **found._asdict())
        partial.remove()
    return found


def _digest(found: Statistics) -> str:
    return sha256(np.asarray(part, np.float64) for part in found)


def _read(path: pathlib.Path, about: dict[str, Any]) -> Statistics | None:
    """Return the statistics that are kept, if they are of these weights."""
    try:
        with files.open_regular(path) as file, np.load(file) as kept:
            found = Statistics(*(kept[name] for name in Statistics._fields))
            found = found._replace(second_moment=float(found.second_moment))
            whole = str(kept["sha256"]) == _digest(found)
            return found if whole and json.loads(str(kept["about"])) == about else None
    except Exception:  # A damaged archive makes NumPy raise nearly any kind.
        return None
