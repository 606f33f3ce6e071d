"""What is due now and then beside the steps: held-out loss, the bound, sample pictures."""

import math
import pathlib
from typing import Any, NamedTuple

from diffusion_jax.evaluation.bound import BatchTerms, rate_distortion, standard_error
from diffusion_jax.evaluation.timestep_scan import strata
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import pictures
from diffusion_jax.runs.ema import average_names
from diffusion_jax.runs.metrics_log import MetricLog, read_metrics
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.training.held_out import HeldOut
from diffusion_jax.training.previews import Previews
from diffusion_jax.training.train_state import TrainState

LOSS, BITS = "held_out_loss", "bits_per_dim"


class Due(NamedTuple):
    """Which of them."""

    evaluate: bool = False
    bound: bool = False
    draw: bool = False


def is_due(every: int, step: int, num_steps: int) -> bool:
    """Whether what is done every so many steps, and at the end, is due after this one."""
    return bool(every) and (step % every == 0 or step == num_steps)


class Milestones:
    """All three, of the averaged weights, with what is needed for them."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        mesh: Any,
        stop: Stop,
        losses: dict[int, float],
    ):
        """`losses` are by step those by which the best checkpoint is chosen."""
        self.held_out = HeldOut(plan, mesh, stop)
        self.previews = Previews(plan, workdir, mesh, stop)
        self._config, self._workdir, self._stop = plan.config, workdir, stop
        self._losses = losses
        self._main = average_names(plan.config.ema)[0]

    def due(self, step: int) -> Due:
        """What is to be done after this step."""
        training = self._config.training
        every = training.eval_every, training.likelihood_every, training.sample_every
        return Due(*(is_due(n, step, training.num_steps) for n in every))

    def to_make_up(self, step: int) -> Due:
        """What is still due after the first step of a run that goes on.

        It comes after the checkpoint, and a run may have been stopped in between. Reads
        the losses of earlier steps as well.
        """
        done = set()
        for line in read_metrics(self._workdir / "metrics.jsonl"):
            for name in {LOSS, BITS} & line.keys():
                done.add((name, line["step"]))
                if name == self._config.training.best_by and line["step"] <= step:
                    self._losses[line["step"]] = line[name]
        due = self.due(step) if step else Due()
        return Due(
            due.evaluate and (LOSS, step) not in done,
            due.bound and (BITS, step) not in done,
            due.draw and not self.previews.path(step).exists(),
        )

    def do(
        self, state: TrainState, step: int, due: Due, log: MetricLog, bar: ProgressBar
    ) -> None:
        """Does what is due, unless somebody waits for the run to stop."""
        params = state.emas[self._main]
        if due.evaluate and not self._stop.wanted:
            self._evaluate(params, step, log, bar)
        if due.bound and not self._stop.wanted:
            self._bound(params, step, log, bar)
        if due.draw and not self._stop.wanted:
            training = self._config.training
            if step in (training.sample_every, training.num_steps):  # It may take long.
                bar.say(f"drawing {training.num_samples} samples")
            self.previews.draw(state, step)

    def _evaluate(self, params: Any, step: int, log: MetricLog, bar: ProgressBar) -> None:
        found = self.held_out.loss(params)
        if found is None:
            return
        loss, by_quarter = found
        if not math.isfinite(loss):
            bar.say(f"warning: the held-out loss at step {step:,} is {loss}")
            return
        self._note(LOSS, step, loss)
        log.write(step, {LOSS: loss, f"{LOSS}_by_t": by_quarter})

    def _bound(self, params: Any, step: int, log: MetricLog, bar: ProgressBar) -> None:
        if step == self._config.training.likelihood_every:  # It may take long.
            bar.say("evaluating the likelihood of the held-out images")
        terms = self.held_out.bound(params)
        if terms is None:
            return
        bits = float(terms.bits.mean())
        if not math.isfinite(bits):
            bar.say(f"warning: the bound at step {step:,} is {bits} bits/dim")
            return
        self._note(BITS, step, bits)
        bar.say(f"step {step:,}: {bits:.4f} bits/dim")
        total = self._config.process.num_timesteps
        # The picture first: a kill in between makes both anew.
        picture = run_folder.evaluations_path(self._workdir) / f"training_{step:06d}.png"
        pictures.save_rate_distortion(picture, *rate_distortion(terms, total))
        log.picture(step, "rate_distortion", picture)
        said: dict[str, Any] = {BITS: bits}
        if len(terms.bits) > 1:
            said[f"{BITS}_standard_error"] = standard_error(terms.bits)
        said["prior_L_T"] = terms.prior
        said[f"{BITS}_by_t"] = _by_stratum(terms, total)
        log.write(step, said)

    def _note(self, name: str, step: int, loss: float) -> None:
        if name == self._config.training.best_by:
            self._losses[step] = loss


def _by_stratum(terms: BatchTerms, num_timesteps: int) -> dict[str, float]:
    """The terms of the bound by their timesteps, as "0", "1-3"."""
    edges = strata(num_timesteps, len(terms.terms))
    names = [
        str(a) if a == b - 1 else f"{a}-{b - 1}"
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    return dict(zip(names, terms.terms.tolist(), strict=True))
