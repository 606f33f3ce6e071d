"""Locks that keep a second process out of a folder."""

import contextlib
import fcntl
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import BinaryIO

from diffusion_jax.runtime import files, first_process, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import utc_now

_LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Keep another run out of a folder; a kill leaves no lock behind.

    Of processes that work as one, the first makes the folder and holds the lock.

    Raises:
      BadRequest: if another process is at work there; `what` says on what.
    """
    with contextlib.ExitStack() as stack:
        with processes.together():
            if first_process.is_here():
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(folder, what))
        yield


@contextlib.contextmanager
def held(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Lock a folder as `locked`, for this process alone."""
    with files.open_for_appending(folder / _LOCK) as file:
        _lock(file, folder, what)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}, since {utc_now()}".encode())
        file.flush()
        yield


@contextlib.contextmanager
def in_turn(folder: pathlib.Path) -> Iterator[None]:
    """Let one process after the other pass this context, whatever runs they are of."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.open_for_locking(folder / _LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_not_locked(folder: pathlib.Path, what: str) -> None:
    """Refuse a folder that `locked` would refuse; nothing is written there."""
    if not first_process.is_here():
        return
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
