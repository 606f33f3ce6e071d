"""Work at intervals beside the steps: held-out loss, the bound, sample pictures."""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax

from diffusion_jax.config import Config, TrainingConfig
from diffusion_jax.evaluation.bound import BatchTerms, rate_distortion, standard_error
from diffusion_jax.evaluation.reference_losses import ReferenceLosses
from diffusion_jax.evaluation.timestep_scan import strata
from diffusion_jax.experiment import feature_names
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import events, pictures
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.ema import average_names
from diffusion_jax.runs.metrics_log import MetricLog, losses_by_step, read_metrics
from diffusion_jax.runtime import devices, first_process, processes
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.stopwatch import Stopwatch
from diffusion_jax.training import stalled
from diffusion_jax.training.held_out import HeldOut
from diffusion_jax.training.previews import Previews, preview_path
from diffusion_jax.training.references import references_of
from diffusion_jax.training.sample_quality import SampleQuality
from diffusion_jax.training.train_state import TrainState

LOSS, BITS = "held_out_loss", "bits_per_dim"
REFERENCE = "reference_loss"  # Those of denoisers without training, by their names.
# The names of the work on a stopwatch.
HELD_OUT_LOSS, BITS_PER_DIM, QUALITY = "held-out loss", "bits/dim", "quality"


class Due(NamedTuple):
    """The work that is to be done."""

    evaluate: bool = False
    bound: bool = False
    draw: bool = False
    quality: bool = False


def is_due(every: int, step: int, num_steps: int) -> bool:
    """Return whether what is done at this interval, and at the end, is due at a step."""
    return bool(every) and (step % every == 0 or step == num_steps)


def due_at(training: TrainingConfig, step: int) -> Due:
    """Return what is to be done after this step."""
    return Due(*(is_due(n, step, training.num_steps) for n in intervals(training)))


def intervals(training: TrainingConfig) -> tuple[int, int, int, int]:
    """Return the intervals of the work, in the order of `Due`."""
    return (
        training.eval_every,
        training.likelihood_every,
        training.sample_every,
        training.quality_every,
    )


def still_due(config: Config, workdir: pathlib.Path, step: int) -> Due:
    """Return what is to be done after a step and has not been done yet.

    The work comes after the checkpoint, and a run may have been stopped in between.
    """
    lines = read_metrics(workdir / "metrics.jsonl")
    done = {name for line in lines if line["step"] == step for name in line}
    due = due_at(config.training, step) if step else Due()
    left = (
        due.evaluate and LOSS not in done,
        due.bound and BITS not in done,
        due.draw and not preview_path(workdir, step).exists(),
        due.quality and feature_names.metric_names(config)["FD"] not in done,
    )
    return Due(*processes.of_first(left))  # It is the one that writes.


class Periodic:
    """The work at intervals of one run, done with the averaged parameters."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        mesh: jax.sharding.Mesh,
        stop: Stop,
        log: MetricLog,
        bar: ProgressBar,
        stopwatch: Stopwatch,
    ):
        """Prepare; each kind of work compiles when it is first due."""
        self.held_out = HeldOut(plan, mesh, stop, bar)
        self.previews = Previews(plan, workdir, mesh, stop, bar, stopwatch)
        if plan.config.training.quality_every:
            self.quality = SampleQuality(plan, mesh, stop, bar)
        self._config, self._workdir, self._stop = plan.config, workdir, stop
        self._mesh = mesh
        self._preview, self._stopwatch = plan.preview, stopwatch
        self._log, self._bar = log, bar
        self._main = average_names(plan.config.ema)[0]
        self._curve = losses_by_step(workdir / "metrics.jsonl", LOSS)
        self._reference = functools.cache(lambda: references_of(plan))

    def run_due(self, state: TrainState, step: int, due: Due) -> dict[str, float]:
        """Do what is due, unless somebody waits for the run to stop.

        Returns:
          The figures that were found, by name: "held_out_loss", "bits_per_dim", and those
          of `metric_names`.
        """
        found = dict[str, float]()
        if due.evaluate or due.bound or due.quality:
            params = devices.whole_everywhere(self._mesh, state.emas[self._main])
        if due.evaluate and not self._stop.wanted:
            found |= self._evaluate(params, step)
        if due.bound and not self._stop.wanted:
            found |= self._bound(params, step)
        if due.quality and not self._stop.wanted:
            found |= self._quality(params, step)
        if due.draw and not self._stop.wanted:
            training = self._config.training
            if step in (training.sample_every, training.num_steps):  # It may take long.
                steps = f"{self._preview.steps} DDIM steps"
                self._bar.say(f"drawing {self._preview.batch_size:,} samples with {steps}")
            self.previews.draw(state, step)
        return found

    def _evaluate(self, params: Any, step: int) -> dict[str, float]:
        with self._stopwatch.timed(HELD_OUT_LOSS):
            found = self.held_out.loss(params)
        if found is None:
            return {}
        loss, by_quarter = found
        if not math.isfinite(loss):
            self._warn(step, f"the held-out loss at step {step:,} is {loss}")
            return {}
        values: dict[str, Any] = {LOSS: loss, f"{LOSS}_by_t": by_quarter}
        reference = self._reference() if first_process.is_here() else None
        if reference is not None and not self._curve:
            values[REFERENCE] = reference._asdict()
            said = f"step {step:,}: held-out loss {loss:.4g}"
            self._bar.say(f"{said}; for comparison: {stalled.in_short(reference)}")
        self._log.write(step, values)
        self._curve[step] = loss
        if reference is not None:
            self._warn_if_stalled(step, reference)
        return {LOSS: loss}

    def _warn_if_stalled(self, step: int, reference: ReferenceLosses) -> None:
        """Warn of a stall, once in the life of a run."""
        config = self._config
        settled, length = stalled.settled_after(config), config.training.num_steps
        stall = stalled.find_stall(self._curve, reference, settled, length)
        if stall is not None and not self._has_warned():
            self._warn(step, stalled.in_words(stall, reference, config))

    def _has_warned(self) -> bool:
        said = (event.text for event in events.read(self._workdir))
        return any(text.startswith(stalled.BEGINNING) for text in said)

    def _warn(self, step: int, said: str) -> None:
        self._bar.say(f"warning: {said}")
        events.add(self._workdir, events.WARNING, step, said)

    def _bound(self, params: Any, step: int) -> dict[str, float]:
        if step == self._config.training.likelihood_every:  # It may take long.
            self._bar.say("evaluating the likelihood of the held-out images")
        with self._stopwatch.timed(BITS_PER_DIM):
            terms = self.held_out.bound(params)
        if terms is None:
            return {}
        bits = float(terms.bits.mean())
        if not math.isfinite(bits):
            self._warn(step, f"the bound at step {step:,} is {bits} bits/dim")
            return {}
        self._bar.say(f"step {step:,}: {bits:.4f} bits/dim")
        total = self._config.process.num_timesteps
        # The picture first: a kill in between makes both again.
        picture = run_folder.evaluations_path(self._workdir) / f"training_{step:06d}.png"
        pictures.save_rate_distortion(picture, *rate_distortion(terms, total))
        self._log.picture(step, "rate_distortion", picture)
        said: dict[str, Any] = {BITS: bits}
        if len(terms.bits) > 1:
            said[f"{BITS}_standard_error"] = standard_error(terms.bits)
        said["prior_L_T"] = terms.prior
        said[f"{BITS}_by_t"] = _by_stratum(terms, total)
        self._log.write(step, said)
        return {BITS: bits}

    def _quality(self, params: Any, step: int) -> dict[str, float]:
        with self._stopwatch.timed(QUALITY):
            found = self.quality.figures(params)
        if found is None:
            return {}
        if not all(map(math.isfinite, found.values())):
            self._warn(step, f"the samples at step {step:,} are not finite")
            return {}
        said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        self._bar.say(f"step {step:,}: {said}")
        self._log.write(step, found)
        return found


def _by_stratum(terms: BatchTerms, num_timesteps: int) -> dict[str, float]:
    """The terms of the bound by their timesteps, as "0", "1-3"."""
    edges = strata(num_timesteps, len(terms.terms))
    names = [
        str(a) if a == b - 1 else f"{a}-{b - 1}"
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    return dict(zip(names, terms.terms.tolist(), strict=True))
