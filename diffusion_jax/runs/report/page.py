"""A report as the text of one HTML page, which needs no other file and no network."""

import base64
import hashlib
import pathlib
import string
from collections.abc import Sequence
from typing import Any

import diffusion_jax
from diffusion_jax.runs.report import curves, quality, sections
from diffusion_jax.runs.report.curves import Chart, thinned
from diffusion_jax.runs.report.facts import Facts, as_json
from diffusion_jax.runs.report.markup import Html, escaped, joined, source
from diffusion_jax.runtime import files

# A page of ours says so near its beginning.
MARK = '<meta name="generator" content="diffusion_jax report">'
_FILES = pathlib.Path(__file__).parent


def render(runs: Sequence[Facts], made: Sequence[Sequence[str]], written: str) -> str:
    """Return the page of one run, or of several beside each other.

    Args:
      runs: at least one.
      made: of each run the command that trains it, made from its config, if there is one.
      written: date and time of the report.
    """
    of_metrics = curves.charts(runs)
    of_quality = quality.charts(runs)
    charts = [_thinned(chart) for chart in (*of_metrics, *of_quality)]
    is_thinned = any(len(c.x) > curves.MOST_POINTS for ch in of_metrics for c in ch.curves)
    steps = grid_steps(runs)
    body = [
        *([sections.differences(runs)] if len(runs) > 1 else []),
        sections.what_it_is(runs),
        sections.curves(of_metrics, 0, curves.MOST_POINTS if is_thinned else 0),
        sections.samples(runs, steps),
        sections.chain(runs),
        sections.quality_of(runs, of_quality, len(of_metrics)),
        sections.time_line(runs),
        sections.how_to_repeat(runs, made),
    ]
    style = _text_of("uPlot.css") + _text_of("page.css")
    licence = f"/* uPlot: {_text_of('uPlot.LICENSE')} */\n"  # It goes with each copy.
    script = Html(licence + _text_of("uPlot.js") + "\n" + _text_of("page.js"))
    return string.Template(_text_of("page.html")).substitute(
        mark=MARK,
        title=escaped(sections.title(runs)),
        style=style,
        script=script,
        style_hash=_sha256(style),
        script_hash=_sha256(script),
        header=sections.header(runs),
        contents=sections.contents(_headings(len(runs) > 1)),
        body=joined(body),
        data=as_json(data(runs, charts, steps)),
        written=escaped(sections.date(written)),
        version=escaped(diffusion_jax.__version__),
    )


def _headings(are_many: bool) -> list[tuple[str, str]]:
    found = [
        ("what", "What it is"),
        ("curves", "Curves"),
        ("samples", "Samples"),
        ("chain", "From noise to samples"),
        ("quality", "Quality"),
        ("timeline", "Time line"),
        ("repeat", "How to repeat it"),
    ]
    return [("differences", "What differs"), *found] if are_many else found


def _thinned(chart: Chart) -> Chart:
    return chart._replace(curves=[thinned(curve) for curve in chart.curves])


def grid_steps(runs: Sequence[Facts]) -> list[int]:
    """Return the train steps of all sample grids that are shown, rising."""
    return sorted({grid.step for run in runs for grid in run.grids})


def data(
    runs: Sequence[Facts], charts: Sequence[Chart], steps: Sequence[int]
) -> dict[str, Any]:
    """Return what the script of the page draws, as JSON can hold it.

    Args:
      runs: the runs.
      charts: in the order of their places in the page.
      steps: of the sample grids.
    """
    return {
        "runs": [run.name for run in runs],
        "charts": [
            {**chart._asdict(), "curves": [curve._asdict() for curve in chart.curves]}
            for chart in charts
        ],
        "steps": list(steps),
        "grids": [_pictures(run.grids, "step") for run in runs],
        "chains": [_pictures(run.chain.frames if run.chain else ()) for run in runs],
        "events": [
            [{"kind": e.kind, "step": e.step} for e in sections.happenings(run)]
            for run in runs
        ],
        "ends": [sections.last_step(run) for run in runs],
    }


def _pictures(pictures: Sequence[Any], *more: str) -> list[dict[str, Any]]:
    return [
        {"title": p.title, "src": source(p), **{name: getattr(p, name) for name in more}}
        for p in pictures
    ]


def _text_of(name: str) -> Html:
    return Html(files.read_text(_FILES / name))


def _sha256(text: str) -> str:
    """Return the hash by which a page's policy allows a script or a style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
