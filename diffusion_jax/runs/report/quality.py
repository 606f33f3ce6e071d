"""Results of evaluate.py in tables and charts: quality, likelihood."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from diffusion_jax.runs.report.curves import Chart, Curve
from diffusion_jax.runs.report.facts import Facts

# What figures have in common that a curve joins, besides their run.
_ALIKE = (
    *("sampler", "eta", "churn", "spacing", "guidance", "label", "weights"),
    *("checkpoint_step", "num_samples", "seed", "reference", "network_sha256"),
)


_NUMBERS = ("num_samples", "num_reference")


class Reading(NamedTuple):
    """One figure of one evaluation.

    Attributes:
      run: index of the run.
      evaluation: name of its file.
      name: of the figure ("FD-pca20").
      value, error: the figure and its standard error; NaN where there is none.
      note: the contents of the file, with the numbers of examples of this figure.
    """

    run: int
    evaluation: str
    name: str
    value: float
    error: float
    note: Mapping[str, Any]


def figures(runs: Sequence[Facts]) -> Iterator[Reading]:
    """Return the figures of quality of all runs."""
    for i, facts in enumerate(runs):
        for evaluation, note in facts.evaluations.items():
            of_note = note.get("figures")
            if note.get("kind") != "quality" or not isinstance(of_note, dict):
                continue
            for name, found in of_note.items():
                if isinstance(found, dict) and is_number(found.get("value")):
                    error = found.get("standard_error")
                    error = float(error) if is_number(error) else math.nan
                    own = {k: found[k] for k in _NUMBERS if k in found}
                    value = float(found["value"])
                    yield Reading(i, evaluation, name, value, error, note | own)


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
    by_name: dict[str, dict[tuple, dict[float, Reading]]] = {}
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
            [
                _curve(label, points)
                for label, points in zip(
                    _labels(runs, curves), curves.values(), strict=True
                )
            ],
            is_x_log=True,
        )
        for name, curves in by_name.items()
        if any(len(points) > 1 for points in curves.values())
    ]


def _alike(figure: Reading) -> tuple[str, ...]:
    return str(figure.run), *(str(figure.note.get(name, "")) for name in _ALIKE)


def _labels(runs: Sequence[Facts], curves: Iterable[tuple[str, ...]]) -> list[str]:
    """Return names of curves: run, sampler, and what else tells them apart."""
    alike = list(curves)
    differ = {
        i for i, values in enumerate(zip(*alike, strict=True)) if len(set(values)) > 1
    }
    labels = []
    for run, sampler, *others in alike:
        parts = [runs[int(run)].name] if len(runs) > 1 else []
        parts.append(sampler)
        for i, (name, value) in enumerate(zip(_ALIKE[1:], others, strict=True), 2):
            parts += [f"{name} {value}"] if i in differ else []
        labels.append(", ".join(parts))
    return labels


def _curve(label: str, points: Mapping[float, Reading]) -> Curve:
    at = sorted(points)
    found = [points[steps] for steps in at]
    errors = [figure.error for figure in found]
    errors = errors if all(map(math.isfinite, errors)) else []
    return Curve(label, found[0].run, at, [figure.value for figure in found], errors)
