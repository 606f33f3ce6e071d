"""Checkpoints of a run: the newest few, and the best by held-out loss."""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diffusion_jax.runs import RunFailed
from diffusion_jax.training.state import TrainState

_policies = ocp.training.preservation_policies
_METRIC = "held_out_loss"


class Checkpoints:
    """The checkpoints/ folder of a run, as a context: saving goes on in the background."""

    def __init__(self, folder: pathlib.Path, keep: int = 2, *, writing: bool):
        """Opens the folder.

        Args:
          folder: made if it does not exist.
          keep: how many of the newest to keep.
          writing: True for the one trainer of the run: it clears what a killed one left
            half written. A reader must not, lest it clears what is being written.
        """
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics[_METRIC],
            reverse=True,  # Lower is better.
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=_policies.AnyPreservationPolicy(
                [_policies.LatestN(n=keep), best]
            ),
            cleanup_tmp_directories=writing,
        )

    def save(self, state: TrainState, held_out_loss: float | None) -> None:
        """Saves in the background; the arrays of `state` may be donated right after."""
        self._checkpointer.wait()
        metrics = None if held_out_loss is None else {_METRIC: held_out_loss}
        self._checkpointer.save_async(
            int(state.step), _saved(state), metrics=metrics, force=True
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest held-out loss; None if none has one."""
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        return min(scored, key=lambda c: c.metrics[_METRIC]).step if scored else None

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, with the shapes, types and shardings of `like`.

        Args:
          step: of a checkpoint that exists.
          like: a state, or `jax.ShapeDtypeStruct`s with shardings in its place.

        Raises:
          RunFailed: if what is on disk is damaged or of another network.
        """
        try:
            return like._replace(**self._checkpointer.load(step, _saved(like)))
        except Exception as error:  # Orbax raises nearly any kind.
            reason = str(error).strip().splitlines() or [""]
            raise RunFailed(
                f"checkpoint {self._checkpointer.directory / str(step)} cannot be read "
                f"({type(error).__name__}: {reason[0][:100]}); remove that folder to go on "
                "from the checkpoint before it"
            ) from error

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._checkpointer.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until all that was saved is on disk."""
        self._checkpointer.close()


def _saved(state: TrainState) -> dict[str, Any]:
    """The parts of a state by name, without one that this run has no use for.

    So a run that was saved before there was such a part can still be read.
    """
    return {name: part for name, part in state._asdict().items() if jax.tree.leaves(part)}


def abstract_state(state: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and types of a tree, each array to lie as `sharding` says."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
