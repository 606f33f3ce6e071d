"""Failures of a run, each with the checkpoint that there is to go on from."""

import contextlib
import pathlib
from collections.abc import Iterator

from diffusion_jax.data.images import Unreadable
from diffusion_jax.data.pipeline import WorkerDied
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import RunFailed
from diffusion_jax.training.train_state import TrainState

_SHARED_MEMORY = "/dev/shm"  # The locks of Python's processes lie here.


@contextlib.contextmanager
def explained(workdir: pathlib.Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Turn what stops a run within this context into RunFailed, with a remedy."""
    try:
        yield
    except WorkerDied as error:
        latest = latest_checkpoint_text(checkpoints)
        raise RunFailed(
            f"{error}; {latest}; give the same command again to resume"
        ) from error
    except Unreadable as error:
        raise RunFailed(
            f"{error}; {latest_checkpoint_text(checkpoints)}; repair the image, or leave "
            "such images out with --config.data.unreadable=skip"
        ) from error
    except OSError as error:
        if not files.is_machine_failure(error):
            raise
        latest = latest_checkpoint_text(checkpoints)
        if files.is_full(_SHARED_MEMORY) and not files.is_full(workdir):
            raise RunFailed(
                f"{_SHARED_MEMORY} is full, which the processes that load data need; "
                f"{latest}; make room, or do without: --config.data.num_workers=0"
            ) from error
        raise RunFailed(
            f"the run cannot be written ({error.strerror}); {latest}; when "
            "that is fixed, give the same command again"
        ) from error


def latest_checkpoint_text(checkpoints: Checkpoints, before: int | None = None) -> str:
    """Return which checkpoint is the newest, or the newest of a step before that one."""
    steps = [s for s in checkpoints.steps if before is None or s < before]
    if not steps:
        return "there is no checkpoint" + (" before it" if before else "")
    return f"the newest checkpoint is that of step {max(steps):,}" + (
        "" if before is None else ", whose loss was finite"
    )


def check_an_update_was_made(state: TrainState) -> None:
    """Raise RunFailed if there were updates, and every one of them was skipped."""
    step = int(state.step)
    if step and int(state.tally.skipped) == step:
        raise RunFailed(
            f"all {step:,} updates were skipped, because the loss or the gradient was not "
            "finite: the weights are the initial ones; take a lower "
            "optimizer.learning_rate, or look at the data, and begin again in another "
            "--workdir"
        )
