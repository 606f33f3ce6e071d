"""The training loop: where data, step, checkpoints and reports meet."""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp

from diffusion_jax.data.images import Unreadable
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.pipeline import Loader, StepBatches, WorkerDied
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import ema_snapshots, pictures
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import Checkpoints, abstract, parts_of, with_parts
from diffusion_jax.runs.metrics_log import MetricLog, read_metrics
from diffusion_jax.runs.record import new_record, read_record, write_record
from diffusion_jax.runs.weight_files import Weights
from diffusion_jax.runtime import cpu, devices, files
from diffusion_jax.runtime.errors import RunFailed
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.text import quoted, say
from diffusion_jax.training.dispatch_size import Pace, most_steps
from diffusion_jax.training.logging import Reports
from diffusion_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffusion_jax.training.periodic import BITS, LOSS, Milestones, is_due
from diffusion_jax.training.train_state import TrainState, equal_averages, init_state
from diffusion_jax.training.train_step import make_train_step, make_train_steps

_SHARED_MEMORY = "/dev/shm"  # Where Python's processes have their locks.
_READING_SHARE = 0.01  # Of the time between checkpoints, for reading them back.


class Trainer:
    """The compiled programs of a run and its folder; `run` is the loop."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        stop: Stop,
    ):
        self.plan, self.workdir = plan, workdir
        self.checkpoints, self.stop = checkpoints, stop
        self.losses = checkpoints.losses
        config = plan.config
        self.config = config
        self.mesh = devices.make_mesh()
        self.whole = devices.replicated(self.mesh)
        self.tx = make_optimizer(config.optimizer, config.training.num_steps)
        self.rate = learning_rate_schedule(config.optimizer, config.training.num_steps)
        training_batch = functools.partial(
            kind_of(config.data).training_batch, flip=config.data.random_flip
        )
        step = make_train_step(config, plan.loss_fn, plan.schedule, self.tx, training_batch)
        self.train_steps = jax.jit(
            make_train_steps(step),
            donate_argnums=0,
            in_shardings=(self.whole, devices.split_batch(self.mesh, 1), self.whole),
            out_shardings=self.whole,
            compiler_options=cpu.compiler_options(),
        )
        self.most_steps = config.training.steps_per_dispatch or most_steps(config.data)
        self.milestones = Milestones(plan, workdir, self.mesh, stop, self.losses)

    def run_or_say_what_is_left(self, initial: Weights | None = None) -> TrainState:
        """`run`, whose failures also say which checkpoint there is to go on from."""
        try:
            return self.run(initial)
        except WorkerDied as error:
            raise RunFailed(f"{error}; {self.left()}, to go on from") from error
        except Unreadable as error:
            raise RunFailed(
                f"{error}; {self.left()}; repair the image, or leave such images out with "
                "--config.data.unreadable=skip"
            ) from error
        except OSError as error:
            if not files.is_disk_failure(error):
                raise
            if files.is_full(_SHARED_MEMORY) and not files.is_full(self.workdir):
                raise RunFailed(
                    f"{_SHARED_MEMORY} is full, which the processes that load data need; "
                    f"{self.left()}; make room, or do without: --config.data.num_workers=0"
                ) from error
            raise RunFailed(
                f"the run cannot be written ({error.strerror}); {self.left()}; when "
                "that is mended, give the same command again"
            ) from error

    def run(self, initial: Weights | None = None) -> TrainState:
        """Trains to the end, or until `stop.wanted`; the last state is saved.

        Args:
          initial: weights to start with, if there is no checkpoint to go on from.
        """
        num_steps = self.config.training.num_steps
        state, start = self._first_state(initial)
        if start >= num_steps:
            _check_an_update_was_made(state)
        due = self.milestones.to_make_up(start)
        is_drawn = start < num_steps or self._loss_curve.exists()
        if start > num_steps or (start == num_steps and is_drawn and not any(due)):
            say(
                f"{self.workdir} is finished: it has {start:,} steps of "
                f"{num_steps:,}; for more: --config.training.num_steps"
            )
            if start == num_steps:  # What else may change is kept.
                run_folder.write_config(self.workdir, self.config)
            return state
        run_folder.write_config(self.workdir, self.config)
        ema_snapshots.delete_after(self.workdir, start)
        self._loss_curve.unlink(missing_ok=True)
        if not start:
            self.milestones.previews.draw_forward()
        self.log = MetricLog(self.workdir, start)
        self.bar = ProgressBar("training", num_steps, "steps", start)
        skipped = int(state.tally.skipped_in_a_row)
        self.reports = Reports(
            self.config, self.rate, self.log, self.bar, self.left, skipped
        )
        step = start
        try:
            if initial is not None and not self.checkpoints.steps:
                self._save(state, 0)  # A later start need not be told of them again.
            self.milestones.do(state, step, due, self.log, self.bar)
            if step < num_steps and not self.stop.wanted:
                self.bar.say("compiling the train step")
                state, step = self._dispatch(state, step)
        finally:
            self.bar.close()
            self.log.close()
        self.checkpoints.wait()
        self._note_saved()
        if step == num_steps:
            _check_an_update_was_made(state)
        if step == num_steps and not (
            self.stop.wanted and any(self.milestones.to_make_up(step))
        ):
            self.stop.wanted = False  # Too late: there is nothing to go on with.
            self._finish(state)
        elif step > start:
            say(f"saved at step {step:,} in {self.workdir}")
        return state

    def _dispatch(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """The loop itself: dispatch after dispatch, to the end or until it is stopped."""
        num_steps = self.config.training.num_steps
        pace = Pace(self.most_steps, self.record.steps_per_dispatch)
        with self._loader(step) as loader:
            count = self._count(step, pace.steps())
            batches = self._load(loader, step, count)
            while True:
                began = time.monotonic()
                state, said = self.train_steps(state, batches, count)
                first, step, done = step, step + count, count
                if step < num_steps:
                    # While a GPU or TPU works: the next batches, the last metrics.
                    count = self._count(step, pace.steps())
                    try:
                        batches = self._load(loader, step, count)
                    except WorkerDied:
                        # A signal to stop may have reached the workers as well.
                        if not self.stop.wanted:
                            raise
                self.reports.add(first, done, said)
                if not pace.chosen:
                    jax.block_until_ready(said)
                    pace.took(done, time.monotonic() - began)
                    if pace.chosen:
                        self.record.steps_per_dispatch = pace.chosen
                        write_record(self.workdir, self.record)
                if not self.checkpoints.is_saving:
                    self._note_saved()
                if self._visit(state, step):
                    return state, step

    def _first_state(self, given: Weights | None) -> tuple[TrainState, int]:
        def initial() -> TrainState:
            return init_state(self.plan.init_fn, self.tx, self.config)

        shapes = jax.eval_shape(initial)
        count = sum(x.size for x in jax.tree.leaves(shapes.params))
        data = self.plan.data
        classes = f", of {len(data.class_names):,} classes" if data.class_names else ""
        say(
            f"network: {count:,} parameters; data: {len(data.train):,} examples to train "
            f"on, {len(data.held_out):,} held out{classes}"
        )
        found = self.checkpoints.restore(parts_of(abstract(shapes, self.whole)))
        self._on_host = parts_of(abstract(shapes, devices.on_host(self.mesh)))
        old = read_record(self.workdir)
        if found is None and old is not None and old.step:
            raise RunFailed(
                f"{run_folder.checkpoints_path(self.workdir)} is empty, but run.json says "
                f"that the run has a checkpoint of step {old.step:,}; put it back, or "
                "begin again in another --workdir"
            )
        if found is None:
            old = None
        self.record = new_record(self.plan, self.workdir, old, count)
        self._wall_time, self._began = self.record.wall_time_s, time.monotonic()
        self._saved: tuple[int, float] | None = None
        self._saved_at, self._reading_took = self._began, 0.0
        if found is not None:
            self.checkpoints.set_aside(found.damaged)
            say(f"resuming {self.workdir} at step {found.step:,}")
            return _owned(with_parts(shapes, found.parts)), found.step
        if run_folder.config_path(self.workdir).exists():
            say(f"{self.workdir} has no checkpoint yet: starting at step 0")
        state = jax.jit(initial, out_shardings=self.whole)()
        if given is not None:
            say(f"starting from the {given.kind} weights of step {given.step:,} there")
            put = jax.device_put(given.params, self.whole)
            state = state._replace(params=put, emas=equal_averages(self.config, put))
            state = _owned(state)
        return state, 0

    def _count(self, step: int, wanted: int) -> int:
        """Steps of the next dispatch: it ends where something else is to be done."""
        training = self.config.training
        ends = [step + wanted, training.num_steps]
        for every in (
            training.log_every,
            training.eval_every,
            training.likelihood_every,
            training.checkpoint_every,
            training.sample_every,
            self.record.snapshot_every,
        ):
            if every:
                ends.append((step // every + 1) * every)
        return min(ends) - step

    def _loader(self, start: int) -> Loader:
        data = self.config.data
        rows = devices.local_rows(data.batch_size)
        split = self.plan.data.split("train")
        batches = StepBatches(split, data.batch_size, self.config.seed, rows)
        return Loader(batches, start, self.most_steps, data.num_workers)

    def _load(self, loader: Loader, step: int, count: int) -> Batch:
        put = functools.partial(devices.put_local, devices.split_batch(self.mesh, 1))
        return jax.tree.map(put, loader.load(step, count))

    def _visit(self, state: TrainState, step: int) -> bool:
        """What is due after this step; no more than saving if somebody waits for it.

        Returns:
          Whether this was the last step, or somebody waits: then it is saved.
        """
        training = self.config.training
        last = step == training.num_steps
        stopping = self.stop.wanted and not last
        snapshot = is_due(self.record.snapshot_every, step, training.num_steps)
        save = (
            last or stopping or is_due(training.checkpoint_every, step, training.num_steps)
        )
        due = self.milestones.due(step)
        if not (snapshot or save or any(due)):
            return False
        self.reports.flush()
        if snapshot:
            ema_snapshots.save(self.workdir, state.emas, step, self.config)
        if save and self.reports.skipped_in_a_row and not (last or stopping):
            self.bar.say(f"no checkpoint at step {step:,}: the last update was skipped")
            save = False
        if save:
            self._save(state, step)
        if not stopping:
            self.milestones.do(state, step, due, self.log, self.bar)
            if self.stop.wanted and not save:  # What was cut short is made up from here.
                self._save(state, step)
        return last or self.stop.wanted

    def _save(self, state: TrainState, step: int) -> None:
        self.log.sync()  # No checkpoint before the lines that lead up to it.
        self.checkpoints.save(state)
        self._note_saved()  # Of the one before, which is on disk now.
        self._saved = step, round(self._wall_time + time.monotonic() - self._began, 1)

    def _note_saved(self) -> None:
        """Put what was saved into run.json, now that it is on disk."""
        if self._saved is not None:
            (step, wall_time), self._saved = self._saved, None
            self._read_back(step)
            self.record.step, self.record.wall_time_s = step, wall_time
            write_record(self.workdir, self.record)

    def _read_back(self, step: int) -> None:
        """Read back the first checkpoint of a start, and others where it costs little."""
        began = time.monotonic()
        interval, self._saved_at = began - self._saved_at, began
        if self._reading_took <= _READING_SHARE * interval:  # Nothing before the first.
            self.checkpoints.read_back(step, self._on_host)
            self._reading_took = time.monotonic() - began

    @property
    def _loss_curve(self) -> pathlib.Path:
        """It is drawn when all else is done."""
        return self.workdir / "loss.png"

    def left(self, before: int | None = None) -> str:
        """The newest checkpoint, or the newest of a step before that one, in words."""
        steps = [s for s in self.checkpoints.steps if before is None or s < before]
        if not steps:
            return "there is no checkpoint" + (" before it" if before else "")
        return f"the newest checkpoint is that of step {max(steps):,}" + (
            "" if before is None else ", of weights that gave a finite loss"
        )

    def _finish(self, state: TrainState) -> None:
        lines = read_metrics(self.workdir / "metrics.jsonl")
        pictures.save_loss_curve(self._loss_curve, lines, self.config.name)
        step, best, said = int(state.step), self.checkpoints.best_step, list[str]()
        last = [line for line in lines if line["step"] == step]
        for name, text, unit in ((LOSS, "held-out loss ", ""), (BITS, "", " bits/dim")):
            said += [f", {text}{line[name]:.4f}{unit}" for line in last if name in line]
        best_at = f", best checkpoint at step {best:,}" if best is not None else ""
        say(f"finished {step:,} steps{''.join(said)}{best_at}")
        say(f"look at {self.workdir}/: forward.png, reverse.png, loss.png, samples/")
        say(f"sample with: python sample.py --workdir {quoted(self.workdir)} --num 64")


def _check_an_update_was_made(state: TrainState) -> None:
    """Raise RunFailed if there were updates, and every one of them was skipped."""
    step = int(state.step)
    if step and int(state.tally.skipped) == step:
        raise RunFailed(
            f"all {step:,} updates were skipped, because the loss or the gradient was not "
            "finite: the weights are those of the start; take a lower "
            "optimizer.learning_rate, or look at the data, and begin again in another "
            "--workdir"
        )


@jax.jit
def _owned(state: TrainState) -> TrainState:
    """A copy in memory of the device's own.

    On a CPU what comes from a file may lie in NumPy's memory, which is given back when
    the state is donated to the first step, while its results lie there.
    """
    return jax.tree.map(jnp.copy, state)
