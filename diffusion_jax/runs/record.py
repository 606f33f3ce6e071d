"""run.json at the start of a run, and when it goes on."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import reprlib
import typing
from typing import Any

import jax
import numpy as np

import diffusion_jax
from diffusion_jax.config import Config
from diffusion_jax.data import sources
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.experiment.setup import Plan, load_data, make_plan
from diffusion_jax.runs import ema_snapshots
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason, say, utc_now

# Fields of config.data that say where the data lie.
_PLACES = ("path", "held_out", "label_file")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_MOST = {"steps_per_dispatch": 10**4}  # As the range of the config's field.

FORMAT = 1  # Format of a run folder; a checkpoint of another one may lack something.


@dataclasses.dataclass
class Record:
    """The contents of run.json, a run's own record for people and for later versions.

    Attributes:
      format: of the run folder; see `FORMAT`.
      version: of diffusion_jax, when the newest checkpoint was written.
      versions: of Python and the libraries, by name.
      devices: what it was trained on last.
      data: what it is trained on: source, numbers of examples, shape, fingerprint.
      parameters: of the network.
      started: date and time, UTC.
      step: of the newest checkpoint that is whole.
      wall_time_s: seconds that train.py took up to there, stops left out.
      steps_per_dispatch: chosen when the run was started; 0 before that.
      snapshot_every: steps between snapshots of averages; 0: none.
    """

    format: int
    version: str
    versions: dict[str, str]
    devices: str
    data: dict[str, Any]
    parameters: int
    started: str
    step: int = 0
    wall_time_s: float = 0.0
    steps_per_dispatch: int = 0
    snapshot_every: int = 0


def write_record(workdir: pathlib.Path, record: Record) -> None:
    """Put run.json into the run folder, whole or not at all."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    files.write_whole(workdir / "run.json", text)


def read_record(workdir: pathlib.Path) -> Record | None:
    """Return the contents of run.json; None for a run that has none.

    Raises:
      BadRequest: if it is not what a run has written.
    """
    path = workdir / "run.json"
    if not path.exists():
        return None
    try:
        tree = files.parse_json(files.read_note(path))
        known = {field.name for field in dataclasses.fields(Record)}
        optional = ("step", "wall_time_s", "steps_per_dispatch", "snapshot_every")
        if lacking := sorted(known - set(optional) - tree.keys()):
            raise ValueError(f"it lacks {', '.join(lacking)}")
        record = Record(**{k: v for k, v in tree.items() if k in known})
        for field in dataclasses.fields(Record):
            value, kind = getattr(record, field.name), typing.cast(Any, field.type)
            if kind is float and type(value) is int:
                kind = int
            if type(value) is not (typing.get_origin(kind) or kind):
                raise TypeError(f"{field.name} is {reprlib.repr(value)}")
            most = _MOST.get(field.name, 2**53)
            if kind in (int, float) and not 0 <= value <= most:
                raise ValueError(f"{field.name} is {reprlib.repr(value)}")
    except (ValueError, TypeError, AttributeError) as error:
        raise BadRequest(
            f"{path} is damaged ({reason(error)}); restore it, or remove it"
        ) from error
    if record.format > FORMAT:
        raise BadRequest(
            f"{path} is of format {record.format}, by diffusion_jax {record.version}; this "
            f"version reads formats up to {FORMAT}"
        )
    return record


def check_examples(
    config: Config, data: sources.DataSet, workdir: pathlib.Path, old: Record | None
) -> dict[str, Any]:
    """Return what tells the examples of a run from others, as run.json has it.

    Raises:
      BadRequest: if they are not those that the run was started with.
    """
    about = {
        "source": config.data.source,
        "train": len(data.train),
        "held_out": len(data.held_out),
        "shape": list(data.shape),
        "fingerprint": sources.fingerprint(data),
        "whole_fingerprint": sources.whole_fingerprint(data),
    }
    if config.data.labels and data.labels is not None:
        counts = np.bincount(data.labels, minlength=config.data.num_classes)
        about |= {"class_counts": counts.tolist(), "class_names": list(data.class_names)}
    about |= kind_of(config.data).about
    differ = _differences({} if old is None else old.data, about)
    if differ:
        raise BadRequest(
            f"the examples are not those that the run in {workdir} was started with "
            f"({', '.join(differ)}); restore those, or take another run"
        )
    return about


def class_counts(workdir: pathlib.Path) -> list[int]:
    """Return how many examples of each class a run was trained on."""
    return _of_classes(workdir, "class_counts")


def class_names(workdir: pathlib.Path) -> list[str]:
    """Return the names of the classes of a run; [] if they have none."""
    return _of_classes(workdir, "class_names")


def _of_classes(workdir: pathlib.Path, name: str) -> list[Any]:
    record = read_record(workdir)
    found = record.data.get(name) if record else None
    if not isinstance(found, list):
        raise BadRequest(
            f"{workdir / 'run.json'} does not say which classes the run has ({name}); "
            "restore it"
        )
    return found


def new_record(
    config: Config,
    data: sources.DataSet,
    workdir: pathlib.Path,
    old: Record | None,
    num_parameters: int,
) -> Record:
    """Return the new contents of run.json, which are written at once for a new run.

    Args:
      config, data: of the run.
      workdir: its folder.
      old: the contents of run.json of a run that goes on.
      num_parameters: of the network.

    Raises:
      BadRequest: if the examples are not those that the run was started with.
    """
    about = check_examples(config, data, workdir, old)
    record = Record(
        format=FORMAT,
        version=diffusion_jax.__version__,
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        data=about,
        parameters=num_parameters,
        started=utc_now(),
        snapshot_every=ema_snapshots.interval(config),
    )
    if old is not None:
        about["whole_fingerprint"] = about["whole_fingerprint"] or old.data.get(
            "whole_fingerprint", ""
        )
        for name in ("started", "step", "wall_time_s", "steps_per_dispatch"):
            setattr(record, name, getattr(old, name))
        if record.snapshot_every and old.snapshot_every:
            record.snapshot_every = old.snapshot_every  # Whatever num_steps is now.
    if config.training.steps_per_dispatch:
        record.steps_per_dispatch = config.training.steps_per_dispatch
    if old is None:
        every = record.snapshot_every
        if every:
            size = ema_snapshots.num_bytes(config, every, num_parameters)
            say(
                f"snapshots of {len(config.ema.stds)} averages every {every:,} steps: "
                f"{size / 2**20:,.0f} MiB in all (--config.ema.snapshots=0 for none)"
            )
        write_record(workdir, record)
    return record


def _differences(known: dict[str, Any], about: dict[str, Any]) -> list[str]:
    return [
        f"{key} {known[key]} -> {value}"
        for key, value in about.items()
        if "" not in (value, known.get(key, "")) and known[key] != value
    ]


def _places_of(config: Config) -> list[str]:
    return [getattr(config.data, field) for field in _PLACES]


def check_data_there(workdir: pathlib.Path, config: Config) -> None:
    """Raise BadRequest if what a run was trained on is not where its config says."""
    source = config.data.source
    for field, path in zip(_PLACES, _places_of(config), strict=True):
        of_files = source in ("folder", "npz") or (field == "path" and ":" in source)
        if field == "label_file" and not config.data.labels:
            continue
        if of_files and path and not os.path.exists(os.path.expanduser(path)):
            raise BadRequest(
                f"data.{field} ({path!r}) of the run in {workdir} is not there; if it was "
                f"moved, give its new place with --data_{field}"
            )


def load_plan(workdir: pathlib.Path, config: Config) -> Plan:
    """Return the plan of a run with its data decoded, those that it was trained on.

    Raises:
      BadRequest: as `check_data_there`, `make_plan` and `check_same_data`.
    """
    check_data_there(workdir, config)
    plan = load_data(make_plan(config))
    check_same_data(workdir, plan.config, plan.data)
    return plan


def check_same_data(workdir: pathlib.Path, here: Config, data: sources.DataSet) -> None:
    """Refuse other examples than a run was trained on; keep the place of the same ones.

    What was held out of others may have been trained on. A place in `here` that is
    not that of the run's own config is put into it.

    Raises:
      BadRequest: naming what differs.
    """
    record = read_record(workdir)
    check_examples(here, data, workdir, record)
    config = run_folder.read_config(workdir)
    places = _places_of(here)
    if record is None or places == _places_of(config):
        return
    for field, path in zip(_PLACES, places, strict=True):
        setattr(config.data, field, path)
    try:
        run_folder.write_config(workdir, config)
    except OSError as error:
        say(f"the new place of the data cannot be kept in {workdir}: {error.strerror}")
    else:
        say(f"the new place of the data is kept in the config of {workdir}")
