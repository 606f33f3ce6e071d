"""Samples of one run by many settings, drawn by one compiled program.

The tables of all settings get the same number of rows, of which those that are not live
call no network; scales of guidance are data. Each setting has the files of sample.py, in
one folder, with a sheet and a table that compare them.
"""

import contextlib
import copy
import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.jobs import field_values, guiding, sample
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import pictures
from diffusion_jax.runs.record import class_counts
from diffusion_jax.runs.weights import identity_of, load_from_run
from diffusion_jax.runtime import (
    devices,
    environment,
    files,
    first_process,
    hashing,
    locks,
    processes,
)
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.interrupts import Stop, stop_on_interrupt
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.stopwatch import Stopwatch
from diffusion_jax.runtime.text import say
from diffusion_jax.samplers.table import SamplerTable, aligned
from diffusion_jax.samplers.timesteps import AUTO

# Fields that change only what the compiled program is given.
FIELDS = (
    "sampler",
    "steps",
    "spacing",
    "eta",
    "churn",
    "variance",
    "langevin_steps",
    "langevin_step_size",
    "guidance",
    "aug_level",
)
HELP = (
    'Draw every combination of these values by one compiled program: "steps=10,20 '
    f'guidance=1,2". Fields: {", ".join(FIELDS)}.'
)
_MOST = 100  # Settings of a sweep.
_MOST_COLUMNS = 4  # Settings beside each other in the sheet.
_MOST_ROWS = 12  # Settings below each other where only one field is swept.
_PICTURED = 1024  # Samples of a setting that the sheet may show.
_LONGEST_NAME = 100  # Characters of a folder's name that say what is swept.
_NOTE, _SHEET, _TABLE = "sweep.json", "sheet.png", "table.csv"


class Setting(NamedTuple):
    """One setting of a sweep.

    Attributes:
      values: by the fields that are swept.
      config: of the run, with this setting.
    """

    values: dict[str, Any]
    config: Config

    @property
    def title(self) -> str:
        """Return the setting as it is written in a sweep of it alone."""
        return _title(self.values)

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return build_sampler.short_name(self.config.sampling)

    def named(self) -> contextlib.AbstractContextManager[None]:
        """Name this setting in what is refused within this context."""
        return _named(self.title)


def _title(values: Mapping[str, Any]) -> str:
    return " ".join(f"{field}={_text(value)}" for field, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


@contextlib.contextmanager
def _named(title: str) -> Iterator[None]:
    try:
        yield
    except BadRequest as error:
        raise BadRequest(f"--sweep: setting {title}: {error}") from error


def parse(text: str, config: Config, given: Mapping[str, Any]) -> list[Setting]:
    """Return the settings that --sweep names, the last field changing fastest.

    Args:
      text: "field=value,value field=value".
      config: of the run.
      given: other flags, values by their field of SamplingConfig.

    Raises:
      BadRequest: for a field or a value that cannot be swept, or a setting that the flags
        of the same names would not allow.
    """
    swept = field_values.parse("--sweep", text, FIELDS)
    for field in swept.keys() & given.keys():
        raise BadRequest(f"--{field} and --sweep {field}=...: give one of them")
    number = math.prod(map(len, swept.values()))
    if number > _MOST:
        raise BadRequest(f"--sweep: {number:,} settings, and {_MOST} are the most")
    given = {**given, **_sampler_with_eta(config, swept, given)}
    settings: list[Setting] = []
    for combination in itertools.product(*swept.values()):
        values = dict(zip(swept, combination, strict=True))
        changed = copy.deepcopy(config)
        with _named(_title(values)):
            build_sampler.change(changed, {**given, **values})
            if changed.sampling.spacing == AUTO:
                raise BadRequest(
                    "--spacing auto chooses timesteps for each setting by itself; give "
                    "another spacing, or --timesteps"
                )
        settings.append(Setting(values, changed))
    _check_different(settings)
    return settings


def _sampler_with_eta(
    config: Config, swept: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, str]:
    """Return ddim for a sweep of eta where the run alone says ddpm, which has no eta."""
    is_chosen = "sampler" in swept or "sampler" in given
    if "eta" not in swept or is_chosen or config.sampling.sampler != "ddpm":
        return {}
    say("sampler: ddim, as eta is swept and the run's own, ddpm, has none")
    return {"sampler": "ddim"}


def _check_different(settings: Sequence[Setting]) -> None:
    names: dict[str, Setting] = {}
    for setting in settings:
        other = names.setdefault(setting.name, setting)
        if other is not setting:
            if other.values == setting.values:
                raise BadRequest(f"--sweep: setting {setting.title} is given twice")
            raise BadRequest(
                f"--sweep: settings {other.title} and {setting.title} would have files of "
                f"the same name, {setting.name}"
            )


def _texts(settings: Sequence[Setting]) -> dict[str, dict[str, None]]:
    """Return the different values of each field that is swept, in order."""
    return {
        field: dict.fromkeys(_text(setting.values[field]) for setting in settings)
        for field in settings[0].values
    }


def folder_name(settings: Sequence[Setting], given: Mapping[str, Any]) -> str:
    """Return a name for the folder of a sweep: other flags, and what is swept.

    Args:
      settings: of `parse`.
      given: as there.
    """
    parts = [
        _text(value) if isinstance(value, str) else f"{field}{_text(value)}"
        for field, value in given.items()
        if field != "batch_size"
    ]
    parts += [field + "-".join(texts) for field, texts in _texts(settings).items()]
    name = re.sub(r"[^\w.,-]", "", "_".join(parts))
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}_{hashing.sha256([name.encode()])[:8]}"
    return f"sweep_{name}"


def draw(
    workdir: pathlib.Path,
    settings: Sequence[Setting],
    request: sample.Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
) -> bool:
    """Draw the samples of every setting, and compare them.

    Args:
      workdir: the run.
      settings: of `parse`.
      request: which samples; the same noise and labels for every setting.
      out: folder of P.npz, P.png and P.json of each setting, as of `sample.generate`, with
        P its name, and of sheet.png and table.csv.
      overwrite: replace files that exist; otherwise settings that are done stay.

    Returns:
      Whether Ctrl-C came while the last batch was drawn, when there was nothing to stop.

    Raises:
      BadRequest: before anything is compiled or written.
      RunFailed: for samples that are not finite.
      KeyboardInterrupt: after Ctrl-C, at the end of a batch, which is kept.
    """
    environment.check()
    sample.check_has_low_res(settings[0].config, request)
    with values_refused():
        batch_size = settings[0].config.sampling.batch_size
        devices.check_batch_size("batch_size", batch_size)
    _check_folder(workdir, out, overwrite)
    sweep = _prepared(workdir, settings, request, out)
    left = [i for i in range(len(settings)) if overwrite or not _is_done(sweep.jobs[i])]
    results = [
        sample.results_of(workdir, job.partial.out, request, job.config)
        for job in sweep.jobs
    ]
    for i in left:
        with settings[i].named():
            sweep.jobs[i].partial.check(results[i], overwrite, "--out or --seed")
    with processes.together():
        if first_process.is_here():
            out.mkdir(parents=True, exist_ok=True)
            said = {s.name: s.title for s in settings}
            note = {"run": str(workdir), "settings": said}
            files.write_whole(out / _NOTE, json.dumps(note, indent=2) + "\n")
    stopping = False
    if left:
        with stop_on_interrupt(say, sigterm=False) as stop:
            _Drawing(sweep, left, stop).run(results, overwrite)
            stopping = bool(stop.wanted)
    with processes.together():
        if first_process.is_here():
            _compare(sweep, out)
    return stopping


class _Sweep(NamedTuple):
    """The settings of a sweep, and a job for each, whose tables are aligned."""

    workdir: pathlib.Path
    settings: Sequence[Setting]
    jobs: Sequence[sample.Job]
    checkpoint_step: int


def _check_folder(workdir: pathlib.Path, out: pathlib.Path, overwrite: bool) -> None:
    """Refuse a folder whose sheet and table would be of something else."""
    if out.exists() and not out.is_dir():
        raise BadRequest(f"--out {out} must be a folder with --sweep, and is a file")
    is_ours = (out / _NOTE).is_file()
    for path in (out / _SHEET, out / _TABLE, out / _NOTE):
        if run_folder.is_part(workdir, path):
            raise BadRequest(f"--out {out}: {path} belongs to the run; give another --out")
        if path.exists() and not path.is_file():
            raise BadRequest(f"--out {out}: {path} is no regular file; give another --out")
        if path.exists() and not is_ours and not overwrite:
            raise BadRequest(
                f"--out {out}: {path} exists already; give another --out, or --overwrite "
                "to replace it"
            )


def _prepared(
    workdir: pathlib.Path,
    settings: Sequence[Setting],
    request: sample.Request,
    out: pathlib.Path,
) -> _Sweep:
    configs = [setting.config for setting in settings]
    config, mesh = configs[0], devices.make_mesh()
    whole = devices.replicated(mesh)
    model = build.make_model(config)
    tables = tables_of(settings, model)
    loaded = load_from_run(workdir, config, request.weights, whole, step=request.step)
    say(f"weights: {loaded.kind} of step {loaded.step:,}")
    are_guided = [build_sampler.needs_base(c.sampling) for c in configs]
    guided_config = configs[are_guided.index(True)] if any(are_guided) else config
    guided = guiding.make(guided_config, model, request.guide, request.prior, whole)
    if guided.guidance is not None and not all(are_guided):
        limited = dataclasses.replace(guided.guidance, is_limited=True)
        guided = guided._replace(guidance=limited)
    about = {**identity_of(loaded), **guided.about, "program": _program(tables[0], guided)}
    counts = class_counts(workdir) if config.data.labels else []
    jobs = []
    for setting, table in zip(settings, tables, strict=True):
        note = sample.note_of(workdir, setting.config, request, about, table)
        partial = Partial(out / setting.name, note)
        jobs.append(
            sample.Job(
                request,
                setting.config,
                model,
                table,
                loaded.params,
                mesh,
                partial,
                guided,
                counts,
            )
        )
    sample.check_prior(jobs[0])
    return _Sweep(workdir, settings, jobs, loaded.step)


def tables_of(settings: Sequence[Setting], model: Model) -> list[SamplerTable]:
    """Return the tables of all settings, with the same rows and static fields."""
    tables = []
    for setting in settings:
        sampling = setting.config.sampling
        with setting.named():
            table = build_sampler.make_table(model, sampling)
        tables.append(table if build_sampler.needs_base(sampling) else table.unguided())
    return aligned(tables)


def _program(table: SamplerTable, guided: guiding.Guiding) -> dict[str, Any]:
    """Return what of the compiled program may change how samples are rounded."""
    fields = [f.name for f in dataclasses.fields(table) if f.metadata.get("static")]
    guidance = guided.guidance
    return {
        **{name: getattr(table, name) for name in fields},
        "has_base": guidance is not None,
        "is_limited": guidance is not None and guidance.is_limited,
    }


def _is_done(job: sample.Job) -> bool:
    return bool(processes.of_first(sample.is_finished(job.partial)))


def calls_per_sample(job: sample.Job) -> int:
    """Return how often the networks are asked for a sample: twice in a guided row."""
    table = job.table
    twice = table.is_guided & table.is_live if job.guiding.guidance else 0
    return table.num_calls + int(np.sum(twice))


class _Drawing:
    """The drawing of what is left of a sweep, until somebody stops it."""

    def __init__(self, sweep: _Sweep, left: Sequence[int], stop: Stop):
        self._sweep, self._left, self._stop = sweep, left, stop
        jobs = [sweep.jobs[i] for i in left]
        self._total = sum(job.num_batches * job.table.num_calls for job in jobs)
        self._bar = ProgressBar("sampling", self._total, "calls")
        self._done, self._most = 0, 0  # Calls of whole batches, and of this one.
        job = jobs[0]
        self._sampler = build_sampler.make_sampler(
            job.config,
            job.model,
            job.mesh,
            job.options,
            on_progress=self._report,
        )

    def _report(self, rows: Any) -> None:
        if self._most:  # Rows after the live ones take no time.
            self._bar.report(self._done + min(int(rows), self._most))

    def run(self, results: Sequence[list[pathlib.Path]], overwrite: bool) -> None:
        """Draw setting after setting; `results` are the files of each."""
        settings, jobs = self._sweep.settings, self._sweep.jobs
        try:
            self._bar.say(
                f"{len(self._left)} of {len(settings)} settings, "
                f"{self._total:,} network calls; compiling for batches of "
                f"{jobs[0].config.sampling.batch_size}"
            )
            self._compile(jobs[self._left[0]])
            for count, i in enumerate(self._left, 1):
                partial, is_last = jobs[i].partial, count == len(self._left)
                partial.claim(results[i], overwrite, "--out or --seed")
                with locks.locked(partial.folder, "writing to"):
                    self._draw(settings[i], jobs[i])
                self._bar.say(f"{count} of {len(self._left)}: {settings[i].title}")
                if self._stop.wanted and not is_last:
                    self._interrupt(partial)
        finally:
            self._bar.close()

    def _compile(self, job: sample.Job) -> None:
        """Run the program without a live row, so that what is timed is compiled."""
        idle = job._replace(table=job.table.idle())
        jax.block_until_ready(sample.draw_batch(idle, self._sampler, 0))
        jax.effects_barrier()

    def _draw(self, setting: Setting, job: sample.Job) -> None:
        """Draw the batches of a setting that are not there yet, and make its results."""
        partial, calls = job.partial, job.table.num_calls
        missing = partial.missing(job.num_batches)
        self._done += missing.start * calls
        for i in missing:
            self._most = calls
            watch = Stopwatch()
            with watch.timed("batch"):
                drawn = sample.draw_batch(job, self._sampler, i)
                jax.block_until_ready(drawn)
            try:
                # First the seconds, as the samples say that the batch is done.
                partial.save(f"{i:06d}_seconds", np.array(watch.seconds["batch"]))
                sample.save_batch(job, i, *drawn)
            except sample.NotFinite as error:
                sample.blame_prior(job, error)
                step, said = self._sweep.checkpoint_step, f"{setting.title}: {error}"
                raise sample.failed(said, self._sweep.workdir, step) from error
            jax.effects_barrier()  # No report of this batch may come after this.
            self._most = 0
            self._done += calls
            self._bar.report(self._done)
            self._stop.update()
            if self._stop.wanted and i + 1 < missing.stop:
                self._interrupt(partial)
        with processes.together():
            if first_process.is_here():
                names = [f"{i:06d}_seconds" for i in range(job.num_batches)]
                seconds = float(np.sum([partial.load(name) for name in names]))
                sample.finish(job, seconds=round(seconds, 4))

    def _interrupt(self, partial: Partial) -> None:
        self._bar.say(
            f"what is done is in {partial.folder.parent}; the same command, without "
            "--overwrite, goes on from there"
        )
        raise KeyboardInterrupt


def _compare(sweep: _Sweep, out: pathlib.Path) -> None:
    """Write the sheet and the table, and print the table."""
    kind = kind_of(sweep.jobs[0].config.data)
    shown, rows = {}, []
    for setting, job in zip(sweep.settings, sweep.jobs, strict=True):
        shown[setting.title] = _first_samples(result_path(job.partial.out, ".npz"))
        note = files.parse_json(files.read_note(result_path(job.partial.out, ".json")))
        row = {field: _text(value) for field, value in setting.values.items()}
        row["calls_per_sample"] = str(calls_per_sample(job))
        row["seconds"] = f"{note.get('seconds', math.nan):.3g}"
        rows.append({**row, "name": setting.name})
    pictures.save_png(out / _SHEET, kind.draw_grid(shown, columns_of(sweep.settings)))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_whole(out / _TABLE, text.getvalue())
    for line in _lines(rows):
        say(line)
    say("wrote", out / _SHEET, out / _TABLE)


def columns_of(settings: Sequence[Setting]) -> int:
    """Return how many settings are in a row of the sheet.

    That is the number of values of the last field that has several.
    """
    numbers = [len(texts) for texts in _texts(settings).values()]
    fastest = next((number for number in reversed(numbers) if number > 1), 1)
    if fastest == len(settings) and fastest <= _MOST_ROWS:
        return 1
    return min(fastest, _MOST_COLUMNS)


def _lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Return the table as lines of text."""
    heads = [name.replace("_", " ") for name in rows[0]]
    lines = [heads, *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join([*cells[:-1], line[-1]])


def _first_samples(path: pathlib.Path) -> np.ndarray:
    """Return the first samples of an .npz, without those that no sheet shows."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        shape = (min(shape[0], _PICTURED), *shape[1:])
        return np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(
            shape
        )
