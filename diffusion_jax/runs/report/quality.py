"""Results of evaluate.py in tables and charts: quality, likelihood."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from diffusion_jax.runs.report.curves import Chart, Curve
from diffusion_jax.runs.report.facts import Facts

# What figures have in common that a curve joins.
_ALIKE = (
    *("sampler", "eta", "guidance", "weights", "checkpoint_step"),
    *("num_samples", "seed", "network_sha256", "reference"),
)


class Figure(NamedTuple):
    """One figure of one evaluation.

    Attributes:
      run: index of the run.
      name: of the figure ("FD-pca20").
      value, error: the figure and its standard error; NaN where there is none.
      note: the contents of the file.
    """

    run: int
    name: str
    value: float
    error: float
    note: Mapping[str, Any]


def figures(runs: Sequence[Facts]) -> Iterator[Figure]:
    """Return the figures of quality of all runs."""
    for i, facts in enumerate(runs):
        for note in facts.evaluations.values():
            of_note = note.get("figures")
            if note.get("kind") != "quality" or not isinstance(of_note, dict):
                continue
            for name, found in of_note.items():
                if isinstance(found, dict) and is_number(found.get("value")):
                    error = found.get("standard_error")
                    error = float(error) if is_number(error) else math.nan
                    yield Figure(i, name, float(found["value"]), error, note)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value out of a JSON file is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def likelihoods(runs: Sequence[Facts]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Return (index of the run, name, contents) of each evaluation of a likelihood."""
    for i, facts in enumerate(runs):
        for name, note in facts.evaluations.items():
            if is_number(note.get("bits_per_dim")):
                yield i, name, note


def charts(runs: Sequence[Facts]) -> list[Chart]:
    """Return a chart over the sampling steps for each figure known at several of them.

    A curve has the figures of one run and sampler that are alike in all else.
    """
    by_name: dict[str, dict[tuple, dict[float, Figure]]] = {}
    for figure in figures(runs):
        steps = figure.note.get("steps")
        if is_number(steps):
            curves = by_name.setdefault(figure.name, {})
            curves.setdefault(_alike(figure), {})[float(steps)] = figure
    return [
        Chart(
            f"{name} by sampling steps",
            "sampling steps",
            name,
            False,
            [_curve(runs, points) for points in curves.values()],
            is_x_log=True,
        )
        for name, curves in by_name.items()
        if any(len(points) > 1 for points in curves.values())
    ]


def _alike(figure: Figure) -> tuple:
    return (figure.run, *(repr(figure.note.get(name)) for name in _ALIKE))


def _curve(runs: Sequence[Facts], points: Mapping[float, Figure]) -> Curve:
    at = sorted(points)
    found = [points[steps] for steps in at]
    first = found[0]
    label = str(first.note.get("sampler", ""))
    if len(runs) > 1:
        label = f"{runs[first.run].name}: {label}"
    errors = [figure.error for figure in found]
    has_errors = all(map(math.isfinite, errors))
    values = [figure.value for figure in found]
    return Curve(label, first.run, at, values, errors if has_errors else ())
