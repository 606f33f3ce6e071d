"""Log lines of a training run."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_jax.data.kinds import kind_of
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import events
from diffusion_jax.runs.metrics_log import MetricLog
from diffusion_jax.runtime.errors import RunFailed
from diffusion_jax.runtime.progress import ProgressBar, amount
from diffusion_jax.training.train_state import Tally
from diffusion_jax.training.train_step import Dispatch


class Reports:
    """Log lines from the metrics of dispatches, one dispatch late.

    So the host reads numbers that the device has long finished, and never waits.

    Attributes:
      skipped_in_a_row: updates skipped at the end of what is reported.
    """

    def __init__(
        self,
        plan: Plan,
        learning_rate: Callable[[int], Any],
        log: MetricLog,
        bar: ProgressBar,
        latest_checkpoint: Callable[[int], str],
        add_event: Callable[[str, int, str], None],
        skipped_in_a_row: int = 0,
    ):
        """Begin with nothing to report.

        Args:
          plan: of the run.
          learning_rate: at each update.
          log, bar: where lines go.
          latest_checkpoint: latest_checkpoint(step) names the newest one before a step.
          add_event: add_event(kind, step, text) keeps what happened.
          skipped_in_a_row: updates skipped at the end of what was reported before.
        """
        self._config, self._learning_rate = plan.config, learning_rate
        self._steps_per_epoch = len(plan.data.train) / plan.config.data.batch_size
        self._log, self._bar, self._latest_checkpoint = log, bar, latest_checkpoint
        self._add_event = add_event
        self._waiting: tuple[int, int, Dispatch] | None = None
        self._loss: float | None = None
        self.skipped_in_a_row = skipped_in_a_row

    def add(self, first: int, count: int, dispatch: Dispatch) -> None:
        """Add `count` steps from `first` on; those before are reported."""
        self.flush()
        self._waiting = (first, count, dispatch)

    def flush(self) -> None:
        """Report what waits.

        Raises:
          RunFailed: if too many updates in a row were skipped, naming the step.
        """
        if self._waiting is None:
            return
        (first, count, (metrics, tally)), self._waiting = self._waiting, None
        losses, norms = (np.asarray(m)[:count] for m in metrics)
        bad = ~(np.isfinite(losses) & np.isfinite(norms))
        for i in range(count):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if bad[i] else 0
            if self.skipped_in_a_row >= self._config.training.max_skipped_in_a_row:
                self._fail(first + i, losses[i], norms[i])
        if bad.any():
            where = [f"{first + i:,}" for i in np.flatnonzero(bad)]
            where[5:] = ["..."] * (len(where) > 5)
            said = (
                f"update skipped at step {', '.join(where)}: loss or gradient is not finite"
            )
            self._bar.say(f"warning: {said}")
            self._add_event(events.SKIPPED, first + int(bad.argmax()), said)
        step, config = first + count, self._config
        if step % config.training.log_every == 0 or step == config.training.num_steps:
            self._write_line(step, tally)
        rate = self._bar.rate(step)
        loss = losses[~bad].mean() if self._loss is None and not bad.all() else self._loss
        text = f"epoch {step / self._steps_per_epoch:.2f}"
        text += "" if loss is None else f"  loss {loss:.4f}"
        if rate:
            kind = kind_of(config.data).name
            text += f"  {amount(rate * config.data.batch_size)} {kind}/s"
        self._bar.report(step, text)

    def _write_line(self, step: int, tally: Tally) -> None:
        steps, skipped = int(tally.steps), int(tally.skipped)
        values: dict[str, float] = {}
        if steps:
            self._loss = float(tally.loss) / steps
            values["loss"] = self._loss
            values["grad_norm"] = float(tally.grad_norm) / steps
        # The optimiser counts the updates that it made.
        values["learning_rate"] = float(self._learning_rate(max(0, step - 1 - skipped)))
        values["skipped_steps"] = skipped
        rate = self._bar.rate(step)
        if rate:
            values["steps_per_sec"] = rate
            values["images_per_sec"] = rate * self._config.data.batch_size
        self._log.write(step, values)

    def _fail(self, step: int, loss: float, norm: float) -> None:
        first = step - self.skipped_in_a_row + 1
        what = f"loss is {loss}" if not np.isfinite(loss) else f"gradient norm is {norm}"
        said = (
            f"{what} at step {step:,}, and {self.skipped_in_a_row:,} updates in a row were "
            f"skipped, from step {first:,} on; {self._latest_checkpoint(first)}; a lower "
            "optimizer.learning_rate or a longer optimizer.warmup_steps may help"
        )
        self._add_event(events.FAILED, step, said)
        raise RunFailed(said)
