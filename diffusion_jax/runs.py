"""The run folder: what lies where in it, and which run is meant.

config.json   checkpoints/   metrics.jsonl   tensorboard/   samples/
forward.png   reverse.png    loss.png
"""

import pathlib
import shutil

from diffusion_jax.config import BadRequest, Config, fields_of, from_json, to_json

_PARTS = (
    "checkpoints",
    "tensorboard",
    "samples",
    "metrics.jsonl",
    "forward.png",
    "reverse.png",
    "loss.png",
)
# What a resumed run may change: when to stop, report and save, and how to sample.
_CHANGEABLE = ("training.", "sampling.", "name")


def config_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its config."""
    return workdir / "config.json"


def checkpoints_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints."""
    return workdir / "checkpoints"


def samples_path(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its sample pictures."""
    return workdir / "samples"


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Puts the config into the run folder, which is made if need be."""
    workdir.mkdir(parents=True, exist_ok=True)
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
    return from_json(path.read_text())


def newest_run(root: pathlib.Path) -> pathlib.Path:
    """The run under `root` whose checkpoints changed last.

    Raises:
      BadRequest: if there is none.
    """
    folders = [checkpoints_path(path.parent) for path in root.glob("*/config.json")]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise BadRequest(
            f"there is no run with a checkpoint under {root}/; train one with "
            "python train.py --config configs/digits.py, or name one with --workdir"
        )
    return max(folders, key=lambda folder: folder.stat().st_mtime).parent


def delete_run(workdir: pathlib.Path) -> None:
    """Deletes what a run has put into its folder, but for its config, and nothing else."""
    for name in _PARTS:
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_resumable(workdir: pathlib.Path, config: Config) -> None:
    """Refuses a folder of something else, or of a run under another config.

    Raises:
      BadRequest: naming the fields that differ and cannot change.
    """
    if not config_path(workdir).exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise BadRequest(
                f"--workdir {workdir} exists and is not the folder of a run; name "
                "another, or an empty one"
            )
        return
    old, new = dict(fields_of(read_config(workdir))), dict(fields_of(config))
    changed = [
        f"{path} ({old.get(path)} -> {new.get(path)})"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path) and not path.startswith(_CHANGEABLE)
    ]
    if changed:
        raise BadRequest(
            f"the run in {workdir} was started with another config: "
            f"{', '.join(changed)}; give another --workdir, or --overwrite to start anew"
        )
