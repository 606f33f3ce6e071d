"""The state that a run starts with, or goes on from."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import Checkpoints, abstract, parts_of, with_parts
from diffusion_jax.runs.record import Record, new_record, read_record
from diffusion_jax.runs.weight_files import Weights
from diffusion_jax.runtime import devices, processes
from diffusion_jax.runtime.errors import RunFailed
from diffusion_jax.runtime.text import say
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.train_state import (
    TrainState,
    equal_averages,
    init_state,
    shardings,
)


class FirstState(NamedTuple):
    """The state that a run starts with, or goes on from.

    Attributes:
      state: of the run.
      step: train steps done.
      record: the contents of run.json.
      is_unsaved: whether the state holds weights of another run, which a later start is
        not given again.
    """

    state: TrainState
    step: int
    record: Record
    is_unsaved: bool = False


def first_state(
    plan: Plan,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    given: Weights | None = None,
) -> FirstState:
    """Return the newest checkpoint of a run that is whole, or a new state.

    Args:
      plan: of the run.
      workdir: its folder.
      checkpoints: its checkpoints.
      mesh: the devices.
      given: weights to start with, if there is no checkpoint to go on from.

    Raises:
      RunFailed: if no checkpoint can be read, or those that run.json tells of are gone.
      BadRequest: if the examples are not those that the run was started with.
    """
    config, shapes = plan.config, abstract_state(plan)
    lie = shardings(mesh, shapes)
    count = sum(x.size for x in jax.tree.leaves(shapes.params))
    _say_sizes(plan, count)
    found = checkpoints.restore(parts_of(abstract(shapes, lie)))
    with processes.together():
        old = read_record(workdir)
        if found is None and old is not None and old.step:
            raise RunFailed(
                f"{run_folder.checkpoints_path(workdir)} is empty, but run.json says that "
                f"the run has a checkpoint of step {old.step:,}; put it back, or begin "
                "again in another --workdir"
            )
        old = None if found is None else old
        record = new_record(config, plan.data, workdir, old, count)
    if found is not None:
        checkpoints.set_aside(found.damaged)
        say(f"resuming {workdir} at step {found.step:,}")
        return FirstState(_owned(with_parts(shapes, found.parts)), found.step, record)
    if run_folder.config_path(workdir).exists():
        say(f"{workdir} has no checkpoint yet: starting at step 0")
    state = jax.jit(_initial(plan), out_shardings=lie)()
    if given is None:
        return FirstState(state, 0, record)
    say(f"starting from the {given.kind} weights of step {given.step:,} of --init_from")
    params = devices.to_host(given.params)
    put = jax.jit(lambda params: params, out_shardings=lie.params)(params)
    state = state._replace(params=put, emas=equal_averages(config, put))
    return FirstState(_owned(state), 0, record, is_unsaved=True)


def _initial(plan: Plan) -> Callable[[], TrainState]:
    config = plan.config
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    return functools.partial(init_state, plan.init_fn, optimizer, config)


def abstract_state(plan: Plan) -> TrainState:
    """Return the shapes and types of the state of a run."""
    return jax.eval_shape(_initial(plan))


def _say_sizes(plan: Plan, num_parameters: int) -> None:
    data = plan.data
    classes = f", of {len(data.class_names):,} classes" if data.class_names else ""
    say(
        f"network: {num_parameters:,} parameters; data: {len(data.train):,} examples to "
        f"train on, {len(data.held_out):,} held out{classes}"
    )


@jax.jit
def _owned(state: TrainState) -> TrainState:
    """A copy in memory of the device's own.

    On a CPU what comes from a file may lie in NumPy's memory, which is given back when
    the state is donated to the first step, while its results lie there.
    """
    return jax.tree.map(jnp.copy, state)
