"""Curves of the metrics of runs, as the charts of a page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.runs.report.facts import Facts

MOST_POINTS = 1000  # Of a curve; longer ones are thinned.
_ERROR = "_standard_error"
_BOUND, _BY_T = "bits_per_dim", "bits_per_dim_by_t"
_LOSS, _REFERENCE = "held_out_loss", "reference_loss"
# Denoisers without training, by their names in the metrics.
_REFERENCES = {
    "untrained": "untrained",
    "mean": "predicting the mean",
    "linear": "linear denoiser",
}
# Metrics that others show: the rate in examples, and the bound.
_SHOWN_ELSEWHERE = ("steps_per_sec", "skipped_steps", "prior_L_T", _BY_T)


class Curve(NamedTuple):
    """A curve of a chart.

    Attributes:
      label: its name in the legend.
      run: index of its run.
      x, y: its points, x rising.
      error: standard error of each y, or none at all.
    """

    label: str
    run: int
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()


class Chart(NamedTuple):
    """A chart of curves over one x axis.

    Attributes:
      title: a heading.
      x, y: names of the axes, with units.
      is_log: whether the y axis is logarithmic.
      curves: at least one.
      is_x_log: whether the x axis is.
    """

    title: str
    x: str
    y: str
    is_log: bool
    curves: Sequence[Curve]
    is_x_log: bool = False


class Parts(NamedTuple):
    """The curves of a metric in several parts, by the labels of the parts."""

    title: str
    y: str
    is_log: bool
    curves: dict[str, list[Curve]]


class _Family(NamedTuple):
    """Metrics that share a chart, by their labels in it."""

    title: str
    y: str
    is_log: bool
    labels: Mapping[str, str]


_FAMILIES = (
    _Family("Loss", "loss", True, {"loss": "training", _LOSS: "held out"}),
    _Family("Bits per dimension", "bits/dim", False, {_BOUND: "held out"}),
    _Family("Gradient norm", "norm", True, {"grad_norm": "gradient"}),
    _Family("Speed", "examples/s", False, {"images_per_sec": "training"}),
    _Family("Learning rate", "learning rate", False, {"learning_rate": "learning rate"}),
)
_STEPS = "train step"
_QUARTERS = "Held-out loss by quarter of t"


def names_of(facts: Facts) -> set[str]:
    """Return the names of the metrics of a run."""
    return {name for line in facts.lines for name in line} - {"step"}


def charts(runs: Sequence[Facts]) -> list[Chart]:
    """Return the charts of the metrics of the runs, those without a curve left out.

    Of one run, metrics that belong together share a chart; of several runs each chart
    has one metric, and a curve for each run.
    """
    found = list(_families(runs))
    for title, y, is_log, parts in _parts(runs):
        if len(runs) == 1:
            whole = [curve for curves in parts.values() for curve in curves]
            found.append(Chart(title, _STEPS, y, is_log, whole))
            continue
        for part, curves in parts.items():
            each = _by_run(runs, curves)
            found.append(Chart(f"{title}: {part}", _STEPS, y, is_log, each))
    found += _of_bound_over_t(runs)
    found += _others(runs)
    return [chart for chart in found if chart.curves]


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Return a curve of at most about this many points.

    Of each stretch of a longer one, the points with the smallest and the largest y stay;
    so do the first and the last point.
    """
    total = len(curve.x)
    if total <= most:
        return curve
    kept, y = {0, total - 1}, np.asarray(curve.y)
    for stretch in np.array_split(np.arange(1, total - 1), max(1, (most - 2) // 2)):
        kept |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    at = sorted(kept)
    error = [curve.error[i] for i in at] if curve.error else ()
    return curve._replace(
        x=[curve.x[i] for i in at], y=[curve.y[i] for i in at], error=error
    )


def _by_run(runs: Sequence[Facts], curves: Sequence[Curve]) -> list[Curve]:
    return [curve._replace(label=runs[curve.run].name) for curve in curves]


def _families(runs: Sequence[Facts]) -> Iterator[Chart]:
    for title, y, is_log, labels in _FAMILIES:
        by_name = {
            name: [c for i in range(len(runs)) for c in _curve(runs[i], i, name, label)]
            for name, label in labels.items()
        }
        if len(runs) == 1:
            curves = [curve for curves in by_name.values() for curve in curves]
            if _LOSS in labels:
                curves += _references(runs[0])
            yield Chart(title, _STEPS, y, is_log, curves)
            continue
        for name, curves in by_name.items():
            of = f", {labels[name]}" if len(labels) > 1 else ""
            yield Chart(f"{title}{of}", _STEPS, y, is_log, _by_run(runs, curves))


def _references(facts: Facts) -> Iterator[Curve]:
    """Return level lines of the losses that the held-out loss is compared with."""
    steps = list(_points(facts.lines, _LOSS))
    of_lines = (line.get(_REFERENCE) for line in facts.lines)
    found = next((losses for losses in of_lines if isinstance(losses, dict)), {})
    seen = set[float]()
    for name, label in _REFERENCES.items():
        loss = found.get(name, math.nan)
        if steps and math.isfinite(loss) and loss not in seen:
            yield Curve(label, 0, [steps[0], steps[-1]], [loss, loss])
        seen.add(loss)


def _curve(facts: Facts, run: int, name: str, label: str) -> Iterator[Curve]:
    """Return the curve of a metric, if the run has it, of its finite values."""
    points = _points(facts.lines, name)
    if not points:
        return
    errors = _points(facts.lines, name + _ERROR)
    error = [errors[step] for step in points] if errors.keys() >= points.keys() else ()
    yield Curve(label, run, list(points), list(points.values()), error)


def _points(lines: Sequence[dict[str, Any]], name: str) -> dict[int, float]:
    found = {line["step"]: line[name] for line in lines if name in line}
    return {
        step: found[step]
        for step in sorted(found)
        if not isinstance(found[step], dict) and math.isfinite(found[step])
    }


def _parts(runs: Sequence[Facts]) -> Iterator[Parts]:
    """Return the metrics that are dicts of numbers, and the terms of the bound."""
    names = {
        name: None
        for facts in runs
        for line in facts.lines
        for name, value in line.items()
        if isinstance(value, dict) and name not in (_BY_T, _REFERENCE)
    }
    for name in names:
        title = _QUARTERS if name == f"{_LOSS}_by_t" else name
        prefix = "t = " if name.endswith("_by_t") else ""
        found = [
            {prefix + part: points for part, points in _split(facts.lines, name).items()}
            for facts in runs
        ]
        yield Parts(title, "loss" if title == _QUARTERS else name, True, _by_part(found))
    found = [terms_of_bound(facts.lines) for facts in runs]
    yield Parts("Terms of the bound", "bits/dim", False, _by_part(found))


def _by_part(found: Sequence[dict[str, dict[int, float]]]) -> dict[str, list[Curve]]:
    parts: dict[str, list[Curve]] = {}
    for run, by_label in enumerate(found):
        for label, points in by_label.items():
            curve = Curve(label, run, list(points), list(points.values()))
            parts.setdefault(label, []).append(curve)
    return parts


def _split(lines: Sequence[dict[str, Any]], name: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for line in sorted(lines, key=lambda line: line["step"]):
        values = line.get(name)
        for part, value in values.items() if isinstance(values, dict) else ():
            if math.isfinite(value):
                found.setdefault(part, {})[line["step"]] = value
    return found


def terms_of_bound(lines: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the bound in three terms, by their labels, over the train steps.

    L_0 is what the last reverse step costs (Ho et al. 2020, eq. 5); the sum of L_1 to
    L_(T-1) is the rate of the others, and L_T, the prior, is what the noise costs. They
    add up to the bits per dimension.
    """
    terms: dict[str, dict[int, float]] = {}
    for line in sorted(lines, key=lambda line: line["step"]):
        by_t, prior = line.get(_BY_T), line.get("prior_L_T")
        if not isinstance(by_t, dict) or not by_t or not isinstance(prior, int | float):
            continue
        first, *others = by_t.values()
        for label, value in (
            ("L_0, last step", first),
            ("L_1 to L_(T-1), rate", sum(others)),
            ("L_T, prior", prior),
        ):
            if math.isfinite(value):
                terms.setdefault(label, {})[line["step"]] = value
    return terms


def _of_bound_over_t(runs: Sequence[Facts]) -> Iterator[Chart]:
    """Return the newest terms over t, a timestep each: those of a stratum are divided."""
    curves = []
    for i, facts in enumerate(runs):
        lines = [line for line in facts.lines if isinstance(line.get(_BY_T), dict)]
        if not lines:
            continue
        newest = max(lines, key=lambda line: line["step"])
        points = {}
        for name, value in newest[_BY_T].items():
            first, _, last = name.partition("-")
            if first.isdecimal() and (last or first).isdecimal() and math.isfinite(value):
                a, b = int(first), int(last or first)
                points[(a + b) / 2] = value / (b - a + 1)
        label = facts.name if len(runs) > 1 else f"step {newest['step']:,}"
        at = sorted(points)
        if at:
            curves.append(Curve(label, i, at, [points[t] for t in at]))
    yield Chart("Bound by timestep, newest", "timestep t", "bits/dim per t", True, curves)


def _others(runs: Sequence[Facts]) -> Iterator[Chart]:
    """Return a chart for each other metric, such as those of quality."""
    known = {*_SHOWN_ELSEWHERE, *(name for f in _FAMILIES for name in f.labels)}
    names = {name: None for facts in runs for line in facts.lines for name in line}
    for name in names:
        if name in known or name == "step" or name.endswith(_ERROR):
            continue
        curves = [
            curve
            for i, facts in enumerate(runs)
            for curve in _curve(facts, i, name, facts.name if len(runs) > 1 else name)
        ]
        yield Chart(name, _STEPS, name, False, curves)
