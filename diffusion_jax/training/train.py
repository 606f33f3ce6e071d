"""Training, from a config to a finished run folder."""

import dataclasses
import pathlib
import warnings
from typing import NamedTuple

import jax

from diffusion_jax.config import Config, to_sha256
from diffusion_jax.data import sources
from diffusion_jax.diffusion.schedules import OddBetas
from diffusion_jax.experiment import epochs, validation
from diffusion_jax.experiment.setup import Plan, load_data, make_plan
from diffusion_jax.runs import checkpoint_choice, ema_snapshots, events, wandb_log
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.metrics_log import losses_by_step
from diffusion_jax.runs.record import check_examples, read_record
from diffusion_jax.runs.weight_files import Weights
from diffusion_jax.runs.weights import load_for
from diffusion_jax.runtime import devices, files, locks, processes
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import without_effect
from diffusion_jax.runtime.interrupts import Stop, stop_on_interrupt
from diffusion_jax.runtime.stopwatch import Stopwatch
from diffusion_jax.runtime.text import say
from diffusion_jax.training.failures import check_an_update_was_made, explained
from diffusion_jax.training.first_state import first_state
from diffusion_jax.training.periodic import still_due
from diffusion_jax.training.profiling import window_of
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.training.trainer import Extras, Trainer, loss_curve_path


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to start a run, or to go on with it.

    Attributes:
      overwrite: delete the run that is in the folder and start again.
      init_from: another run, or a file of weights, to start a new run with.
      init_weights: which weights of that run; see `weights.check_kind`.
      init_step: which checkpoint of that run; see `checkpoint_choice.check_step`.
      change_learning_rate: an existing run may go on with another learning rate.
      is_smoke: part of a smoke run, which says nothing of going on, nor that it is small.
      profile: FIRST:LAST, train steps of which a profile is made.
      wandb: the project of Weights & Biases that gets the metrics as well.
      command: the command line that asks for it, which the run keeps; "" without one.
    """

    overwrite: bool = False
    init_from: pathlib.Path | None = None
    init_weights: str = "ema"
    init_step: str = checkpoint_choice.NEWEST
    change_learning_rate: bool = False
    is_smoke: bool = False
    profile: str | None = None
    wandb: str | None = None
    command: str = ""


AS_IT_IS = Request()
_FEW_HELD_OUT = 10  # Examples.


class Start(NamedTuple):
    """The plan and the weights that a run starts or goes on with.

    Attributes:
      plan: of the run, its images decoded.
      changed: fields of the config that differ from before, and may.
      initial: weights of `init_from`, for a run without a checkpoint.
    """

    plan: Plan
    changed: list[str]
    initial: Weights | None


def prepare(
    config: Config,
    workdir: pathlib.Path,
    data: sources.DataSet | None = None,
    request: Request = AS_IT_IS,
    *,
    dry_run: bool = False,
) -> Start:
    """Check all that `train` can refuse before it writes, and write nothing.

    Args:
      config, workdir, data, request: of `train`.
      dry_run: do not prepare a tfds set that is not there, and look now whether the
        examples are those of a run that goes on, which `train` does a little later.

    Raises:
      BadRequest: as `train`.
      OSError: naming what cannot be written or deleted.
    """
    if not dry_run:
        processes.check_shared(workdir)
    deletes = _deletes_a_run(request, workdir)
    goes_on = not request.overwrite and run_folder.has_checkpoint(workdir)
    changed: list[str] = []
    validation.check(config)
    with processes.together():
        with warnings.catch_warnings():
            if goes_on:
                warnings.simplefilter("ignore", OddBetas)  # It was said at the start.
            mesh_of(config)
            plan = make_plan(config, data, prepare=not dry_run)
        given, config = config.training, plan.config
        window_of(request.profile, config.training.num_steps)
        if request.wandb is not None:
            wandb_log.check_installed()
        if not deletes:
            changed = run_folder.check_resumable(
                workdir, config, change_learning_rate=request.change_learning_rate
            )
    processes.check_same("the config", to_sha256(config))
    processes.check_same("--profile", str(request.profile))  # It divides the dispatches.
    initial = _initial_weights(config, workdir, request, goes_on=goes_on)
    with processes.together():
        _check_folder(config, workdir, request)
        plan = load_data(plan)
        of_data = sources.fingerprint(plan.data) if processes.are_many() else ""
        if goes_on and dry_run:
            check_examples(plan.config, plan.data, workdir, read_record(workdir))
    processes.check_same("the set of examples", of_data)
    if not goes_on:
        _warn_of_odd_lengths(plan)
        if epochs.are_used(given):
            _say_epochs(plan)
        if not request.is_smoke:
            _say_smaller_grids(plan)
        for said in epochs.without_effect(given) + without_effect(plan.config):
            warnings.warn(said, stacklevel=2)
    return Start(plan, changed, initial)


def _check_folder(config: Config, workdir: pathlib.Path, request: Request) -> None:
    """Refuse a folder that cannot be written, or is in use, or holds what is needed."""
    if config.data.source == "folder":
        _check_not_in_data(config, workdir)
    files.check_can_be_made(workdir)
    locks.check_not_locked(workdir, "training in")
    if _deletes_a_run(request, workdir):
        needed = {"data.path": config.data.path, "data.held_out": config.data.held_out}
        needed |= {"data.label_file": config.data.label_file}
        needed |= {"--init_from": str(request.init_from or "")}
        run_folder.check_deletable(workdir, {k: v for k, v in needed.items() if v})


def _deletes_a_run(request: Request, workdir: pathlib.Path) -> bool:
    return request.overwrite and run_folder.config_path(workdir).exists()


def _initial_weights(
    config: Config, workdir: pathlib.Path, request: Request, *, goes_on: bool
) -> Weights | None:
    source = request.init_from
    if source is None:
        return None
    if _deletes_a_run(request, workdir) and source.resolve() == workdir.resolve():
        raise BadRequest(
            f"--overwrite would delete {workdir}, and with it --init_from; name another "
            "--workdir"
        )
    if goes_on:
        _refuse_weights_of_no_use(config, workdir)
        say("--init_from is not used: the run has weights of its own")
        return None
    step = checkpoint_choice.of_source(source, request.init_step)
    return load_for(config, source, request.init_weights, step)


def _check_not_in_data(config: Config, workdir: pathlib.Path) -> None:
    """Refuse a run whose own pictures would be examples of its next start."""
    for field in ("path", "held_out"):
        path = getattr(config.data, field)
        if path and pathlib.Path(path).expanduser().resolve() in (
            workdir.resolve(),
            *workdir.resolve().parents,
        ):
            raise BadRequest(
                f"--workdir {workdir} lies in data.{field} ({path}): the pictures that the "
                "run draws would be among its examples; name another"
            )


def _refuse_weights_of_no_use(config: Config, workdir: pathlib.Path) -> None:
    record = read_record(workdir)
    if record is not None and record.step >= config.training.num_steps:
        raise BadRequest(
            f"--init_from has no effect: the run in {workdir} is finished; leave it out, "
            "or name another --workdir"
        )


def _warn_of_odd_lengths(plan: Plan) -> None:
    optimizer, training = plan.config.optimizer, plan.config.training
    if optimizer.warmup_steps >= training.num_steps:
        warnings.warn(
            f"optimizer.warmup_steps ({optimizer.warmup_steps:,}) is not less than "
            f"training.num_steps ({training.num_steps:,}): the learning rate never "
            f"reaches {optimizer.learning_rate:g}",
            stacklevel=3,
        )
    held_out = len(plan.data.held_out)
    if held_out < _FEW_HELD_OUT and (training.eval_every or training.likelihood_every):
        warnings.warn(
            f"only {held_out:,} of {held_out + len(plan.data.train):,} examples are held "
            "out: the held-out loss, and the best checkpoint by it, say little; raise "
            "data.held_out_fraction, or give data.held_out",
            stacklevel=3,
        )
    batch_size, count = plan.config.data.batch_size, len(plan.data.train)
    if batch_size > count:
        warnings.warn(
            f"data.batch_size ({batch_size:,}) is larger than the set of {count:,} "
            "examples: each train step uses some of them more than once",
            stacklevel=3,
        )


def _say_epochs(plan: Plan) -> None:
    per_epoch = len(plan.data.train) / plan.config.data.batch_size
    values = {name: getattr(plan.config.training, name) for name in epochs.IN_EPOCHS}
    said = ", ".join(f"{name} {value:,}" for name, value in values.items() if value)
    say(f"an epoch is {per_epoch:,.4g} train steps; in train steps: {said}")


def _say_smaller_grids(plan: Plan) -> None:
    training, preview = plan.config.training, plan.preview
    steps = min(training.sample_steps, plan.config.process.num_timesteps)
    is_smaller = (preview.batch_size, preview.steps) != (training.num_samples, steps)
    if training.sample_every and is_smaller:
        say(
            f"each sample grid has {preview.batch_size:,} samples drawn in "
            f"{preview.steps:,} steps, not training.num_samples ({training.num_samples:,}) "
            f"in training.sample_steps ({training.sample_steps:,}): the grids of a run "
            "take at most a tenth of its network calls"
        )


def train(
    config: Config,
    workdir: pathlib.Path,
    data: sources.DataSet | None = None,
    request: Request = AS_IT_IS,
    stopwatch: Stopwatch | None = None,
) -> TrainState:
    """Train until `config.training.num_steps`, or go on where the run stopped.

    Args:
      config: the experiment.
      workdir: the run folder; an existing run in it is resumed.
      data: examples of the caller's own; otherwise those of `config.data.source`.
      request: what else is wanted.
      stopwatch: is given the seconds of the pieces of the work.

    Returns:
      The last state; after SIGTERM that of the last step done, which is saved.

    Raises:
      BadRequest: before anything is compiled or written.
      RunFailed: if updates are not finite any more, something cannot be read or written.
      KeyboardInterrupt: after Ctrl-C, when the state is saved.
    """
    with events.noting_warnings() as notes:
        start = prepare(config, workdir, data, request)
        if start.changed:
            notes.keep(events.CHANGED, ", ".join(start.changed))
        config = start.plan.config
        extras = Extras(
            stopwatch or Stopwatch(),
            window_of(request.profile, config.training.num_steps),
            request.wandb,
            request.command,
            notes,
        )
        state, stop = _train_locked(start, workdir, request, extras)
    if stop.wanted:
        if not request.is_smoke:
            hint = ", without --overwrite" if request.overwrite else ""
            say(f"the same command{hint} goes on from step {int(state.step):,}")
        else:
            say("the smoke run was stopped; the same command begins it again")
        if not stop.by_system:
            raise KeyboardInterrupt
    return state


def _train_locked(
    start: Start, workdir: pathlib.Path, request: Request, extras: Extras
) -> tuple[TrainState, Stop]:
    """Train in a folder that nobody else trains in; return the last state, and the stop."""
    plan, config = start.plan, start.plan.config
    with (
        locks.locked(workdir, "training in"),
        stop_on_interrupt(say, sigterm=True) as stop,
    ):
        with processes.together():
            run_folder.delete_unfinished(workdir)
            if _deletes_a_run(request, workdir):
                run_folder.delete_run(workdir)
        if start.changed and not request.is_smoke:
            _say_changes(config, workdir, start.changed)
        keep = config.training.keep_checkpoints
        with (
            Checkpoints(workdir, keep, writing=True) as checkpoints,
            explained(workdir, checkpoints),
        ):
            return run(plan, workdir, checkpoints, stop, start.initial, extras), stop


def run(
    plan: Plan,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    stop: Stop,
    initial: Weights | None = None,
    extras: Extras | None = None,
) -> TrainState:
    """Train in a folder that is locked, unless the run there is finished."""
    trainer = prepared_trainer(plan, workdir, checkpoints, stop, initial, extras)
    return trainer.run() if isinstance(trainer, Trainer) else trainer


def prepared_trainer(
    plan: Plan,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    stop: Stop,
    initial: Weights | None = None,
    extras: Extras | None = None,
) -> Trainer | TrainState:
    """Return the trainer of a run, or its last state instead if it is finished."""
    config, mesh = plan.config, mesh_of(plan.config)
    devices.say_mesh(mesh)
    num_steps, curve = config.training.num_steps, loss_curve_path(workdir)
    first = first_state(plan, workdir, checkpoints, mesh, initial)
    start = first.step
    if start >= num_steps:
        check_an_update_was_made(first.state)
    is_drawn = start < num_steps or curve.exists()
    due = still_due(config, workdir, start)
    if start > num_steps or (start == num_steps and is_drawn and not any(due)):
        say(
            f"{workdir} is finished: it has {start:,} steps of "
            f"{num_steps:,}; to go on, raise --config.training.num_steps"
        )
        if start == num_steps:  # What else may change is kept.
            run_folder.write_config(workdir, config)
        return first.state
    run_folder.write_config(workdir, config)
    ema_snapshots.delete_after(workdir, start)
    curve.unlink(missing_ok=True)
    by_step = losses_by_step(workdir / "metrics.jsonl", config.training.best_by)
    for step, loss in by_step.items():
        if step <= start:
            checkpoints.score(step, loss)
    extras = extras or Extras(Stopwatch())
    return Trainer(plan, workdir, checkpoints, mesh, stop, first, extras)


def mesh_of(config: Config) -> jax.sharding.Mesh:
    """Return the mesh that a config describes.

    Raises:
      BadRequest: if its sizes do not fit the devices.
    """
    with values_refused():
        return devices.make_mesh(config.parallel.data, config.parallel.fsdp)


def _say_changes(config: Config, workdir: pathlib.Path, changed: list[str]) -> None:
    say(f"changed since the run was started: {', '.join(changed)}")
    record = read_record(workdir)
    goes_on = record is not None and record.step < config.training.num_steps
    of_length = "training.num_steps" in "".join(changed)
    if goes_on and of_length and config.optimizer.decay == "cosine":
        say("the cosine decay follows the new training.num_steps from here on")
