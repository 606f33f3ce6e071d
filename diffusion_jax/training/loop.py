"""The training loop: where data, step, checkpoints and reports meet."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import parallel, runs, sampling
from diffusion_jax.config import Config
from diffusion_jax.data import sources
from diffusion_jax.data.images import Unreadable
from diffusion_jax.data.pipeline import Loader, StepBatches, WorkerDied
from diffusion_jax.data.transforms import to_examples, to_model_range, training_examples
from diffusion_jax.interrupts import Stop, stop_on_interrupt
from diffusion_jax.process import q_trajectory
from diffusion_jax.reporting import pictures
from diffusion_jax.reporting.metrics import MetricLog, read_metrics
from diffusion_jax.reporting.progress import ProgressBar
from diffusion_jax.samplers.chain import even_frames
from diffusion_jax.training.checkpoints import Checkpoints, abstract_state
from diffusion_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffusion_jax.training.plan import Plan, load_data, make_plan
from diffusion_jax.training.reports import Reports
from diffusion_jax.training.state import TrainState, init_state
from diffusion_jax.training.step import (
    make_held_out_loss,
    make_train_step,
    make_train_steps,
)
from diffusion_jax.training.weights import Weights, load_for
from diffusion_jax.validation import BadRequest

_STRIP_FRAMES = 10


def train(
    config: Config,
    workdir: pathlib.Path,
    data: sources.DataSet | None = None,
    *,
    overwrite: bool = False,
    init_from: pathlib.Path | None = None,
    init_weights: str = "ema",
) -> TrainState:
    """Trains until `config.training.num_steps`, or goes on where the run stopped.

    Args:
      config: the experiment.
      workdir: the run folder; an existing run in it is resumed.
      data: examples of the caller's own; otherwise those of `config.data.source`.
      overwrite: delete the run that is in `workdir` and start anew.
      init_from: another run, or a file of weights, to start a new run with.
      init_weights: "ema" or "raw", of that run.

    Returns:
      The last state.

    Raises:
      BadRequest: before anything is compiled or written.
      RunFailed: if the loss is not finite, or a checkpoint or an image cannot be read.
      KeyboardInterrupt: after Ctrl-C, when the state is saved.
    """
    plan = make_plan(config, data)
    config = plan.config
    anew = overwrite and runs.config_path(workdir).exists()
    if not anew:
        changed = runs.check_resumable(workdir, config)
        if changed:
            print(f"changed since the run was started: {', '.join(changed)}")
        if config.optimizer.decay == "cosine" and "num_steps" in "".join(changed):
            print("the cosine decay follows the new training.num_steps from here on")
    initial = None
    if init_from is not None and (anew or not runs.has_checkpoint(workdir)):
        if anew and init_from.resolve() == workdir.resolve():
            raise BadRequest(f"--overwrite would delete {workdir}, and so --init_from")
        initial = load_for(config, init_from, init_weights)
    plan = load_data(plan)
    workdir.mkdir(parents=True, exist_ok=True)
    folder, keep = runs.checkpoints_path(workdir), config.training.keep_checkpoints
    with runs.locked(workdir, "training in"), stop_on_interrupt(print) as stop:
        if anew:
            runs.delete_run(workdir)
        with Checkpoints(folder, keep, writing=True) as checkpoints:
            trainer = Trainer(plan, workdir, checkpoints, stop)
            try:
                state = trainer.run(initial)
            except WorkerDied as error:
                left = trainer.newest_checkpoint()
                raise runs.RunFailed(f"{error}; {left}, to go on from") from error
            except Unreadable as error:
                raise runs.RunFailed(
                    f"{error}; {trainer.newest_checkpoint()}; repair the image, or leave "
                    "such images out with --config.data.unreadable=skip"
                ) from error
    if stop.wanted:
        hint = ", without --overwrite" if overwrite else ""
        print(f"the same command{hint} goes on from step {int(state.step):,}")
        raise KeyboardInterrupt
    return state


class Trainer:
    """The compiled programs of a run and its folder; `run` is the loop."""

    def __init__(
        self, plan: Plan, workdir: pathlib.Path, checkpoints: Checkpoints, stop: Stop
    ):
        self.plan, self.workdir = plan, workdir
        self.checkpoints, self.stop = checkpoints, stop
        config = plan.config
        self.config = config
        self.mesh = parallel.make_mesh()
        self.whole = parallel.replicated(self.mesh)
        self.tx = make_optimizer(config.optimizer, config.training.num_steps)
        self.rate = learning_rate_schedule(config.optimizer, config.training.num_steps)
        to_x0 = functools.partial(training_examples, flip=config.data.random_flip)
        step = make_train_step(config, plan.loss_fn, plan.schedule, self.tx, to_x0)
        self.train_steps = jax.jit(
            make_train_steps(step),
            donate_argnums=0,
            in_shardings=(self.whole, parallel.split_batch(self.mesh, 1), self.whole),
            out_shardings=self.whole,
        )
        self.held_out_loss = jax.jit(make_held_out_loss(plan.loss_fn, plan.schedule))
        self.table = sampling.make_table(plan.schedule, config.process, plan.preview)
        self.frames = even_frames(self.table.num_rows, _STRIP_FRAMES)
        self.sampler = sampling.make_sampler(
            config, plan.apply_fn, self.mesh, frames=self.frames
        )

    def run(self, initial: Weights | None = None) -> TrainState:
        """Trains to the end, or until `stop.wanted`; the last state is saved.

        Args:
          initial: weights to start with, if there is no checkpoint to go on from.
        """
        training = self.config.training
        state, start = self._first_state(initial)
        runs.write_config(self.workdir, self.config)
        if start >= training.num_steps:
            print(
                f"{self.workdir} is finished: it has {start:,} steps of "
                f"{training.num_steps:,}; for more: --config.training.num_steps"
            )
            return state
        self._draw_forward()
        if self.stop.wanted:
            return state
        log = MetricLog(self.workdir, start)
        bar = ProgressBar("training", training.num_steps, "steps", start)
        bar.say("compiling the train step")
        reports = Reports(self.config, self.rate, log, bar, self.newest_checkpoint)
        step = start
        try:
            with self._loader(start) as loader:
                batches = self._load(loader, step)
                while step < training.num_steps:
                    count = self._count(step)
                    state, metrics = self.train_steps(state, batches, count)
                    # While the device works: the next batches, the last metrics.
                    first, step = step, step + count
                    batches = self._load(loader, step)
                    reports.add(first, count, metrics)
                    last = self.stop.wanted or step == training.num_steps
                    self._visit(state, step, reports, last)
                    if last:
                        break
        finally:
            bar.close()
            log.close()
        if step == training.num_steps:
            self.stop.wanted = False  # Too late: there is nothing to go on with.
            self._finish(state)
        else:
            self.checkpoints.wait()
            print(f"saved at step {step:,} in {self.workdir}")
        return state

    def _first_state(self, given: Weights | None) -> tuple[TrainState, int]:
        def initial() -> TrainState:
            return init_state(self.plan.init_fn, self.tx, self.config)

        shapes = jax.eval_shape(initial)
        count = sum(x.size for x in jax.tree.leaves(shapes.params))
        data = self.plan.data
        classes = f", of {len(data.class_names):,} classes" if data.class_names else ""
        print(
            f"network: {count:,} parameters; data: {len(data.train):,} examples to train "
            f"on, {len(data.held_out):,} held out{classes}"
        )
        step = self.checkpoints.latest_step
        if step is None:
            if runs.config_path(self.workdir).exists():
                print(f"{self.workdir} has no checkpoint yet: starting at step 0")
            state = jax.jit(initial, out_shardings=self.whole)()
            if given is not None:
                print(
                    f"starting from the {given.kind} weights of step {given.step:,} there"
                )
                put = jax.device_put(given.params, self.whole)
                copy = jax.tree.map(jnp.copy, put)  # Each is donated on its own.
                state = state._replace(params=put, ema_params=copy)
            return state, 0
        print(f"resuming {self.workdir} at step {step:,}")
        return self.checkpoints.restore(step, abstract_state(shapes, self.whole)), step

    def _count(self, step: int) -> int:
        """Steps of the next dispatch: it ends where something else is to be done."""
        training = self.config.training
        ends = [step + training.steps_per_dispatch, training.num_steps]
        for every in (
            training.log_every,
            training.eval_every,
            training.checkpoint_every,
            training.sample_every,
        ):
            if every:
                ends.append((step // every + 1) * every)
        return min(ends) - step

    def _loader(self, start: int) -> Loader:
        data = self.config.data
        rows = parallel.local_rows(data.batch_size)
        batches = StepBatches(self.plan.data.train, data.batch_size, self.config.seed, rows)
        count = self.config.training.steps_per_dispatch
        return Loader(batches, start, count, data.num_workers)

    def _load(self, loader: Loader, step: int) -> jax.Array:
        return parallel.put_local(parallel.split_batch(self.mesh, 1), loader.load(step))

    def _visit(self, state: TrainState, step: int, reports: Reports, last: bool) -> None:
        """What is due after this step: held-out loss, samples, checkpoint."""
        training = self.config.training

        def due(every: int) -> bool:
            return last or bool(every and step % every == 0)

        save, stopping = due(training.checkpoint_every), last and self.stop.wanted
        # At the end these are due as well, but not when somebody waits for it to stop.
        evaluate = training.eval_every and due(training.eval_every) and not stopping
        draw = training.sample_every and due(training.sample_every) and not stopping
        if not (save or evaluate or draw):
            return
        reports.flush()
        loss = None
        if evaluate:
            loss = self._evaluate(state.ema_params)
            reports.log.write(step, {"held_out_loss": loss})
        if save:
            self.checkpoints.save(state, loss)
        if draw:
            if last or step == training.sample_every:  # It may take long.
                reports.bar.say(f"drawing {training.num_samples} samples")
            self._draw_samples(state, step)

    def _evaluate(self, params: Any) -> float:
        """Held-out loss of these weights, in batches of one shape."""
        held_out = self._held_out
        size, total = self.config.data.batch_size, len(held_out)
        rows = parallel.split_batch(self.mesh)
        losses = []
        for begin in range(0, total, size):
            # The last batch is filled up with examples that are then left out.
            indices = np.arange(begin, begin + size) % total
            x0 = to_model_range(jax.device_put(held_out[indices], rows))
            where = jax.device_put(indices.astype(np.int32), rows)
            losses.append(self.held_out_loss(params, x0, where))
        return float(np.concatenate([np.asarray(x) for x in losses])[:total].mean())

    @functools.cached_property
    def _held_out(self) -> np.ndarray:
        """The examples of the held-out loss, always the same ones."""
        held_out = self.plan.data.held_out
        chosen = np.arange(len(held_out))
        if len(chosen) > self.config.training.num_held_out:
            # Not the first ones: they may all be of one class.
            chosen = np.random.default_rng(0).permutation(chosen)
        return held_out[chosen[: self.config.training.num_held_out]]

    def newest_checkpoint(self) -> str:
        """What there is to go on from, in words."""
        newest = self.checkpoints.latest_step
        if newest is None:
            return "there is no checkpoint"
        return f"the newest checkpoint is that of step {newest:,}"

    def _draw_samples(self, state: TrainState, step: int) -> None:
        wanted = self.config.training.num_samples
        count = -(-wanted // self.mesh.size) * self.mesh.size
        samples, frames = self.sampler(
            state.ema_params,
            self.table,
            jax.random.key(self.config.seed),
            np.arange(count),
        )
        if not np.isfinite(samples).all():
            print(f"the samples at step {step:,} are not finite: no picture of them")
            return
        picture = runs.samples_path(self.workdir) / f"step_{step:06d}.png"
        pictures.save_samples(picture, self._examples(np.asarray(samples)[:wanted]))
        titles = [f"{done} of {self.frames[-1]} steps" for done in self.frames]
        strip = self._examples(np.asarray(frames)[:, :wanted])
        pictures.save_strip(self.workdir / "reverse.png", strip, titles)

    def _draw_forward(self) -> None:
        """A few clean examples noised by the chain of q(x_t | x_{t-1})."""
        num = 1 if self.config.data.image_size else min(1000, len(self.plan.data.train))
        clean = self.plan.data.train[np.arange(num)]
        x0 = to_model_range(jnp.asarray(clean))
        total = self.plan.schedule.num_timesteps
        shown = np.linspace(0, total, _STRIP_FRAMES).round().astype(int)

        @jax.jit
        def noised(x0: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(0), 2**32 - 3)  # As in `init_state`.
            return q_trajectory(self.plan.schedule, key, x0, (shown[1:] - 1).tolist())

        frames = np.concatenate([np.asarray(x0)[None], np.asarray(noised(x0))])
        titles = [f"t = {t}" for t in shown]
        pictures.save_strip(self.workdir / "forward.png", self._examples(frames), titles)

    def _examples(self, x: np.ndarray) -> np.ndarray:
        return to_examples(x, self.config.data.shape)

    def _finish(self, state: TrainState) -> None:
        lines = read_metrics(self.workdir / "metrics.jsonl")
        pictures.save_loss_curve(self.workdir / "loss.png", lines, self.config.name)
        losses = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
        best = self.checkpoints.best_step
        held_out = f", held-out loss {losses[-1]:.4f}" if losses else ""
        best_at = f", best checkpoint at step {best:,}" if best is not None else ""
        print(
            f"finished {int(state.step):,} steps{held_out}{best_at}\n"
            f"look at {self.workdir}/: forward.png, reverse.png, loss.png, samples/\n"
            f"sample with: python sample.py --workdir {self.workdir} --num 64"
        )
