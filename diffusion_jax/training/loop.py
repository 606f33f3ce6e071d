"""The training loop: where data, step, checkpoints and reports meet."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment, parallel, runs
from diffusion_jax.config import Config
from diffusion_jax.data import pipeline, sources
from diffusion_jax.data.transforms import to_examples, to_model_range, training_examples
from diffusion_jax.interrupts import Stop, stop_on_interrupt
from diffusion_jax.process import q_trajectory
from diffusion_jax.reporting import pictures
from diffusion_jax.reporting.metrics import MetricLog, read_metrics
from diffusion_jax.reporting.progress import ProgressBar
from diffusion_jax.samplers.chain import even_frames
from diffusion_jax.training.checkpoints import Checkpoints, abstract_state
from diffusion_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffusion_jax.training.plan import Plan, make_plan
from diffusion_jax.training.state import TrainState, init_state
from diffusion_jax.training.step import (
    Metrics,
    make_held_out_loss,
    make_train_step,
    make_train_steps,
)

_STRIP_FRAMES = 10
_MAX_HELD_OUT = 2048  # Examples of each held-out loss; enough for its third digit.


def train(
    config: Config,
    workdir: pathlib.Path,
    data: sources.DataSet | None = None,
    *,
    overwrite: bool = False,
) -> TrainState:
    """Trains until `config.training.num_steps`, or goes on where the run stopped.

    Args:
      config: the experiment.
      workdir: the run folder; an existing run in it is resumed.
      data: examples of the caller's own; otherwise those of `config.data.source`.
      overwrite: delete the run that is in `workdir` and start anew.

    Returns:
      The last state.

    Raises:
      BadRequest: before anything is compiled or written.
      RunFailed: if the loss is not finite, or a checkpoint cannot be read.
      KeyboardInterrupt: after Ctrl-C, when the state is saved.
    """
    plan = make_plan(config, data)
    anew = overwrite and runs.config_path(workdir).exists()
    if not anew:
        changed = runs.check_resumable(workdir, config)
        if changed:
            print(f"changed since the run was started: {', '.join(changed)}")
        if config.optimizer.decay == "cosine" and "num_steps" in "".join(changed):
            print("the cosine decay follows the new training.num_steps from here on")
    workdir.mkdir(parents=True, exist_ok=True)
    folder, keep = runs.checkpoints_path(workdir), config.training.keep_checkpoints
    with runs.locked(workdir, "training in"), stop_on_interrupt(print) as stop:
        if anew:
            runs.delete_run(workdir)
        with Checkpoints(folder, keep, writing=True) as checkpoints:
            state = Trainer(plan, workdir, checkpoints, stop).run()
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
        step = make_train_step(config, plan.apply_fn, plan.schedule, self.tx, to_x0)
        self.train_steps = jax.jit(
            make_train_steps(step),
            donate_argnums=0,
            in_shardings=(self.whole, parallel.split_batch(self.mesh, 1), self.whole),
            out_shardings=self.whole,
        )
        self.held_out_loss = jax.jit(
            make_held_out_loss(config, plan.apply_fn, plan.schedule)
        )
        table = experiment.make_table(plan.schedule, config.process, plan.preview)
        self.frames = even_frames(table.num_rows, _STRIP_FRAMES)
        self.sampler = experiment.make_sampler(
            config, plan.apply_fn, table, self.mesh, frames=self.frames
        )

    def run(self) -> TrainState:
        """Trains to the end, or until `stop.wanted`; the last state is saved."""
        training = self.config.training
        state, start = self._first_state()
        if start >= training.num_steps:
            print(
                f"{self.workdir} is finished: it has {start:,} steps of "
                f"{training.num_steps:,}; for more: --config.training.num_steps"
            )
            return state
        runs.write_config(self.workdir, self.config)
        self._draw_forward()
        if self.stop.wanted:
            return state
        log = MetricLog(self.workdir, start)
        bar = ProgressBar("training", training.num_steps, "steps", start)
        bar.say("compiling the train step")
        reports = _Reports(self, log, bar)
        try:
            step = start
            batches = self._load(step)
            while step < training.num_steps:
                count = self._count(step)
                state, metrics = self.train_steps(state, batches, count)
                # While the device works: the next batches, the last metrics.
                first, step = step, step + count
                batches = self._load(step)
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

    def _first_state(self) -> tuple[TrainState, int]:
        def initial() -> TrainState:
            return init_state(self.plan.init_fn, self.tx, self.config.seed)

        shapes = jax.eval_shape(initial)
        count = sum(x.size for x in jax.tree.leaves(shapes.params))
        print(
            f"network: {count:,} parameters; data: {len(self.plan.data.train):,} "
            f"examples to train on, {len(self.plan.data.held_out):,} held out"
        )
        step = self.checkpoints.latest_step
        if step is None:
            if runs.config_path(self.workdir).exists():
                print(f"{self.workdir} has no checkpoint yet: starting at step 0")
            return jax.jit(initial, out_shardings=self.whole)(), 0
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

    def _load(self, step: int) -> jax.Array:
        data = self.config.data
        local = pipeline.load_batches(
            self.plan.data.train,
            data.batch_size,
            self.config.seed,
            step,
            self.config.training.steps_per_dispatch,
            parallel.local_rows(data.batch_size),
        )
        return parallel.put_local(parallel.split_batch(self.mesh, 1), local)

    def _visit(self, state: TrainState, step: int, reports: "_Reports", last: bool) -> None:
        """What is due after this step: held-out loss, samples, checkpoint."""
        training = self.config.training

        def due(every: int) -> bool:
            return last or bool(every and step % every == 0)

        save = due(training.checkpoint_every)
        if not (save or due(training.eval_every) or due(training.sample_every)):
            return
        reports.flush()
        loss = None
        if save or due(training.eval_every):
            loss = self._evaluate(state.ema_params)
            reports.log.write(step, {"held_out_loss": loss})
        if save:
            self.checkpoints.save(state, loss)
        # At the end too, but not when somebody waits for it to stop.
        if training.sample_every and due(training.sample_every) and not self.stop.wanted:
            self._draw_samples(state, step)

    def _evaluate(self, params: Any) -> float:
        """Held-out loss of these weights, in batches of one shape."""
        held_out = self.plan.data.held_out
        size, total = self.config.data.batch_size, min(len(held_out), _MAX_HELD_OUT)
        rows = parallel.split_batch(self.mesh)
        losses = []
        for begin in range(0, total, size):
            # The last batch is filled up with examples that are then left out.
            indices = np.arange(begin, begin + size) % total
            x0 = to_model_range(jax.device_put(held_out[indices], rows))
            where = jax.device_put(indices.astype(np.int32), rows)
            losses.append(self.held_out_loss(params, x0, where))
        return float(np.concatenate([np.asarray(x) for x in losses])[:total].mean())

    def _draw_samples(self, state: TrainState, step: int) -> None:
        wanted = self.config.training.num_samples
        count = -(-wanted // self.mesh.size) * self.mesh.size
        samples, frames = self.sampler(
            state.ema_params, jax.random.key(self.config.seed), np.arange(count)
        )
        picture = runs.samples_path(self.workdir) / f"step_{step:06d}.png"
        pictures.save_samples(picture, self._examples(np.asarray(samples)[:wanted]))
        titles = [f"{done} of {self.frames[-1]} steps" for done in self.frames]
        strip = self._examples(np.asarray(frames)[:, :wanted])
        pictures.save_strip(self.workdir / "reverse.png", strip, titles)

    def _draw_forward(self) -> None:
        """A few clean examples noised by the chain of q(x_t | x_{t-1})."""
        clean = self.plan.data.train[np.arange(min(1000, len(self.plan.data.train)))]
        if clean.ndim == 4:
            clean = clean[:1]
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
        print(
            f"finished {int(state.step):,} steps, held-out loss {losses[-1]:.4f}, best "
            f"checkpoint at step {self.checkpoints.best_step:,}\n"
            f"look at {self.workdir}/: forward.png, reverse.png, loss.png, samples/\n"
            f"sample with: python sample.py --workdir {self.workdir} --num 64"
        )


class _Reports:
    """Turns the metrics of dispatches into log lines, one dispatch late.

    So the host reads numbers that the device has long finished, and never waits.
    """

    def __init__(self, trainer: Trainer, log: MetricLog, bar: ProgressBar):
        self.trainer, self.log, self.bar = trainer, log, bar
        self.waiting: tuple[int, int, Metrics] | None = None
        self.since_log: list[tuple[float, float]] = []
        self.loss = float("nan")

    def add(self, first: int, count: int, metrics: Metrics) -> None:
        self.flush()
        self.waiting = (first, count, metrics)

    def flush(self) -> None:
        if self.waiting is None:
            return
        (first, count, metrics), self.waiting = self.waiting, None
        losses, norms = (np.asarray(m)[:count] for m in metrics)
        step, config = first + count, self.trainer.config
        bad = ~(np.isfinite(losses) & np.isfinite(norms))
        if bad.any():
            newest = self.trainer.checkpoints.latest_step
            kept = (
                "there is no checkpoint"
                if newest is None
                else (f"the newest checkpoint is that of step {newest:,}")
            )
            raise runs.RunFailed(
                f"loss or gradient is not finite at step {first + int(bad.argmax()):,} "
                f"(loss {losses[bad][0]}, gradient norm {norms[bad][0]}); {kept}; a lower "
                "optimizer.learning_rate or a longer optimizer.warmup_steps may help"
            )
        self.since_log += zip(losses.tolist(), norms.tolist(), strict=True)
        rate = self.bar.rate(step)
        if step % config.training.log_every == 0 or step == config.training.num_steps:
            self.loss, norm = np.mean(self.since_log, axis=0).tolist()
            self.since_log.clear()
            values = {
                "loss": self.loss,
                "grad_norm": norm,
                "learning_rate": float(self.trainer.rate(step - 1)),
            }
            if rate:
                values["steps_per_sec"] = rate
                values["images_per_sec"] = rate * config.data.batch_size
            self.log.write(step, values)
        text = f"loss {losses.mean() if np.isnan(self.loss) else self.loss:.4f}"
        if rate:
            text += f"  {rate * config.data.batch_size:,.0f} images/s"
        self.bar.report(step, text)
