"""Snapshots of the power-function averages at about 50 moments of a run.

From them an average of nearly any length is rebuilt when the training is over. Each is a
file of weights in ema_snapshots/, step_00000500_std0.05.safetensors.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import weight_files
from diffusion_jax.runs.ema import STD, Moment, rebuilding_coefficients
from diffusion_jax.runs.weight_files import NotWeights, Weights
from diffusion_jax.runtime import devices, files
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.text import say

_FILE = re.compile(r"step_(\d+)_std(0\.\d+)\.safetensors")


def interval(config: Config) -> int:
    """Steps between snapshots of a run that is started with this config; 0: none."""
    wanted = config.ema.snapshots
    if not wanted or not config.ema.stds:
        return 0
    return max(1, round(config.training.num_steps / wanted))


def num_bytes(config: Config, every: int, num_parameters: int) -> int:
    """Return the size of all snapshots of a run, at the end."""
    moments = -(-config.training.num_steps // every) if every else 0
    return moments * len(config.ema.stds) * num_parameters * 4


def save(workdir: pathlib.Path, emas: Mapping[str, Any], step: int, config: Config) -> None:
    """Write the snapshots of this step."""
    for std in map(float, config.ema.stds):
        params = devices.to_host(emas[f"{STD}{std}"])
        path = run_folder.snapshots_path(workdir) / f"step_{step:08d}_std{std}.safetensors"
        weight_files.write(path, Weights(params, f"{STD}{std}", step), config)


def moments(workdir: pathlib.Path) -> dict[Moment, pathlib.Path]:
    """The snapshots of a run, in the order of their steps."""
    found = {}
    for path in sorted(run_folder.snapshots_path(workdir).glob("*")):
        match = _FILE.fullmatch(path.name)
        if match and int(match[1]) and 0 < float(match[2]) < 12**-0.5:
            found[Moment(int(match[1]), float(match[2]))] = path
    return found


def delete_after(workdir: pathlib.Path, step: int) -> None:
    """Delete the snapshots of later steps, which are to be done again.

    What a kill has left half written is deleted too.
    """
    files.delete_unfinished(run_folder.snapshots_path(workdir))
    for path in run_folder.snapshots_path(workdir).glob(".step_*"):
        path.unlink(missing_ok=True)
    for moment, path in moments(workdir).items():
        if moment.step > step:
            path.unlink(missing_ok=True)


def rebuild(
    workdir: pathlib.Path, name: str, like: Mapping[str, Any], step: int | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """An average that was not tracked, at the time of a snapshot.

    Args:
      workdir: a run with snapshots.
      name: of it, "std:0.08".
      like: the network's arrays, or what has their shapes, by name.
      step: of the snapshot; the newest unless given.

    Returns:
      Its arrays by name, float32, and its step.

    Raises:
      BadRequest: if there is no snapshot of this step, with those that are.
      RunFailed: naming a snapshot that cannot be read, or is of another network.
    """
    shapes = {key: array.shape for key, array in like.items()}
    paths = moments(workdir)
    if step is not None:
        steps = sorted({m.step for m in paths})
        if step not in steps:
            raise BadRequest(
                f"{name} is rebuilt from snapshots, and {workdir} has none of step "
                f"{step:,}, but of {', '.join(f'{s:,}' for s in steps)}"
            )
        paths = {m: path for m, path in paths.items() if m.step <= step}
    wanted = Moment(max(m.step for m in paths), float(name.removeprefix(STD)))
    weights, misfit = rebuilding_coefficients(list(paths), wanted)
    total: dict[str, np.ndarray] = {}
    for weight, path in zip(weights, paths.values(), strict=True):
        try:
            arrays = weight_files.read(path).params
        except NotWeights as error:
            raise RunFailed(
                f"snapshot {path} cannot be read ({error}); remove it to rebuild {name} "
                "from the others"
            ) from error
        if {key: array.shape for key, array in arrays.items()} != shapes:
            raise RunFailed(
                f"snapshot {path} is of another network; remove it to rebuild {name} from "
                "the others"
            )
        for key, array in arrays.items():
            total[key] = total.get(key, 0) + weight * array.astype(np.float64)
    say(
        f"{name} at step {wanted.step:,}, rebuilt from {len(paths)} snapshots with an "
        f"error of {100 * misfit:.2g} % in its density"
    )
    return {key: array.astype(np.float32) for key, array in total.items()}, wanted.step
