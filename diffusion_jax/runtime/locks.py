"""Locks that keep a second process out of a folder."""

import contextlib
import fcntl
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import BinaryIO

from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import utc_now

_LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Keep a second process out of a folder; a kill leaves no lock behind.

    Raises:
      BadRequest: if another process is at work there; `what` says on what.
    """
    with files.open_for_appending(folder / _LOCK) as file:
        _lock(file, folder, what)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}, since {utc_now()}".encode())
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
