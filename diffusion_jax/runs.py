"""The run folder: what lies where in it, which run is meant, and who may write to it.

config.json   checkpoints/   metrics.jsonl   tensorboard/   samples/
forward.png   reverse.png    loss.png
"""

import contextlib
import fcntl
import pathlib
import reprlib
import shutil
from collections.abc import Iterator

from diffusion_jax.config import Config, fields_of, from_json, to_json
from diffusion_jax.validation import BadRequest

_PARTS = (
    "checkpoints",
    "tensorboard",
    "samples",
    "metrics.jsonl",
    "forward.png",
    "reverse.png",
    "loss.png",
)
_LOCK = ".lock"
# What a resumed run may change: when to stop, report and save, how to sample, and where
# the data lies and how it is loaded. The batches stay the same.
_CHANGEABLE = (
    "training.",
    "sampling.",
    "name",
    "data.path",
    "data.memory_gib",
    "data.num_workers",
    "data.unreadable",
)


class RunFailed(Exception):
    """A run cannot go on; str() is one line that says why and what to do."""


def config_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its config."""
    return workdir / "config.json"


def checkpoints_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints, each in a folder named by its step."""
    return workdir / "checkpoints"


def samples_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its sample pictures."""
    return workdir / "samples"


def is_part(workdir: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether `path` is one of what the run itself needs, or lies in its folders."""
    names = {*_PARTS, "config.json", _LOCK} - {samples_path(workdir).name}
    own = {(workdir / name).resolve() for name in names}
    return bool(own & {path.resolve(), *path.resolve().parents})


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Puts the config into the run folder, whole or not at all."""
    unfinished = config_path(workdir).with_suffix(".tmp")
    unfinished.write_text(to_json(config))
    unfinished.replace(config_path(workdir))


def read_config(workdir: pathlib.Path) -> Config:
    """The config of an existing run.

    Raises:
      BadRequest: if the folder is not that of a run.
    """
    path = config_path(workdir)
    if not path.is_file():
        raise BadRequest(
            f"there is no run in {workdir} (no config.json); train one with "
            "python train.py --config configs/digits.py"
        )
    try:
        return from_json(path.read_text())
    except (ValueError, BadRequest) as error:
        raise BadRequest(f"{path} is not the config of a run: {error}") from error


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a run has saved anything yet."""
    return any(path.name.isdigit() for path in checkpoints_path(workdir).glob("*"))


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


@contextlib.contextmanager
def locked(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps a second process out of a folder; a kill leaves no lock behind.

    Raises:
      BadRequest: if another process is at work there; `what` says on what.
    """
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadRequest(f"another process is {what} {folder}; wait for it") from error
        yield


def delete_run(workdir: pathlib.Path) -> None:
    """Deletes what a run has put into its folder, but for its config, and nothing else.

    Raises:
      BadRequest: if the folder is not that of a run.
    """
    read_config(workdir)
    for name in _PARTS:
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _shown(value: object) -> str:
    return reprlib.repr(value) if isinstance(value, tuple) else repr(value)


def check_resumable(workdir: pathlib.Path, config: Config) -> list[str]:
    """Refuses a folder of something else, or of a run under another config.

    Returns:
      The fields that differ and may, as "field (old -> new)".

    Raises:
      BadRequest: naming the fields that differ and cannot change.
    """
    if not config_path(workdir).exists():
        if workdir.exists() and not workdir.is_dir():
            raise BadRequest(f"--workdir {workdir} is a file; name a folder")
        foreign = [p.name for p in workdir.glob("*") if p.name not in (*_PARTS, _LOCK)]
        if foreign:
            raise BadRequest(
                f"--workdir {workdir} holds {foreign[0]} and is not the folder of a run; "
                "name another, or an empty one"
            )
        return []
    old, new = dict(fields_of(read_config(workdir))), dict(fields_of(config))
    changed = {
        path: f"{path} ({_shown(old.get(path))} -> {_shown(new.get(path))})"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    }
    fixed = [text for path, text in changed.items() if not path.startswith(_CHANGEABLE)]
    if fixed:
        raise BadRequest(
            f"the run in {workdir} was started with another config: {', '.join(fixed)}; "
            "give another --workdir, or --overwrite to start anew"
        )
    return [text for path, text in changed.items() if path != "name"]
