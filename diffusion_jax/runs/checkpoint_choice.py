"""The choice of a checkpoint of a run: by its step, the newest, or the best."""

import pathlib
import re

from diffusion_jax.config import Config
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import losses_by_step
from diffusion_jax.runtime.errors import BadRequest

NEWEST, BEST = "newest", "best"
HELP = "Checkpoint to use: its step, newest, or best (by training.best_by)."
_STEP = re.compile("[0-9]{1,18}")


def check_step(flag: str, text: str) -> str:
    """Return "newest", "best" or the number of a train step, as `chosen_step` takes it.

    Raises:
      BadRequest: naming the flag, for another text.
    """
    plain = text.replace(",", "")
    if text in (NEWEST, BEST) or _STEP.fullmatch(plain):
        return plain
    raise BadRequest(f"{flag} {text!r} must be the number of a step, newest or best")


def chosen_step(
    workdir: pathlib.Path, config: Config, text: str, flag: str = "--step"
) -> int | None:
    """Return which checkpoint of a run is meant; None for the newest that can be read.

    Args:
      workdir: the run.
      config: its config; `training.best_by` decides what "best" is by.
      text: of `check_step`.
      flag: the flag that gave `text`, for messages.

    Raises:
      BadRequest: for the best one, if no checkpoint has what it is by.
    """
    if text != BEST:
        return None if text == NEWEST else int(text)
    by = config.training.best_by
    losses = losses_by_step(workdir / "metrics.jsonl", by)
    scored = [step for step in run_folder.saved_steps(workdir) if step in losses]
    if not scored:
        raise BadRequest(
            f"{flag} best: {workdir} has no checkpoint with a {by} in metrics.jsonl; name "
            f"a step: {run_folder.steps_there(workdir)}"
        )
    return min(scored, key=lambda step: losses[step])


def of_source(source: pathlib.Path, text: str) -> int | None:
    """Return `chosen_step` of an --init_from, which may also be a file.

    Raises:
      BadRequest: for any other than the newest of a file, which holds one.
    """
    if source.is_dir():
        return chosen_step(source, run_folder.read_config(source), text, "--init_step")
    if text != NEWEST:
        raise BadRequest(
            f"--init_step {text}: --init_from {source} is not a run; leave --init_step out"
        )
    return None
