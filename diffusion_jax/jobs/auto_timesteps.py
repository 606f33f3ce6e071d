"""The timesteps of --spacing auto: the best for a checkpoint, and kept beside it."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import fixed_choice
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
from diffusion_jax.experiment.setup import load_data, make_plan
from diffusion_jax.jobs.batches import batch_size, means, over_images
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import check_data_there, check_same_data
from diffusion_jax.runtime import devices, files, locks
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

_NUM_IMAGES = 128  # Of the training images.


def with_timesteps(
    workdir: pathlib.Path,
    config: Config,
    params: Any,
    about: dict[str, Any],
    beside: pathlib.Path,
) -> Config:
    """The config with the best `sampling.timesteps` for these weights in it."""
    sampling = config.sampling
    of_ddpm = sampling.variance if sampling.sampler == "ddpm" else ""
    timesteps = choose(
        workdir,
        config,
        params,
        about,
        sampling.steps,
        variance_type=of_ddpm or config.process.variance,
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
    params: Any,
    about: dict[str, Any],
    num: int,
    *,
    variance_type: str,
    clip: bool,
    beside: pathlib.Path,
) -> np.ndarray:
    """The `num` timesteps with the best bound for these weights.

    What they are chosen by is measured once, on up to 128 training images, and kept in
    the run's auto_timesteps/, or, if that cannot be written, in a folder of that name
    where the results go.

    Args:
      workdir: the run.
      config: its config.
      params: the weights.
      about: of these weights, as JSON can: a name for the file, and what decides them.
      num: K, 2 .. T.
      variance_type: of the reverse steps.
      clip: whether the predicted x_0 is clipped to [-1, 1].
      beside: that folder.

    Returns:
      float64 [K], falling.
    """
    schedule = build.make_schedule(config.process)
    kind = f"{about['weights']}_{about['checkpoint_step']:06d}".replace(":", "")
    name = f"{kind}_{variance_type}{'' if clip else '_unclipped'}"
    own, other = (
        folder / name for folder in (run_folder.auto_timesteps_path(workdir), beside)
    )
    about = {**about, "variance": variance_type, "clip": clip, "num_images": _NUM_IMAGES}
    for out in (own, other):
        if result_path(out, ".npz").is_dir():
            raise BadRequest(f"{out}.npz is a folder, where a file is kept; move it away")
    kept = _read(result_path(own, ".npz"), about) or _read(
        result_path(other, ".npz"), about
    )
    out = own if files.is_writable(own.parent) else other
    if kept is None:
        say(
            f"choosing timesteps by the likelihood of up to {_NUM_IMAGES} training images; "
            f"once for these weights: {out}.npz will keep what it takes"
        )
        kept = _measure(workdir, config, params, about, out, variance_type, clip)
    timesteps, _ = best_timesteps(
        step_costs(schedule, variance_type, kept),
        last_costs(schedule, variance_type, kept),
        prior_costs(schedule, kept.second_moment),
        num,
    )
    shown = ", ".join(f"{t:g}" for t in timesteps)
    say(f"chose the timesteps {shown}")
    return timesteps


def _measure(
    workdir: pathlib.Path,
    config: Config,
    params: Any,
    about: dict[str, Any],
    out: pathlib.Path,
    variance_type: str,
    clip: bool,
) -> Statistics:
    check_data_there(workdir, config)
    plan, mesh = load_data(make_plan(config)), devices.make_mesh()
    check_same_data(workdir, plan)
    total = plan.schedule.num_timesteps
    measure = make_measure(
        plan.apply_fn,
        plan.schedule,
        prediction_type=config.process.prediction,
        variance_type=variance_type,
        clip=clip,
    )
    # With the same noise everywhere, what differs between neighbours is not chance.
    scan = TimestepScan(measure, total, mesh, total, same_noise=True)
    kind, images = kind_of(config.data), plan.data.split("train")
    chosen = np.sort(fixed_choice(len(images), _NUM_IMAGES))
    size = batch_size(len(chosen), config.data.batch_size, mesh)

    def row(batch: Batch, indices: np.ndarray, on_progress: Any) -> np.ndarray:
        x0 = batch.x
        _, _, found = scan.run(params, x0, indices, size, on_progress)
        second_moment = np.full((total, 1), np.square(x0).mean())
        return np.concatenate([*found, second_moment], axis=1)

    partial = Partial(out, {**about, "batch_size": size})
    partial.begin()
    with locks.locked(partial.folder, "writing to"):
        rows = over_images(partial, "timesteps", kind, images, chosen, size, total, row)
        mean = means(rows, len(chosen), size)
        w = len(shares_of(variance_type))
        last, fractions, errors = np.split(mean[:, :-1], [-2 * w, -w], axis=1)
        found = Statistics(last, fractions, errors, float(mean[0, -1]))
        with files.replacing(result_path(out, ".npz")) as file:
            digest = _digest(found)
            np.savez(file, about=json.dumps(about), sha256=digest, **found._asdict())
        partial.remove()
    return found


def _digest(found: Statistics) -> str:
    parts = (np.ascontiguousarray(part, np.float64).tobytes() for part in found)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read(path: pathlib.Path, about: dict[str, Any]) -> Statistics | None:
    """What is kept, if it is of these weights."""
    try:
        with files.open_regular(path) as file, np.load(file) as kept:
            found = Statistics(*(kept[name] for name in Statistics._fields))
            found = found._replace(second_moment=float(found.second_moment))
            whole = str(kept["sha256"]) == _digest(found)
            return found if whole and json.loads(str(kept["about"])) == about else None
    except Exception:  # Of a damaged archive nearly anything can come.
        return None
