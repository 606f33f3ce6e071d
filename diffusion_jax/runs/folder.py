"""The run folder: what lies where in it, which run is meant, and who may write to it.

config.json   run.json       checkpoints/    ema_snapshots/   metrics.jsonl
tensorboard/  samples/       forward.png     reverse.png      loss.png
data.png      events.jsonl   report.html
evaluations/  auto_timesteps/   damaged_checkpoints/   profile/   wandb/, if there are any
"""

import os
import pathlib
import re
import reprlib
from collections.abc import Mapping

from diffusion_jax.config import Config, fields_of, from_json, to_json
from diffusion_jax.experiment import validation
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import command, quoted, reason, say

_PARTS = (
    "run.json",
    "checkpoints",
    "damaged_checkpoints",
    "ema_snapshots",
    "tensorboard",
    "profile",
    "wandb",
    "samples",
    "evaluations",
    "auto_timesteps",
    "metrics.jsonl",
    "forward.png",
    "reverse.png",
    "loss.png",
    "data.png",
    "events.jsonl",
    "report.html",
)
_LOCK = ".lock"
# A kill of version 0.1 may have left these behind.
_UNFINISHED = ("config.tmp", "run.tmp", "metrics.tmp", ".forward.png", ".reverse.png")
# Fields that a resumed run may change: when to stop, report and save, how to sample, where
# the data lies and how it is loaded, and what only saves memory. The batches stay the same.
_CHANGEABLE = (
    "training.",
    "parallel.",
    "sampling.",
    "ema.snapshots",
    "name",
    "data.path",
    "data.origin",
    "data.held_out",
    "data.label_file",
    "data.memory_gib",
    "data.num_workers",
    "data.unreadable",
    "model.remat",
    "optimizer.accumulate",
)
SMOKE_SUFFIX = ".smoke"  # Of the name of a smoke run, which no other run goes on with.
_STEP = re.compile("[0-9]{1,18}")
LEARNING_RATE = "optimizer.learning_rate"  # May change only if the user asks for it.


def config_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the path of a run's config."""
    return workdir / "config.json"


def checkpoints_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of a run's checkpoints, each in a folder named by its step."""
    return workdir / "checkpoints"


def samples_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of a run's sample pictures."""
    return workdir / "samples"


def damaged_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder for a run's checkpoints that cannot be read."""
    return workdir / "damaged_checkpoints"


def snapshots_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of the snapshots of a run's power-function averages."""
    return workdir / "ema_snapshots"


def evaluations_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of the results of a run's evaluation."""
    return workdir / "evaluations"


def profile_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of the profiles of a run's train steps."""
    return workdir / "profile"


def auto_timesteps_path(workdir: pathlib.Path) -> pathlib.Path:
    """Return the folder of the statistics that --spacing auto chooses timesteps by."""
    return workdir / "auto_timesteps"


def is_part(workdir: pathlib.Path, path: pathlib.Path) -> bool:
    """Return whether `path` is a part that the run itself needs, or lies in its folders."""
    names = {*_PARTS, "config.json", _LOCK} - {"samples", "evaluations"}
    own = {(workdir / name).resolve() for name in names}
    return bool(own & {path.resolve(), *path.resolve().parents})


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Put the config into the run folder, whole or not at all."""
    files.write_whole(config_path(workdir), to_json(config))


def read_config(workdir: pathlib.Path) -> Config:
    """The config of an existing run.

    Raises:
      BadRequest: if the folder is not that of a run, or `train` would refuse its config.
    """
    path = config_path(workdir)
    if not path.is_file():
        raise BadRequest(
            f"there is no run in {workdir} (no config.json); train one with "
            f"{command('train')} --config digits --workdir {quoted(workdir)}"
        )
    try:
        config = from_json(files.read_note(path))
        validation.check(config)
        if not config.data.channels:  # The config of a run has the channels of its data.
            raise BadRequest("data.channels (0) must be at least 1")
        if config.data.labels and not config.data.num_classes:
            raise BadRequest("data.num_classes (0) must be at least 2")
        return config
    except (ValueError, BadRequest) as error:
        raise BadRequest(f"{path} is not the config of a run: {reason(error)}") from error


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Return whether a run has saved anything yet."""
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
    saved.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    runs = (folder.parent for folder in saved if not _is_of_smoke_run(folder.parent))
    newest = next(runs, None)
    if newest is None:
        raise BadRequest(
            f"there is no run with a checkpoint under {root}/; train one with "
            f"{command('train')} --config digits, or name one with --workdir"
        )
    return newest


def is_smoke_run(config: Config) -> bool:
    """Return whether a config is that of a smoke run."""
    return config.name.endswith(SMOKE_SUFFIX)


def _is_of_smoke_run(workdir: pathlib.Path) -> bool:
    try:
        return is_smoke_run(read_config(workdir))
    except (BadRequest, OSError):  # It is refused if it is the newest.
        return False


def named_or_newest(name: str | None) -> pathlib.Path:
    """The run folder of a --workdir; without one the newest under runs/."""
    return files.expanded("--workdir", name) if name else newest_run(pathlib.Path("runs"))


def delete_unfinished(workdir: pathlib.Path) -> None:
    """Delete what a kill has left half written in a run."""
    for folder in (workdir, samples_path(workdir), evaluations_path(workdir)):
        files.delete_unfinished(folder)


def delete_run(workdir: pathlib.Path) -> None:
    """Delete what a run has put into its folder, except its config, and nothing else.

    If a part is a link, the link is deleted, and what it leads to stays.

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
                raise BadRequest(
                    f"--overwrite would delete {part}, and with it {flag} ({path}); move "
                    "that first"
                )
    files.check_deletable(workdir / name for name in _PARTS)


def _shown(value: object) -> str:
    return reprlib.repr(value) if isinstance(value, tuple) else repr(value)


def _config_to_resume(workdir: pathlib.Path, config: Config) -> Config:
    there = read_config(workdir)
    if is_smoke_run(there) and not is_smoke_run(config):
        raise BadRequest(
            f"--workdir {workdir} holds a smoke run; name another, or give --overwrite to "
            "delete it"
        )
    return there


def check_resumable(
    workdir: pathlib.Path, config: Config, *, change_learning_rate: bool = False
) -> list[str]:
    """Refuse a folder of something else, or of a run under another config.

    Args:
      workdir: the folder.
      config: what is wanted there.
      change_learning_rate: whether the learning rate may differ.

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
                f"--workdir {workdir}: a run folder must be in a file system; mount the "
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
                f"--workdir {workdir} holds checkpoints, but no config.json; restore that, "
                "or name another folder"
            )
        return []
    old, new = dict(fields_of(_config_to_resume(workdir, config))), dict(fields_of(config))
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
        restart = "" if has_checkpoint(workdir) else ", or --overwrite to start again"
        raise BadRequest(
            f"the run in {workdir} was started with another config: "
            f"{', '.join(fixed.values())}; "
            f"give another --workdir{restart}{hint}"
        )
    return [text for path, text in changed.items() if path != "name"]
