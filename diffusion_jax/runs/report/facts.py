"""The facts of a run that its report shows, read from the run folder."""

import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from diffusion_jax.config import Config
from diffusion_jax.runs import events
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import read_metrics
from diffusion_jax.runs.record import Record, read_record
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import command, quoted

_RESULTS = ("*.json", "sweep_*/*.json")
_STEP_PNG = re.compile("step_([0-9]{1,18})[.]png")
_MOST_RESULTS, _MOST_PICTURED = 40, 6  # Of results of sample.py, the newest ones.
_LARGE = 2**18  # Bytes from which on a picture is shrunk, to at most _SIDE pixels a side.
_SIDE = 1000


class Picture(NamedTuple):
    """A picture for a page.

    Attributes:
      title: a caption.
      content: bytes of a file.
      kind: its media type.
      step: train step of a sample grid; -1 for other pictures.
    """

    title: str
    content: bytes
    kind: str = "image/png"
    step: int = -1


class Result(NamedTuple):
    """A result of sample.py.

    Attributes:
      name: of its files.
      note: the contents of P.json.
      picture: P.png; None where it is not there, or is left out.
    """

    name: str
    note: dict[str, Any]
    picture: Picture | None


class Chain(NamedTuple):
    """Noise becoming samples, frame by frame; `note` is as that of a `Result`."""

    name: str
    frames: Sequence[Picture]
    note: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts of one run.

    Attributes:
      workdir: its folder.
      name: what the page calls it.
      config: its config.
      record: its run.json; None where there is none.
      lines: of its metrics.jsonl.
      events: of its events.jsonl; none for a run of a version before that file.
      strips: data.png, forward.png and reverse.png, by these names, if they are there.
      grids: sample grids of the training, at most as many as were asked for.
      num_grids: how many of them the run has.
      results: the newest results of sample.py.
      num_results: how many there are.
      sheets: sheets of the newest sweeps.
      chain: the newest animation of a chain.
      evaluations: contents of the JSON files of evaluate.py, by name.
      neighbours: the newest picture of samples beside the nearest examples.
    """

    workdir: pathlib.Path
    name: str
    config: Config
    record: Record | None
    lines: Sequence[dict[str, Any]]
    events: Sequence[events.Event]
    strips: dict[str, Picture]
    grids: Sequence[Picture]
    num_grids: int
    results: Sequence[Result]
    num_results: int
    sheets: Sequence[Picture]
    chain: Chain | None
    evaluations: dict[str, dict[str, Any]]
    neighbours: Picture | None


def read_all(workdirs: Sequence[pathlib.Path], num_grids: int) -> list[Facts]:
    """Return the facts of runs, each named by the last parts of its path that differ.

    A single run has the name of its folder as it is given. Arguments and errors are those
    of `read`.
    """
    parts = [workdir.absolute().parts for workdir in workdirs]
    count = 1
    while len({each[-count:] for each in parts}) < len(parts):
        count += 1
    names = [str(pathlib.Path(*each[-count:])) for each in parts]
    if len(workdirs) == 1:
        names = [str(workdirs[0])]
    return [
        read(workdir, name, num_grids)
        for workdir, name in zip(workdirs, names, strict=True)
    ]


def read(workdir: pathlib.Path, name: str, num_grids: int) -> Facts:
    """Return the facts of a run; nothing is written.

    Args:
      workdir: the run folder.
      name: what the page calls it.
      num_grids: the largest number of sample grids, taken evenly with the first and the
        last, at least 2.

    Raises:
      BadRequest: if it is not the folder of a run, or has no metrics.
      OSError: if a file cannot be read.
    """
    config = run_folder.read_config(workdir)
    lines = read_metrics(workdir / "metrics.jsonl")
    if not lines:
        raise BadRequest(
            f"{workdir} has no metrics to report (no line in metrics.jsonl); train it on: "
            f"{command('train')} --config ... --workdir {quoted(workdir)}"
        )
    grids = sorted(_grids(workdir))
    evaluations = dict(_evaluations(workdir))
    results = [path for path in _newest(workdir, *_RESULTS) if "sampler" in _note(path)]
    return Facts(
        workdir=workdir,
        name=name,
        config=config,
        record=read_record(workdir),
        lines=lines,
        events=events.read(workdir),
        strips=dict(_strips(workdir)),
        grids=[
            fitted(f"samples at step {step:,}", path, step)
            for step, path in evenly(grids, num_grids)
        ],
        num_grids=len(grids),
        results=[
            _result(workdir, path, is_pictured=i < _MOST_PICTURED)
            for i, path in enumerate(results[:_MOST_RESULTS])
        ],
        num_results=len(results),
        sheets=[
            fitted(f"sweep {path.parent.name}", path)
            for path in _newest(workdir, "sweep_*/sheet.png")[:2]
        ],
        chain=_chain(workdir),
        evaluations=evaluations,
        neighbours=_neighbours(workdir, evaluations),
    )


def evenly(things: Sequence[Any], most: int) -> list[Any]:
    """Return at most this many of the things, evenly, the first and the last included."""
    if len(things) <= most:
        return list(things)
    kept = np.unique(np.linspace(0, len(things) - 1, most).round().astype(int))
    return [things[i] for i in kept]


def fitted(title: str, path: pathlib.Path, step: int = -1) -> Picture:
    """Return the picture in a file; one of many bytes is shrunk, and its caption says so.

    Raises:
      OSError: if the file cannot be read.
    """
    content = files.read_bytes(path)
    if len(content) < _LARGE:
        return Picture(title, content, step=step)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _shrunk(title, image, step)
    except (OSError, ValueError, Image.DecompressionBombError):  # A browser may know it.
        return Picture(title, content, step=step)


def _shrunk(title: str, image: Image.Image, step: int) -> Picture:
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(file, format="JPEG", quality=85)
    size = f"{image.width} x {image.height}"
    title += f" (shrunk from {size} pixels)" if small.size != image.size else ""
    return Picture(title, file.getvalue(), "image/jpeg", step)


def _strips(workdir: pathlib.Path) -> Iterator[tuple[str, Picture]]:
    for name in ("data.png", "forward.png", "reverse.png"):
        if (workdir / name).exists():
            yield name, fitted(name, workdir / name)


def _grids(workdir: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
    for path in run_folder.samples_path(workdir).glob("step_*.png"):
        if found := _STEP_PNG.fullmatch(path.name):
            yield int(found[1]), path


def _newest(workdir: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
    samples = run_folder.samples_path(workdir)
    found = [path for pattern in patterns for path in samples.glob(pattern)]
    return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))


def _note(path: pathlib.Path) -> dict[str, Any]:
    """Return what a JSON file of ours holds; {} if it holds something else."""
    try:
        tree = files.parse_json(files.read_note(path))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _result(workdir: pathlib.Path, path: pathlib.Path, *, is_pictured: bool) -> Result:
    name = str(path.relative_to(run_folder.samples_path(workdir)).with_suffix(""))
    picture = path.with_suffix(".png")
    has = is_pictured and picture.exists()
    return Result(name, _note(path), fitted(name, picture) if has else None)


def _chain(workdir: pathlib.Path) -> Chain | None:
    """Return the frames of the newest animation that can be read."""
    for path in _newest(workdir, "*_chain.gif"):
        name = path.name.removesuffix("_chain.gif")
        try:
            content = files.read_bytes(path)
            frames = list(_frames(content))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        return Chain(name, frames, _note(path.with_name(f"{name}.json")))
    return None


def _frames(content: bytes) -> Iterator[Picture]:
    with Image.open(io.BytesIO(content)) as animation:
        total = getattr(animation, "n_frames", 1)
        for i, frame in enumerate(ImageSequence.Iterator(animation)):
            file = io.BytesIO()
            image, title = frame.convert("RGB"), f"frame {i + 1} of {total}"
            _without_colours(image).save(file, format="PNG")
            if len(file.getvalue()) < _LARGE:
                yield Picture(title, file.getvalue())
            else:
                yield _shrunk(title, image, -1)


def _without_colours(image: Image.Image) -> Image.Image:
    """Return a grey picture in one channel, which takes fewer bytes; others as they are."""
    red, green, blue = map(np.asarray, image.split())
    grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return image.getchannel(0) if grey else image


def _evaluations(workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(run_folder.evaluations_path(workdir).glob("*.json")):
        if note := _note(path):
            yield path.stem, note


def _neighbours(
    workdir: pathlib.Path, evaluations: dict[str, dict[str, Any]]
) -> Picture | None:
    names = [name for name, note in evaluations.items() if note.get("kind") == "quality"]
    paths = [run_folder.evaluations_path(workdir) / f"{name}.png" for name in names]
    found = [path for path in paths if path.exists()]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return fitted(newest.stem, newest) if newest else None


def as_json(value: Any) -> str:
    """Return a value as JSON that can stand in a script element: without any "<"."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
