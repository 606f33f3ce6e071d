"""The rows of a sampler's table: what one network call does, as coefficients.

With x the state, `anchor` a second state that some methods keep, x0 this row's predicted
x_0 and x0_prev, x0_prev2 those of the rows before, each row computes

    x0     = hook(x0_from_x * x + x0_from_prediction * network(x, t), x, level, cond)
    noise  = exp(noise_log_range / 4 * (variance output of the network + 1)) * N(0, I)
    x      = to_x.x * x + to_x.anchor * anchor + to_x.x0 * x0 + to_x.x0_prev * x0_prev
             + to_x.x0_prev2 * x0_prev2 + to_x.noise * noise + to_x.gain * gain
    anchor = the same with to_anchor

all from the values before the row. The factor in `noise` is 1 except for learned variances.
Because x0 is clipped, or changed by another hook, before anything is formed of it, eps
enters through (x, x0) alone: it is always the one re-derived from the clipped x0.

Guidance changes x0 before the hook. Only with CFG++ x0 is the base of the guidance, and
gain = guided x0 - base.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import NoiseLevel
from diffusion_jax.diffusion.parameterization import NEED_SIGNAL, x0_coefficients


class Coefficients(NamedTuple):
    """Coefficients of one new value, in each of S rows; each float64 [S]."""

    x: np.ndarray
    anchor: np.ndarray
    x0: np.ndarray
    x0_prev: np.ndarray
    x0_prev2: np.ndarray
    noise: np.ndarray
    gain: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """S rows, in the order in which they run; NumPy float64 [S], unless stated otherwise.

    A pytree, so that a jitted function takes it as an argument: tables of the same
    length and the same static fields are one compiled program.

    Attributes:
      t: the timestep that the network is told, real-valued, in 0 .. T-1.
      x0_from_x, x0_from_prediction: give x_0 from the state and the prediction.
      to_x, to_anchor: coefficients of the next state and the next anchor.
      noise_log_range: log of the largest over the smallest variance that a network with
        learned variances chooses from; to_x.noise is the root of the smallest.
      is_remembered: bool, whether this row's x0 becomes the next row's x0_prev.
      is_trial: bool, whether x after this row is only a point to ask the network at.
      is_guided: bool, whether guidance acts in this row, where it is limited at all.
      is_live: bool; a row that is not changes nothing and calls no network.
      level: the noise level at t.
      num_previous: static, how many earlier predictions are used, 0 .. 2.
      has_anchor: static, whether the anchor is used.
      is_learned: static, whether the network's own variances are used.
      is_padded: static, whether there are rows that are not live.
    """

    t: np.ndarray
    x0_from_x: np.ndarray
    x0_from_prediction: np.ndarray
    to_x: Coefficients
    to_anchor: Coefficients
    noise_log_range: np.ndarray
    is_remembered: np.ndarray
    is_trial: np.ndarray
    is_guided: np.ndarray
    is_live: np.ndarray
    level: NoiseLevel
    num_previous: int = dataclasses.field(metadata={"static": True})
    has_anchor: bool = dataclasses.field(metadata={"static": True})
    is_learned: bool = dataclasses.field(metadata={"static": True})
    is_padded: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def num_rows(self) -> int:
        """S, the number of rows, each of which calls the network once if it is live."""
        return len(self.t)

    @property
    def num_calls(self) -> int:
        """The number of rows that are live."""
        return int(np.sum(self.is_live))

    def take(self, rows: Any) -> "SamplerTable":
        """These rows, a slice or an array of indices, as a table."""
        return jax.tree.map(lambda column: column[rows], self)

    def padded(self, num_rows: int) -> "SamplerTable":
        """The table with rows that do nothing after it, `num_rows` in all."""
        if num_rows == self.num_rows:
            return self
        row = np.arange(num_rows)
        table = self.take(np.minimum(row, self.num_rows - 1))
        is_live = table.is_live & (row < self.num_rows)
        return dataclasses.replace(table, is_live=is_live, is_padded=True)

    def unguided(self) -> "SamplerTable":
        """The table with guidance in no row."""
        return dataclasses.replace(self, is_guided=np.zeros_like(self.is_guided))

    def idle(self) -> "SamplerTable":
        """The table with no live row, which calls no network."""
        none = np.zeros_like(self.is_live)
        return dataclasses.replace(self, is_live=none, is_padded=True)


def aligned(tables: Sequence[SamplerTable]) -> list[SamplerTable]:
    """Return tables of any methods so that one compiled program runs all of them.

    All get the number of rows and the static fields of the largest.
    """
    num_rows = max(table.num_rows for table in tables)
    static: dict[str, Any] = {
        "num_previous": max(table.num_previous for table in tables),
        "has_anchor": any(table.has_anchor for table in tables),
        "is_learned": any(table.is_learned for table in tables),
        "is_padded": True,
    }
    return [dataclasses.replace(table.padded(num_rows), **static) for table in tables]


def assemble(
    model: Model,
    t: np.ndarray,
    level: NoiseLevel,
    to_x: dict[str, np.ndarray],
    to_anchor: dict[str, np.ndarray] | None = None,
    *,
    noise_log_range: np.ndarray | None = None,
    is_trial: np.ndarray | None = None,
) -> SamplerTable:
    """Return the table of rows at these timesteps.

    Args:
      model: the model of the table; what it predicts decides how x_0 is read.
      t: the timesteps, [S].
      level: the noise levels there, [S].
      to_x, to_anchor: coefficients by their names in `Coefficients`; 0 where there are
        none.
      noise_log_range, is_trial: of `SamplerTable`; 0 and False unless given.

    Raises:
      ValueError: for eps or the score where there is no signal.
    """
    no_signal = level.alpha[0] < np.finfo(np.float32).tiny
    if model.prediction in NEED_SIGNAL and no_signal:
        raise ValueError(
            f"prediction {model.prediction!r} cannot start from a zero terminal "
            "signal-to-noise ratio, because it does not determine x_0 there; predict v or "
            "x0"
        )
    none = np.zeros(len(t))

    def coefficients(given: dict[str, np.ndarray]) -> Coefficients:
        return Coefficients(**{n: given.get(n, none) for n in Coefficients._fields})

    x0_from_x, x0_from_prediction = x0_coefficients(model.prediction, level)
    both = coefficients(to_x), coefficients(to_anchor or {})
    log_range = none if noise_log_range is None else noise_log_range
    used = [any(getattr(c, name).any() for c in both) for name in ("x0_prev", "x0_prev2")]
    return SamplerTable(
        t=np.asarray(t, np.float64),
        x0_from_x=x0_from_x,
        x0_from_prediction=x0_from_prediction,
        to_x=both[0],
        to_anchor=both[1],
        noise_log_range=log_range,
        is_remembered=np.ones(len(t), bool),
        is_trial=np.zeros(len(t), bool) if is_trial is None else is_trial,
        is_guided=np.ones(len(t), bool),
        is_live=np.ones(len(t), bool),
        level=level,
        num_previous=sum(used),
        has_anchor=any(c.anchor.any() for c in both),
        is_learned=bool(log_range.any()),
    )
