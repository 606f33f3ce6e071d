"""The numbers and pictures of a run for Weights & Biases, if it is installed and wanted."""

import importlib
import importlib.util
import json
import pathlib
import secrets
from typing import Any

import numpy as np

from diffusion_jax.config import Config, to_json
from diffusion_jax.runtime import files, first_process, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason, say


def check_installed() -> None:
    """Raise BadRequest if the package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise BadRequest("--wandb needs the package wandb: pip install wandb")


def begun(project: str | None, workdir: pathlib.Path, config: Config) -> list["WandbLog"]:
    """Return the log of a run in this project, begun or resumed, if this process writes.

    Raises:
      BadRequest: in all processes, if Weights & Biases refuses it.
    """
    logs: list[WandbLog] = []
    if project is not None:
        with processes.together():
            if first_process.is_here():
                logs.append(WandbLog(project, workdir, config))
    return logs


class WandbLog:
    """A run of Weights & Biases, which a later start of the same run folder resumes."""

    def __init__(self, project: str, workdir: pathlib.Path, config: Config):
        """Begin it, or resume it by the id in wandb/id.txt of the run folder."""
        wandb = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project=project,
                name=config.name,
                id=_id_of(workdir),
                resume="allow",
                dir=str(workdir),
                config=json.loads(to_json(config)),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:  # No key, no network, a wrong name.
            raise BadRequest(f"--wandb {project}: {reason(error)}") from error
        self._image = wandb.Image
        self._known = self._run.step  # What earlier starts have sent: the same numbers.
        where = f"run {self._run.id}, offline" if self._run.offline else self._run.url
        say(f"Weights & Biases: {where}")

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Send numbers of this step."""
        self._send(step, values)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Send a picture."""
        self._send(step, {name: self._image(pixels)})

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._known:
            self._run.log(values, step=step)

    def sync(self) -> None:
        """Do nothing: another process keeps and sends what it was given."""

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def _id_of(workdir: pathlib.Path) -> str:
    path = workdir / "wandb" / "id.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        files.write_whole(path, secrets.token_hex(8))
    return files.read_note(path).strip()
