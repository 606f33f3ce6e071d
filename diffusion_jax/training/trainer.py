"""The training loop: where data, step, checkpoints and reports meet."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.pipeline import Loader, StepBatches, WorkerDied
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.conditioning_augmentation import augmented
from diffusion_jax.diffusion.focus import draw_focus
from diffusion_jax.diffusion.guidance import drop_labels
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import ema_snapshots, events, pictures, wandb_log
from diffusion_jax.runs.checkpoints import Checkpoints, abstract, parts_of
from diffusion_jax.runs.metrics_log import MetricLog, read_metrics
from diffusion_jax.runtime import cpu, devices, processes
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.stopwatch import Stopwatch
from diffusion_jax.runtime.text import command, quoted, say
from diffusion_jax.training.dispatch_size import Pace, most_steps
from diffusion_jax.training.failures import (
    check_an_update_was_made,
    latest_checkpoint_text,
)
from diffusion_jax.training.first_state import FirstState, abstract_state
from diffusion_jax.training.logging import Reports
from diffusion_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffusion_jax.training.periodic import (
    BITS,
    LOSS,
    Due,
    Periodic,
    due_at,
    intervals,
    is_due,
    still_due,
)
from diffusion_jax.training.profiling import Profiler, Window
from diffusion_jax.training.saving import Saver
from diffusion_jax.training.train_state import TrainState, shardings
from diffusion_jax.training.train_step import (
    AS_THEY_LIE,
    JOINED,
    Placement,
    make_train_step,
    make_train_steps,
)

TRAIN_STEP, CHECKPOINT = "train step", "checkpoint"  # The names on a stopwatch.


class Extras(NamedTuple):
    """Observers of a run.

    Attributes:
      stopwatch: of the pieces of the work.
      window: train steps of which a profile is made.
      wandb: the project of Weights & Biases that gets the metrics as well.
      command: the command line, for the events of the run; "" if there is none.
      notes: events from before the first train step, and warnings during the run.
    """

    stopwatch: Stopwatch
    window: Window | None = None
    wandb: str | None = None
    command: str = ""
    notes: events.Notes | None = None


class Trainer:
    """One run, from the state that it starts with to its last; `run` is the loop."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        mesh: jax.sharding.Mesh,
        stop: Stop,
        first: FirstState,
        extras: Extras,
    ):
        """Make every part of the run; the first dispatch compiles.

        Args:
          plan: of the run.
          workdir: its folder, ready to be trained in.
          checkpoints: its checkpoints.
          mesh: the devices.
          stop: the signals to stop.
          first: the state to go on from. It is donated to the first step.
          extras: what is observed.
        """
        self.plan, self.config, self.workdir = plan, plan.config, workdir
        self.stop, self._mesh = stop, mesh
        self._first, self._stopwatch = first, extras.stopwatch
        self._command, self._notes = extras.command, extras.notes or events.Notes()
        training = plan.config.training
        self.train_steps = compiled(plan, mesh)
        self._most_steps = most_steps(plan.config)
        self._log = MetricLog(
            workdir, first.step, *wandb_log.begun(extras.wandb, workdir, plan.config)
        )
        self._bar = ProgressBar("training", training.num_steps, "steps", first.step)
        self._profiler = Profiler(extras.window, workdir, first.step, self._bar.say)
        self.periodic = Periodic(
            plan, workdir, mesh, stop, self._log, self._bar, extras.stopwatch
        )
        host = devices.on_host(mesh) or jax.tree.map(lambda x: x.sharding, first.state)
        for_reading = parts_of(abstract(first.state, host))
        self.saver = Saver(workdir, checkpoints, first.record, self._log, for_reading)
        self.reports = Reports(
            plan,
            learning_rate_schedule(plan.config.optimizer, training.num_steps),
            self._log,
            self._bar,
            functools.partial(latest_checkpoint_text, checkpoints),
            functools.partial(events.add, workdir),
            int(first.state.tally.skipped_in_a_row),
        )

    def run(self) -> TrainState:
        """Train to the end, or until `stop.wanted`; the last state is saved."""
        start, num_steps = self._first.step, self.config.training.num_steps
        state, step = self._first.state, start
        kind = events.RESUMED if start else events.STARTED
        events.add(self.workdir, kind, start, self._command)
        self._notes.write(self.workdir, start)
        with contextlib.closing(self._log):
            try:
                if not start:
                    self.periodic.previews.draw_data()
                    self.periodic.previews.draw_forward()
                if self._first.is_unsaved:  # A later start is not given these weights.
                    self.saver.save(state)
                self._run_due(state, step, still_due(self.config, self.workdir, step))
                if step < num_steps and not self.stop.wanted:
                    self._bar.say("compiling the train step")
                    state, step = self._dispatch(state, step)
            finally:
                self._profiler.end()
                self._bar.close()
            with self._stopwatch.timed(CHECKPOINT):
                self.saver.wait()
        self._notes.write(self.workdir, step)
        if step == num_steps:
            check_an_update_was_made(state)
        left = still_due(self.config, self.workdir, step)
        if step == num_steps and not (self.stop.wanted and any(left)):
            self.stop.wanted = False  # Too late: there is nothing to go on with.
            self._finish(state)
        elif step > start:
            events.add(self.workdir, events.STOPPED, step, "stopped, and saved")
            say(f"saved at step {step:,} in {self.workdir}")
        return state

    def _dispatch(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Dispatch train steps, to the end or until somebody waits for the run to stop."""
        num_steps = self.config.training.num_steps
        pace = Pace(self._most_steps, self.saver.record.steps_per_dispatch)
        with self._loader(step) as loader:
            count = self._count(step, pace.steps())
            batches = self._load(loader, step, count)
            while True:
                self._profiler.begin_at(step)
                began = time.monotonic()
                self.stop.begin()
                state, said = self.train_steps(state, batches, count)
                first, step, done = step, step + count, count
                if step < num_steps:
                    # While a GPU or TPU works: the next batches, the last metrics.
                    count = self._count(step, pace.steps())
                    try:
                        batches = self._load(loader, step, count)
                    except WorkerDied:
                        # A signal to stop may have reached the workers as well.
                        if not self.stop.asked:
                            raise
                        loader.go_on_alone()
                        batches = self._load(loader, step, count)
                self._profiler.end_at(step, said)
                self.reports.add(first, done, said)
                if not pace.chosen:
                    jax.block_until_ready(said)
                    seconds = processes.most(time.monotonic() - began)
                    self._stopwatch.add(TRAIN_STEP, seconds / done)
                    pace.took(done, seconds)
                    if pace.chosen:
                        self.saver.choose_steps_per_dispatch(pace.chosen)
                self.saver.note_if_saved()
                if self.finish_step(state, step):
                    return state, step

    def _count(self, step: int, wanted: int) -> int:
        """Steps of the next dispatch: it ends where something else is to be done."""
        training = self.config.training
        ends = [step + wanted, training.num_steps]
        ends += [end for end in self._profiler.ends if end > step]
        for every in (
            training.log_every,
            *intervals(training),
            training.checkpoint_every,
            self.saver.record.snapshot_every,
        ):
            if every:
                ends.append((step // every + 1) * every)
        return min(ends) - step

    def _loader(self, start: int) -> Loader:
        data = self.config.data
        rows = devices.local_rows(self._mesh, data.batch_size)
        split = self.plan.data.split("train")
        batches = StepBatches(split, data.batch_size, self.config.seed, rows)
        return Loader(batches, start, self._most_steps, data.num_workers)

    def _load(self, loader: Loader, step: int, count: int) -> Batch:
        put = functools.partial(devices.put_local, devices.split_batch(self._mesh, 1))
        return jax.tree.map(put, loader.load(step, count))

    def finish_step(self, state: TrainState, step: int) -> bool:
        """Do what is due after this step; only save if somebody waits for the run to stop.

        Returns:
          Whether this was the last step, or somebody waits: then it is saved.
        """
        training = self.config.training
        last = step == training.num_steps
        self.stop.settle()
        stopping = self.stop.wanted and not last
        every = self.saver.record.snapshot_every
        snapshot = is_due(every, step, training.num_steps)
        save = (
            last or stopping or is_due(training.checkpoint_every, step, training.num_steps)
        )
        due = due_at(training, step)
        if not (snapshot or save or any(due)):
            return False
        self.reports.flush()
        if snapshot:
            ema_snapshots.save(self.workdir, state.emas, step, self.config)
        if save and self.reports.skipped_in_a_row and not (last or stopping):
            said = f"no checkpoint at step {step:,}: the last update was skipped"
            self._bar.say(said)
            events.add(self.workdir, events.WARNING, step, said)
            save = False
        if save:
            with self._stopwatch.timed(CHECKPOINT):
                self.saver.save(state)
        if not stopping:
            self._run_due(state, step, due)
            if self.stop.wanted and not save:  # What was cut short is made up from here.
                self.saver.save(state)
        return last or self.stop.wanted

    def _run_due(self, state: TrainState, step: int, due: Due) -> None:
        """Do what is due, and tell the checkpoints what the best one is chosen by."""
        found = self.periodic.run_due(state, step, due)
        best_by = self.config.training.best_by
        if best_by in found:
            self.saver.checkpoints.score(step, found[best_by])

    def _finish(self, state: TrainState) -> None:
        lines = read_metrics(self.workdir / "metrics.jsonl")
        pictures.save_loss_curve(loss_curve_path(self.workdir), lines, self.config.name)
        step, best, said = int(state.step), self.saver.checkpoints.best_step, list[str]()
        last = [line for line in lines if line["step"] == step]
        for name, text, unit in ((LOSS, "held-out loss ", ""), (BITS, "", " bits/dim")):
            said += [f", {text}{line[name]:.4f}{unit}" for line in last if name in line]
        best_at = f", best checkpoint at step {best:,}" if best is not None else ""
        events.add(self.workdir, events.FINISHED, step, f"finished{''.join(said)}")
        say(f"finished {step:,} steps{''.join(said)}{best_at}")
        say(f"look at {self.workdir}/: forward.png, reverse.png, loss.png, samples/")
        given = " --upscale PICTURES" if self.config.data.low_res else ""
        say(
            f"sample with: {command('sample')} --workdir {quoted(self.workdir)}{given} "
            "--num 64"
        )


def loss_curve_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the path of the loss curve, which is drawn when all else is done."""
    return workdir / "loss.png"


def compiled(plan: Plan, mesh: jax.sharding.Mesh):
    """The train steps of a dispatch as one program; its state is donated."""
    config, whole = plan.config, devices.replicated(mesh)
    lie = shardings(mesh, abstract_state(plan))
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    step = make_train_step(
        config,
        plan.loss_fn,
        plan.model.process,
        optimizer,
        _training_batch(config),
        _placement(mesh, lie.params),
    )
    return jax.jit(
        make_train_steps(step),
        donate_argnums=0,
        in_shardings=(lie, devices.split_batch(mesh, 1), whole),
        out_shardings=(lie, whole),
        compiler_options=cpu.compiler_options(devices.platform_of(mesh)),
    )


def _training_batch(config: Config) -> Callable[[jax.Array, Batch], Batch]:
    """Return (key, batch as files have it) -> the batch that a train step learns from."""
    kind, data, loss = kind_of(config.data), config.data, config.loss
    partial = functools.partial
    changes: list[Callable[[jax.Array, Batch], Batch]] = [
        partial(kind.training_batch, flip=data.random_flip)
    ]
    if data.labels:
        rate = loss.label_dropout
        changes.append(partial(drop_labels, num_classes=data.num_classes, rate=rate))
    if data.low_res and loss.aug_level:
        changes.append(partial(augmented, largest=loss.aug_level))
    if data.num_frames and loss.focus:
        changes.append(partial(draw_focus, rate=loss.focus))
    if len(changes) == 1:
        return changes[0]

    def changed(key: jax.Array, batch: Batch) -> Batch:
        keys = jax.random.split(key, len(changes))
        for change, own in zip(changes, keys, strict=True):
            batch = change(own, batch)
        return batch

    return changed


def _placement(mesh: jax.sharding.Mesh, lie: Any) -> Placement:
    if mesh.shape["fsdp"] == 1:
        # A CPU gains nothing from fewer kernels.
        return AS_THEY_LIE if devices.platform_of(mesh) == "cpu" else JOINED
    constrain = jax.lax.with_sharding_constraint
    # Arrays that lie on several devices are not joined, which would move them.
    return Placement(
        gathered=lambda params: constrain(params, devices.replicated(mesh)),
        as_params=lambda gradient: constrain(gradient, lie),
        norm=optax.tree.norm,
    )
