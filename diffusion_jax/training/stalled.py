"""The rule that tells a run that has stalled from one that learns or has converged."""

from collections.abc import Mapping
from typing import NamedTuple

from diffusion_jax.config import Config
from diffusion_jax.evaluation.reference_losses import ReferenceLosses

_FEWEST = 6  # Evaluations from which anything is concluded.
_SHARE_OF_RUN = 1 / 20  # Train steps from which anything is concluded, of the whole run.
_WINDOW = 1 / 3  # Share of the train steps so far in which the loss should have fallen.
_LEVEL = 0.1  # Above the linear denoiser, as a share of the way to an untrained network.
_PACE = 0.1  # Fall within the window, as a share of what is left to the linear denoiser.
BEGINNING = "the run may have stalled:"  # Of the warning.
_AVERAGES = 3.0  # Lengths of an average after which it has forgotten the first weights.


class Stall(NamedTuple):
    """A held-out loss that does not fall.

    Attributes:
      best: the lowest one so far.
      steps: train steps of the window at the end.
      gain: by how much the lowest one fell in the window.
      gain_before: by how much it fell in as many train steps before.
    """

    best: float
    steps: int
    gain: float
    gain_before: float


def settled_after(config: Config) -> int:
    """Return the train step from which the held-out loss tells how a run learns.

    Before it, the learning rate warms up, and the average whose loss is measured still
    has its first weights in it.
    """
    ema, warmup = config.ema, config.optimizer.warmup_steps
    return warmup if ema.warmup else warmup + round(_AVERAGES / (1 - ema.decay))


def find_stall(
    curve: Mapping[int, float], reference: ReferenceLosses, settled: int, num_steps: int
) -> Stall | None:
    """Return the stall at the end of a curve of held-out losses, if there is one.

    The window is the last third of the train steps since `settled`. The run has stalled if
    both hold:

    - Its lowest loss is above the linear denoiser's by more than a tenth of the way to an
      untrained network. A run that has converged is below.
    - In the window the lowest loss fell by less than a tenth of what it lies above the
      linear denoiser: at this pace it takes more than three times as long as so far to
      get there.

    Nothing is concluded from fewer than six evaluations since `settled`, nor from less
    than a twentieth of the run. A run that stalls below the linear denoiser is not found:
    its curve is that of a run that has converged.

    Args:
      curve: held-out losses by train step.
      reference: the losses of denoisers without training, on the same data.
      settled: of `settled_after`.
      num_steps: train steps of the whole run.
    """
    steps = sorted(curve)
    since = [step for step in steps if step > settled]
    if len(since) < _FEWEST or since[-1] - settled < _SHARE_OF_RUN * num_steps:
        return None
    last, length = since[-1], (since[-1] - settled) * _WINDOW
    best = min(curve.values())
    before = _lowest(curve, last - length, best)
    long_before = _lowest(curve, last - 2 * length, before)
    above = best - reference.linear
    if above <= _LEVEL * (reference.untrained - reference.linear):
        return None
    if before - best >= _PACE * above:
        return None
    return Stall(best, round(length), before - best, long_before - before)


def _lowest(curve: Mapping[int, float], until: float, otherwise: float) -> float:
    found = (loss for step, loss in curve.items() if step <= until)
    return min(found, default=otherwise)


def in_words(stall: Stall, reference: ReferenceLosses, config: Config) -> str:
    """Return the warning of a stall, with what to try."""
    optimizer = config.optimizer
    return (
        f"{BEGINNING} the lowest held-out loss is {stall.best:.4g}; it fell by "
        f"{stall.gain:.2g} in the last {stall.steps:,} train steps and by "
        f"{stall.gain_before:.2g} in as many before. An untrained network has "
        f"{reference.untrained:.4g}, and a linear denoiser {reference.linear:.4g}. Try a "
        f"larger optimizer.learning_rate ({optimizer.learning_rate:g}), a shorter "
        f"optimizer.warmup_steps ({optimizer.warmup_steps:,}) or another "
        f"process.schedule ({config.process.schedule}), and look at data.png and "
        "forward.png"
    )


def in_short(reference: ReferenceLosses) -> str:
    """Return the losses of the denoisers without training, for a line of a log."""
    untrained, mean, linear = (f"{loss:.4g}" for loss in reference)
    others = f"untrained {untrained}"
    others += ", as predicting the mean" if untrained == mean else f", the mean {mean}"
    return f"{others}, a linear denoiser {linear}"
