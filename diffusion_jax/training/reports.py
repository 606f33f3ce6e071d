"""What a training run says while it goes on."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.reporting.metrics import MetricLog
from diffusion_jax.reporting.progress import ProgressBar
from diffusion_jax.runs import RunFailed
from diffusion_jax.training.step import Metrics


class Reports:
    """Turns the metrics of dispatches into log lines, one dispatch late.

    So the host reads numbers that the device has long finished, and never waits.
    """

    def __init__(
        self,
        config: Config,
        learning_rate: Callable[[int], Any],
        log: MetricLog,
        bar: ProgressBar,
        newest_checkpoint: Callable[[], str],
    ):
        """`newest_checkpoint` says what is left of a run that fails."""
        self.config, self.learning_rate = config, learning_rate
        self.log, self.bar, self.newest_checkpoint = log, bar, newest_checkpoint
        self.waiting: tuple[int, int, Metrics] | None = None
        self.since_log: list[tuple[float, float]] = []
        self.loss = float("nan")

    def add(self, first: int, count: int, metrics: Metrics) -> None:
        """The metrics of `count` steps from `first` on; those before are reported."""
        self.flush()
        self.waiting = (first, count, metrics)

    def flush(self) -> None:
        """Reports what waits.

        Raises:
          RunFailed: if a loss or a gradient is not finite, naming the step.
        """
        if self.waiting is None:
            return
        (first, count, metrics), self.waiting = self.waiting, None
        losses, norms = (np.asarray(m)[:count] for m in metrics)
        step, config = first + count, self.config
        bad = ~(np.isfinite(losses) & np.isfinite(norms))
        if bad.any():
            raise RunFailed(
                f"loss or gradient is not finite at step {first + int(np.argmax(bad)):,} "
                f"(loss {losses[bad][0]}, gradient norm {norms[bad][0]}); "
                f"{self.newest_checkpoint()}; a lower optimizer.learning_rate or a longer "
                "optimizer.warmup_steps may help"
            )
        self.since_log += zip(losses.tolist(), norms.tolist(), strict=True)
        rate = self.bar.rate(step)
        if step % config.training.log_every == 0 or step == config.training.num_steps:
            self.loss, norm = np.mean(self.since_log, axis=0).tolist()
            self.since_log.clear()
            values = {
                "loss": self.loss,
                "grad_norm": norm,
                "learning_rate": float(self.learning_rate(step - 1)),
            }
            if rate:
                values["steps_per_sec"] = rate
                values["images_per_sec"] = rate * config.data.batch_size
            self.log.write(step, values)
        text = f"loss {losses.mean() if np.isnan(self.loss) else self.loss:.4f}"
        if rate:
            text += f"  {rate * config.data.batch_size:,.0f} images/s"
        self.bar.report(step, text)
