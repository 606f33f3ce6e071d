"""The sections of a report, as HTML."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.data.kinds import kind_of
from diffusion_jax.runs import events
from diffusion_jax.runs.report import quality, repeat
from diffusion_jax.runs.report.curves import Chart
from diffusion_jax.runs.report.facts import Facts
from diffusion_jax.runs.report.markup import (
    Html,
    details,
    element,
    facts,
    figure,
    image,
    joined,
    table,
)
from diffusion_jax.runtime.fields import in_words, leaves_of
from diffusion_jax.runtime.progress import duration
from diffusion_jax.runtime.text import command, quoted

_NONE = "–"
_OF_CONFIG = ("name", "noise", "prediction", "optimizer")  # Facts that fields tell.


def summary(run: Facts) -> str:
    """Return what a run is, in a sentence."""
    config, record = run.config, run.record
    size = f" of {record.parameters:,} parameters" if record else ""
    network = _network(run)
    article = "An" if network == "MLP" else "A"
    done = f"{last_step(run):,} train steps"
    what = kind_of(config.data).name
    count = record.data.get("train") if record else None
    on = f"{count:,} {what}" if isinstance(count, int) else what
    return f"{article} {network}{size}, after {done} on {on} of {config.data.source}."


def _network(run: Facts) -> str:
    name = type(run.config.model).__name__.removesuffix("Config")
    return "U-Net" if name == "UNet" else name


def last_step(run: Facts) -> int:
    """Return the train step of the last line of the metrics."""
    return max(line["step"] for line in run.lines)


def about(run: Facts) -> dict[str, object]:
    """Return the facts of a run by their names, in words."""
    config, record, process = run.config, run.record, run.config.process
    found: dict[str, object] = {
        "name": config.name,
        "network": _network(run),
        "parameters": f"{record.parameters:,}" if record else None,
        "data": _data_in_words(run),
        "noise": f"{process.schedule} schedule, {process.num_timesteps:,} timesteps",
        "prediction": f"{process.prediction}, variance {process.variance}",
        "optimizer": f"{config.optimizer.name}, learning rate "
        f"{config.optimizer.learning_rate:g}, batches of {config.data.batch_size:,}",
        "train steps": f"{last_step(run):,} of {config.training.num_steps:,}",
    }
    if record is not None:
        found |= {
            "time": f"{duration(record.wall_time_s)} up to step {record.step:,}",
            "machine": record.devices,
            "started": date(record.started),
            "diffusion_jax": record.version,
            "libraries": ", ".join(f"{k} {v}" for k, v in record.versions.items()),
            "fingerprint of the data": record.data.get("fingerprint"),
        }
    return found


def _data_in_words(run: Facts) -> str:
    source = run.config.data.source
    data = run.record.data if run.record else {}
    if not isinstance(data.get("train"), int):
        return source
    shape, held_out, names = map(data.get, ("shape", "held_out", "class_names"))
    more = f", {held_out:,} held out" if isinstance(held_out, int) else ""
    more += f", each {' x '.join(map(str, shape))}" if isinstance(shape, list) else ""
    more += f", {len(names):,} classes" if isinstance(names, list) else ""
    return f"{source}: {data['train']:,} to train on{more}"


def date(text: str) -> str:
    """Return a date and time of ISO 8601 in words; other text as it is."""
    try:
        return f"{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return text


def differences(runs: Sequence[Facts]) -> Html:
    """Return the fields and facts in which runs differ, then all facts."""
    columns = [run.name for run in runs]
    fields: list[Mapping[str, object]] = [
        {leaf.path: _text(leaf.value) for leaf in leaves_of(run.config)} for run in runs
    ]
    facts_of = [{"folder": str(run.workdir), **about(run)} for run in runs]
    differ = _different(_rows(fields))
    count = len(differ)
    facts_differ = _different(_rows(facts_of))
    differ += [row for row in facts_differ if row[0] not in _OF_CONFIG]
    said = f"Of {len(_rows(fields))} fields of the configs, {count or 'none'} "
    parts = [element("p", said + ("differs." if count == 1 else "differ."))]
    heads = ["field or fact", *columns]
    parts.append(table("Fields and facts that differ", heads, differ, is_text=True))
    everything = table(
        "Facts of the runs", ["fact", *columns], _rows(facts_of), is_text=True
    )
    return section("differences", "What differs", *parts, details("All facts", everything))


def _rows(of_runs: Sequence[Mapping[str, object]]) -> list[list[object]]:
    """Return a row for each name, with its value in each run."""
    names = dict.fromkeys(name for each in of_runs for name in each)
    return [[name, *(_or_none(each.get(name)) for each in of_runs)] for name in names]


def _different(rows: Sequence[list[object]]) -> list[list[object]]:
    return [row for row in rows if len(set(row[1:])) > 1]


def _or_none(value: object) -> object:
    return _NONE if value is None else value


def _text(value: object) -> str:
    text = str(value) if value != "" else '""'
    return text if len(text) <= 200 else text[:200] + "..."


def section(name: str, heading: str, *content: object) -> Html:
    """Return a section of the page, which its contents lead to by `name`."""
    head = element("h2", heading, id=f"{name}-heading")
    return element("section", head, *content, id=name, aria_labelledby=f"{name}-heading")


def what_it_is(runs: Sequence[Facts]) -> Html:
    """Return data, parameters, machine, versions and config of each run."""
    parts: list[object] = []
    for run in runs:
        parts += [element("h3", run.name)] if len(runs) > 1 else [facts(about(run))]
        parts += [_data_pictures(run), _config(run)]
    return section("what", "What it is", *parts)


def _data_pictures(run: Facts) -> Html:
    what, found = kind_of(run.config.data).name, []
    if data := run.strips.get("data.png"):
        found.append(figure(data, f"Training {what}", f"Training {what} of {run.name}"))
    if forward := run.strips.get("forward.png"):
        text = f"Training {what} becoming noise: t = 0 to T, from left to right"
        found.append(figure(forward, text, text))
    if "data.png" not in run.strips:
        found.append(element("p", "Examples of the data were not kept with this run."))
    return element("div", *found, class_="figures")


def _config(run: Facts) -> Html:
    leaves = list(leaves_of(run.config))
    changed = [leaf for leaf in leaves if leaf.value != leaf.default]
    heads = ["field", "value", "default"]
    own = table(
        f"Config of {run.name}: fields that are not the defaults",
        heads,
        [[leaf.path, _text(leaf.value), _text(leaf.default)] for leaf in changed],
        is_text=True,
    )
    everything = table(
        f"Config of {run.name}: all fields",
        ["field", "value", "meaning"],
        [[leaf.path, _text(leaf.value), in_words(leaf)] for leaf in leaves],
        is_text=True,
    )
    return joined(
        [
            details(f"Config: {len(changed)} fields that are not the defaults", own),
            details(f"Config: all {len(leaves)} fields and their meaning", everything),
        ]
    )


def curves(charts: Sequence[Chart], first: int, thinned: int) -> Html:
    """Return places for the charts from index `first` on; `thinned` is a number or 0."""
    said = "Point at a curve for its values; drag to zoom in, double-click to zoom out."
    if thinned:
        said += (
            f" Curves of more than {thinned:,} points are thinned: of each stretch the "
            "smallest and the largest value stay, and the ends."
        )
    return section(
        "curves", "Curves", element("p", said, class_="note"), places(charts, first)
    )


def places(charts: Sequence[Chart], first: int) -> Html:
    """Return a place for each chart, which the script of the page fills."""
    found = []
    for i, chart in enumerate(charts, first):
        plot = element("div", class_="plot", role="img", aria_label=in_a_sentence(chart))
        numbers = details(
            f"Numbers: {chart.title}", element("div", class_="numbers"), class_="of-chart"
        )
        head = element("h3", chart.title)
        found.append(element("div", head, plot, numbers, class_="chart", id=f"chart-{i}"))
    return element("div", *found, class_="charts")


def in_a_sentence(chart: Chart) -> str:
    """Return what a chart shows, for somebody who cannot see it."""
    said = [
        f"{curve.label}: {curve.y[0]:.4g} at {curve.x[0]:,g}"
        + (f" to {curve.y[-1]:.4g} at {curve.x[-1]:,g}" if len(curve.x) > 1 else "")
        for curve in chart.curves
    ]
    scale = " (logarithmic)" if chart.is_log else ""
    return (
        f"Chart of {chart.y}{scale} over {chart.x}. {'; '.join(said)}. "
        "The table below has all numbers."
    )


def samples(runs: Sequence[Facts], steps: Sequence[int]) -> Html:
    """Return the sample grids with a slider over the steps, and results of sample.py."""
    parts: list[object] = []
    if steps:
        said = [
            f"{run.name} has {run.num_grids:,} grids, of which {len(run.grids)} are here."
            for run in runs
            if run.num_grids > len(run.grids)
        ]
        parts += [element("p", *said, class_="note")] if said else []
        figures = [
            element(
                "figure",
                image(
                    run.grids[-1],
                    f"Samples of {run.name} during the training",
                    class_="pixels",
                ),
                element("figcaption", f"{_of(run, runs)}{run.grids[-1].title}"),
                class_="grid",
                data_run=str(i),
            )
            for i, run in enumerate(runs)
            if run.grids
        ]
        slider = _slider("grid-slider", "Train step of the samples", len(steps))
        parts.append(
            element("div", slider, element("div", *figures, class_="figures"), id="grids")
        )
    else:
        parts.append(element("p", "No samples were drawn during the training."))
    parts += _results(runs)
    return section("samples", "Samples", *parts)


def _slider(name: str, label: str, count: int, value: int = -1) -> Html:
    at = str(count - 1 if value < 0 else value)
    given = f'type="range" min="0" max="{count - 1}" value="{at}" step="1" id="{name}"'
    return element(
        "div",
        element("label", label, for_=name),
        Html(f"<input {given}>"),
        element("output", for_=name),
        class_="slider",
    )


def _results(runs: Sequence[Facts]) -> Iterator[Html]:
    rows, pictures = [], []
    for run in runs:
        for name, note, picture in run.results:
            get = note.get
            seconds = get("seconds")
            rows.append(
                [
                    *([run.name] if len(runs) > 1 else []),
                    name,
                    *(get(k, "") for k in ("sampler", "steps", "network_calls")),
                    *(get(k, "") for k in ("eta", "guidance", "seed", "num")),
                    get("checkpoint_step", ""),
                    f"{seconds:.3g} s" if quality.is_number(seconds) else "",
                ]
            )
            if picture:
                alt = f"Samples {name} of {run.name}"
                pictures.append(figure(picture, f"{_of(run, runs)}{name}", alt))
        pictures += [figure(sheet, sheet.title, sheet.title) for sheet in run.sheets]
    if rows:
        heads = ["result", "sampler", "steps", "calls", "eta", "guidance", "seed", "number"]
        heads = [*(["run"] if len(runs) > 1 else []), *heads, "checkpoint", "time"]
        yield element("h3", "Results of sample.py")
        yield table("Results of sample.py, the newest first", heads, rows)
    hidden = [run for run in runs if run.num_results > len(run.results)]
    for run in hidden:
        said = f"{run.name} has {run.num_results:,} results, the newest are here."
        yield element("p", said, class_="note")
    if pictures:
        yield element("div", *pictures, class_="figures")


def chain(runs: Sequence[Facts]) -> Html:
    """Return players of the newest chains; where there is none, reverse.png."""
    parts: list[object] = []
    players = [_player(run, i, runs) for i, run in enumerate(runs) if run.chain]
    if players:
        parts.append(element("div", *players, class_="figures"))
    for run in runs:
        if run.chain is not None:
            continue
        if strip := run.strips.get("reverse.png"):
            text = f"{_of(run, runs)}noise becoming samples, from left to right"
            parts.append(figure(strip, text, text))
            said = f"{command('sample')} --workdir {quoted(run.workdir)} --show_chain"
            hint = element("p", "An animation comes from ", element("code", said))
            parts.append(hint)
    if not parts:
        parts.append(element("p", "No chain was kept."))
    return section("chain", "From noise to samples", *parts)


def _of(run: Facts, runs: Sequence[Facts]) -> str:
    """Return the beginning of a caption, which names the run where there are several."""
    return f"{run.name}: " if len(runs) > 1 else ""


def _player(run: Facts, i: int, runs: Sequence[Facts]) -> Html:
    assert run.chain is not None
    frames, name = run.chain.frames, run.chain.name
    buttons = [
        element(
            "button", text, type="button", class_=kind, aria_label=f"{label}, {run.name}"
        )
        for kind, text, label in (
            ("back", "◀", "One frame back"),
            ("play", "Play", "Play"),
            ("forth", "▶", "One frame forth"),
        )
    ]
    return element(
        "div",
        element(
            "figure",
            image(frames[-1], f"Chain of {run.name}, one frame", class_="pixels"),
            element("figcaption", f"{_of(run, runs)}{name}"),
        ),
        element("div", *buttons, class_="buttons"),
        _slider(f"chain-{i}-slider", "Frame", len(frames)),
        class_="player",
        id=f"chain-{i}",
        data_run=str(i),
    )


def quality_of(runs: Sequence[Facts], charts: Sequence[Chart], first: int) -> Html:
    """Return the figures of evaluate.py in tables, and charts over the sampling steps."""
    parts: list[object] = []
    if any(True for _ in quality.figures(runs)):
        parts += [_quality_table(runs), places(charts, first)]
    else:
        said = f"{command('evaluate')} --workdir {quoted(runs[0].workdir)} --quality"
        hint = ["No quality of samples has been measured yet. It comes from "]
        parts.append(element("p", *hint, element("code", said)))
    pictures = [
        figure(
            run.neighbours,
            f"{_of(run, runs)}samples beside the nearest examples, the nearest pair first",
            f"Samples of {run.name} beside the nearest examples: {run.neighbours.title}",
        )
        for run in runs
        if run.neighbours
    ]
    parts += [element("div", *pictures, class_="figures")] if pictures else []
    rows = [
        [
            *([runs[i].name] if len(runs) > 1 else []),
            name,
            _bits(note),
            *(_number(note.get(k)) for k in ("rate", "distortion_L_0", "prior_L_T")),
            note.get("likelihood_of", "bound"),
            *(note.get(k, "") for k in ("split", "num_examples", "checkpoint_step")),
        ]
        for i, name, note in quality.likelihoods(runs)
    ]
    if rows:
        heads = ["run"] if len(runs) > 1 else []
        heads += ["evaluation", "bits/dim ± standard error", "rate", "L_0", "L_T"]
        heads += ["of", "split", "examples", "checkpoint"]
        parts.append(element("h3", "Likelihood"))
        parts.append(table("Likelihood, by evaluate.py", heads, rows))
    return section("quality", "Quality", *parts)


def _quality_table(runs: Sequence[Facts]) -> Html:
    """Return a table with a row for each evaluation, and a column for each figure."""
    found: dict[tuple[int, str], dict[str, quality.Reading]] = {}
    for one in quality.figures(runs):
        found.setdefault((one.run, one.evaluation), {})[one.name] = one
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    notes = {key: next(iter(each.values())).note for key, each in found.items()}
    rows = [
        [
            *([runs[key[0]].name] if len(runs) > 1 else []),
            note.get("sampler", key[1]),
            note.get("steps", ""),
            *(_figure(found[key][name]) if name in found[key] else "" for name in names),
            *(note.get(k, "") for k in ("num_samples", "reference", "num_reference")),
            note.get("seeds", note.get("seed", "")),
            f"{note.get('network', '')} {str(note.get('network_sha256', ''))[:8]}",
            note.get("checkpoint_step", ""),
        ]
        for key, note in sorted(notes.items(), key=_order)
    ]
    heads = ["run"] if len(runs) > 1 else []
    heads += ["sampler", "steps", *names, "n", "reference", "n of reference", "seed"]
    heads += ["network", "checkpoint"]
    return table("Quality of samples: value ± standard error", heads, rows)


def _order(item: tuple[tuple[int, str], Mapping[str, Any]]) -> tuple:
    (run, name), note = item
    steps = note.get("steps")
    return str(note.get("sampler")), steps if quality.is_number(steps) else 0, run, name


def _figure(one: quality.Reading) -> str:
    error = f" ± {one.error:.2g}" if np.isfinite(one.error) else ""
    return f"{one.value:.4g}{error}"


def _bits(note: Mapping[str, Any]) -> str:
    error = note.get("standard_error")
    more = f" ± {error:.2g}" if quality.is_number(error) else ""
    return f"{note['bits_per_dim']:.4f}{more}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if quality.is_number(value) else ""


def happenings(run: Facts) -> list[events.Event]:
    """Return the events of a run, with updates skipped that only its metrics tell of."""
    found = list(run.events)
    if any(event.kind == events.SKIPPED for event in found):
        return found
    before, at = 0, 0
    for line in sorted(run.lines, key=lambda line: line["step"]):
        skipped = line.get("skipped_steps")
        if isinstance(skipped, int):
            if skipped > before:
                count = skipped - before
                said = f"{count:,} updates skipped after step {at:,}, up to this one"
                found.append(events.Event(events.SKIPPED, line["step"], said, ""))
            before, at = skipped, line["step"]
    return found


def time_line(runs: Sequence[Facts]) -> Html:
    """Return what happened to the runs: a chart by step, and a table by time."""
    parts: list[object] = []
    for i, run in enumerate(runs):
        parts += [element("h3", run.name)] if len(runs) > 1 else []
        rows = [
            [date(event.time) or "not kept", event.kind, f"{event.step:,}", event.text]
            for event in happenings(run)
        ]
        if not run.events:
            said = "This run is of a version that kept no events: starts and warnings lack."
            parts.append(element("p", said, class_="note"))
        skipped = [
            x for line in run.lines if isinstance(x := line.get("skipped_steps"), int)
        ]
        if skipped and not max(skipped):
            parts.append(element("p", "No update was skipped."))
        if rows:
            kinds = ", ".join(dict.fromkeys(str(row[1]) for row in rows))
            label = f"Events of {run.name} by train step: {kinds}. The table has them all."
            plot = element("div", class_="plot", role="img", aria_label=label)
            parts.append(element("div", plot, class_="timeline", id=f"timeline-{i}"))
            heads = ["time", "event", "train step", "what"]
            parts.append(table(f"Events of {run.name}", heads, rows, is_text=True))
    return section("timeline", "Time line", *parts)


def how_to_repeat(runs: Sequence[Facts], made: Sequence[Sequence[str]]) -> Html:
    """Return the commands of each run.

    Args:
      runs: the runs.
      made: of each run the command that trains it, made from its config, if there is one.
    """
    parts: list[object] = []
    for run, lines in zip(runs, made, strict=True):
        parts += [element("h3", run.name)] if len(runs) > 1 else []
        given = repeat.given(run)
        said = "The command of the training was not kept; the config has every field."
        if given:
            said = "The commands of the training are those that were given."
        elif lines:
            said = "The command of the training was not kept, and is made from the config."
        found = [*(given or lines), *repeat.sampled(run), *repeat.evaluated(run)]
        if found:
            code = element("code", joined(found, "\n"))
            label = f"Commands of {run.name}"
            box = element("pre", code, tabindex="0", role="region", aria_label=label)
            parts += [element("p", said), box]
        else:
            parts.append(element("p", said))
    return section("repeat", "How to repeat it", *parts)


def contents(sections: Sequence[tuple[str, str]]) -> Html:
    """Return links to the sections."""
    links = [
        element("li", element("a", heading, href=f"#{name}")) for name, heading in sections
    ]
    return element("nav", element("ul", *links), aria_label="Contents")


def title(runs: Sequence[Facts]) -> str:
    """Return the title of the page."""
    if len(runs) == 1:
        return f"{runs[0].config.name}: report of {runs[0].name}"
    return f"Comparison of {', '.join(run.name for run in runs)}"


def header(runs: Sequence[Facts]) -> Html:
    """Return the heading of the page, and what the runs are in a sentence each."""
    heading = runs[0].config.name if len(runs) == 1 else f"{len(runs)} runs compared"
    lines = [
        element("p", element("strong", run.name), Html(" "), summary(run)) for run in runs
    ]
    return element("header", element("h1", heading), *lines)
