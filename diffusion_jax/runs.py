"""The run folder: what lies where in it, which run is meant, and who may write to it.

config.json   run.json       checkpoints/    ema_snapshots/   metrics.jsonl
tensorboard/  samples/       forward.png     reverse.png      loss.png
damaged_checkpoints/, if there are any
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import platform
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from diffusion_jax.config import Config, fields_of, from_json, to_json
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import quoted, reason, say

_PARTS = (
    "run.json",
    "checkpoints",
    "damaged_checkpoints",
    "ema_snapshots",
    "tensorboard",
    "samples",
    "evaluations",
    "auto_timesteps",
    "metrics.jsonl",
    "forward.png",
    "reverse.png",
    "loss.png",
)
_LOCK = ".lock"
# A kill of version 0.1 may have left these behind.
_UNFINISHED = ("config.tmp", "run.tmp", "metrics.tmp", ".forward.png", ".reverse.png")
# What a resumed run may change: when to stop, report and save, how to sample, and where
# the data lies and how it is loaded. The batches stay the same.
_CHANGEABLE = (
    "training.",
    "sampling.",
    "ema.snapshots",
    "name",
    "data.path",
    "data.held_out",
    "data.memory_gib",
    "data.num_workers",
    "data.unreadable",
)
_STEP = re.compile("[0-9]{1,18}")
LEARNING_RATE = "optimizer.learning_rate"  # This one only if the user says so.
_MOST = {"steps_per_dispatch": 10**4}  # As of its field of the config.
FORMAT = 1  # Of a run folder; a checkpoint of another one may lack something.


def config_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its config."""
    return workdir / "config.json"


def checkpoints_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints, each in a folder named by its step."""
    return workdir / "checkpoints"


def samples_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its sample pictures."""
    return workdir / "samples"


def damaged_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where checkpoints go that cannot be read."""
    return workdir / "damaged_checkpoints"


def snapshots_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps the snapshots of its power-function averages."""
    return workdir / "ema_snapshots"


def evaluations_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps what its evaluation found."""
    return workdir / "evaluations"


def auto_timesteps_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps what --spacing auto chooses timesteps by."""
    return workdir / "auto_timesteps"


def is_part(workdir: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether `path` is one of what the run itself needs, or lies in its folders."""
    names = {*_PARTS, "config.json", _LOCK} - {"samples", "evaluations"}
    own = {(workdir / name).resolve() for name in names}
    return bool(own & {path.resolve(), *path.resolve().parents})


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Puts the config into the run folder, whole or not at all."""
    files.write_whole(config_path(workdir), to_json(config))


@dataclasses.dataclass
class Record:
    """run.json: what a run says of itself, for people and for later versions.

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
    """Puts run.json into the run folder, whole or not at all."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    files.write_whole(workdir / "run.json", text)


def read_record(workdir: pathlib.Path) -> Record | None:
    """What run.json says; None for a run that has none.

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
            f"{path} is not what a run has written ({reason(error)}); "
            "restore it, or remove it"
        ) from error
    if record.format > FORMAT:
        raise BadRequest(
            f"{path} is of format {record.format}, by diffusion_jax {record.version}; this "
            f"version knows formats up to {FORMAT}"
        )
    return record


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def is_disk_failure(error: OSError) -> bool:
    """Whether a write failed because of the disk, not because of what was asked for."""
    return error.errno in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE),
    )


def read_config(workdir: pathlib.Path) -> Config:
    """The config of an existing run.

    Raises:
      BadRequest: if the folder is not that of a run, or `train` would refuse its config.
    """
    path = config_path(workdir)
    if not path.is_file():
        raise BadRequest(
            f"there is no run in {workdir} (no config.json); train one with "
            f"python train.py --config configs/digits.py --workdir {quoted(workdir)}"
        )
    try:
        config = from_json(files.read_note(path))
        config.validate()
        if not config.data.channels:  # A run knows what the data have.
            raise BadRequest("data.channels (0) must be at least 1")
        return config
    except (ValueError, BadRequest) as error:
        raise BadRequest(f"{path} is not the config of a run: {reason(error)}") from error


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a run has saved anything yet."""
    return bool(saved_steps(workdir))


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Return the steps of a run's checkpoints, rising."""
    found = checkpoints_path(workdir).glob("*")
    return sorted(int(path.name) for path in found if _STEP.fullmatch(path.name))


def check_has_step(workdir: pathlib.Path, step: int) -> None:
    """Raise BadRequest unless a run has a checkpoint of this step, with those it has."""
    if step not in saved_steps(workdir):
        raise BadRequest(
            f"{workdir} has no checkpoint of step {step:,}; {steps_there(workdir)}"
        )


def steps_there(workdir: pathlib.Path) -> str:
    """Return which checkpoints a run has, in words."""
    return f"it has {', '.join(f'{step:,}' for step in saved_steps(workdir)) or 'none'}"


def newest_run(root: pathlib.Path) -> pathlib.Path:
    """The run under `root` whose checkpoints changed last.

    Raises:
      BadRequest: if there is none.
    """
    found = [path.parent for path in root.glob("*/config.json")]
    saved = [checkpoints_path(workdir) for workdir in found if has_checkpoint(workdir)]
    if not saved:
        raise BadRequest(
            f"there is no run with a checkpoint under {root}/; train one with "
            "python train.py --config configs/digits.py, or name one with --workdir"
        )
    return max(saved, key=lambda folder: folder.stat().st_mtime).parent


def named_or_newest(name: str | None) -> pathlib.Path:
    """The run folder of a --workdir; without one the newest under runs/."""
    return expanded("--workdir", name) if name else newest_run(pathlib.Path("runs"))


def expanded(flag: str, name: str) -> pathlib.Path:
    """Return the path of a flag, ~ replaced.

    Raises:
      BadRequest: for the ~ of nobody, and for a URL.
    """
    if re.match("[A-Za-z0-9]+://", name):
        raise BadRequest(
            f"{flag} {name} is a URL, and all lies in a file system; mount it, or give a "
            "path"
        )
    try:
        return pathlib.Path(name).expanduser()
    except RuntimeError as error:
        raise BadRequest(f"{flag} {name}: {error}") from error


@contextlib.contextmanager
def locked(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps a second process out of a folder; a kill leaves no lock behind.

    Raises:
      BadRequest: if another process is at work there; `what` says on what.
    """
    with files.open_for_appending(folder / _LOCK) as file:
        _lock(file, folder, what)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}, since {now()}".encode())
        file.flush()
        yield


def check_not_locked(folder: pathlib.Path, what: str) -> None:
    """Refuse a folder that `locked` would refuse; nothing is written there."""
    with contextlib.suppress(FileNotFoundError, files.NotRegular):
        with files.open_regular(folder / _LOCK) as file:
            _lock(file, folder, what)


def _lock(file: BinaryIO, folder: pathlib.Path, what: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        who = file.read(200).decode(errors="replace").strip() or "unknown"
        raise BadRequest(
            f"another process ({who}) is {what} {folder}; wait for it, or stop it"
        ) from error


def delete_unfinished(workdir: pathlib.Path) -> None:
    """Delete what a kill has left half written in a run."""
    for folder in (workdir, samples_path(workdir), evaluations_path(workdir)):
        files.delete_unfinished(folder)


def delete_run(workdir: pathlib.Path) -> None:
    """Delete what a run has put into its folder, except its config, and nothing else.

    Of a part that is a link the link goes, and what it leads to stays.

    Raises:
      BadRequest: if the folder is not that of a run.
      OSError: naming what cannot be deleted; then nothing is.
    """
    read_config(workdir)
    parts = [workdir / name for name in _PARTS]
    links = {path: os.readlink(path) for path in parts if path.is_symlink()}
    files.delete(parts)
    for path, target in links.items():
        say(f"{path} was a link: {target} stays as it is")


def check_deletable(workdir: pathlib.Path, needed: Mapping[str, str]) -> None:
    """Refuse what `delete_run` would refuse, and delete nothing.

    Args:
      workdir: the run.
      needed: paths that the new run needs, by the flags or fields that name them.

    Raises:
      BadRequest: if one of them would be deleted.
      OSError: naming what cannot be deleted.
    """
    read_config(workdir)
    parts = {(workdir / name).absolute() for name in _PARTS}
    for flag, path in needed.items():
        there = pathlib.Path(path).expanduser().resolve()
        for part in parts:
            if not part.is_symlink() and part.resolve() in (there, *there.parents):
                raise BadRequest(f"--overwrite would delete {part}, and so {flag} ({path})")
    files.check_deletable(workdir / name for name in _PARTS)


def _shown(value: object) -> str:
    return reprlib.repr(value) if isinstance(value, tuple) else repr(value)


def check_resumable(
    workdir: pathlib.Path, config: Config, *, change_learning_rate: bool = False
) -> list[str]:
    """Refuses a folder of something else, or of a run under another config.

    Args:
      workdir: the folder.
      config: what is wanted there.
      change_learning_rate: that this one may differ.

    Returns:
      The fields that differ and may, as "field (old -> new)".

    Raises:
      BadRequest: naming the fields that differ and cannot change.
    """
    if not config_path(workdir).exists():
        if workdir.exists() and not workdir.is_dir():
            raise BadRequest(f"--workdir {workdir} is a file; name a folder")
        if re.match("(gs|s3|az|abfs|hdfs|https?):/", str(workdir)):  # // is / in a path.
            raise BadRequest(
                f"--workdir {workdir}: a run folder lies in a file system; mount the "
                "bucket, or name another folder"
            )
        own = (*_PARTS, _LOCK, *_UNFINISHED)
        foreign = [
            p.name
            for p in workdir.glob("*")
            if p.name not in own and not files.is_unfinished(p.name)
        ]
        if foreign:
            raise BadRequest(
                f"--workdir {workdir} holds {foreign[0]} and is not the folder of a run; "
                "name another, or an empty one"
            )
        if has_checkpoint(workdir):
            raise BadRequest(
                f"--workdir {workdir} holds checkpoints, but no config.json that says of "
                "what; restore it, or name another folder"
            )
        return []
    old, new = dict(fields_of(read_config(workdir))), dict(fields_of(config))
    changed = {
        path: f"{path} ({_shown(old.get(path))} -> {_shown(new.get(path))})"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    }
    changeable = (*_CHANGEABLE, LEARNING_RATE) if change_learning_rate else _CHANGEABLE
    sections = tuple(name for name in changeable if name.endswith("."))
    fixed = {
        path: text
        for path, text in changed.items()
        if path not in changeable and not path.startswith(sections)
    }
    if fixed:
        only_rate = list(fixed) == [LEARNING_RATE]
        hint = ", or --change_learning_rate to go on with it" if only_rate else ""
        # No advice that would cost somebody a trained network.
        anew = "" if has_checkpoint(workdir) else ", or --overwrite to start anew"
        raise BadRequest(
            f"the run in {workdir} was started with another config: "
            f"{', '.join(fixed.values())}; "
            f"give another --workdir{anew}{hint}"
        )
    return [text for path, text in changed.items() if path != "name"]
