"""Compiled programs kept on disk, so that the same command starts faster next time."""

import contextlib
import os
import pathlib
import re
import warnings

import jax

from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

OFF = "off"
HELP = "Folder that keeps compiled programs for later runs, or off."
_MOST_BYTES = 2**31  # Size of the folder; the programs that were used longest ago go.
_PROGRAM = re.compile(".+-[0-9a-f]{64}-cache")  # Name that jax gives a compiled program.
_MIN_SECONDS = 0.2  # Programs that compile faster are not worth a file.


def default_folder() -> str:
    """Return $JAX_COMPILATION_CACHE_DIR, or else diffusion_jax in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or f"{cache}/diffusion_jax/compiled"


def check(folder: str | None) -> None:
    """Refuse what `use` would refuse, and write nothing."""
    if folder and folder.lower() != OFF:
        try:
            files.check_can_be_made(pathlib.Path(folder).expanduser())
        except (OSError, RuntimeError) as error:
            raise _cannot(f"--compilation_cache {folder}", error) from error


def _cannot(what: str, error: Exception) -> BadRequest:
    said = getattr(error, "strerror", None) or error
    return BadRequest(
        f"{what} cannot be written ({said}); name another folder with "
        "--compilation_cache, or off"
    )


def use(folder: str | None) -> None:
    """Keep compiled programs in this folder from now on, and print its name.

    Args:
      folder: "off" for none; None for `default_folder`, which a warning leaves out if
        it cannot be written.

    Raises:
      BadRequest: if a folder that was named cannot be written.
    """
    if folder == "":
        raise BadRequest("--compilation_cache is empty; name a folder, or off")
    if folder and folder.lower() == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        say("compilation cache: off")
        return
    path = pathlib.Path(folder or default_folder())
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        files.check_can_be_made(path)
    except (OSError, RuntimeError) as error:
        variable = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        what = "--compilation_cache" if folder else "the compilation cache"
        if variable and not folder:
            what = "JAX_COMPILATION_CACHE_DIR"
        refused = _cannot(f"{what} {path}", error)
        if folder or variable:
            raise refused from error
        warnings.warn(f"{refused}; every run compiles again", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(files.plain(path)))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
    mine = folder or "JAX_COMPILATION_CACHE_DIR" not in os.environ
    most = _MOST_BYTES if mine else None  # No programs of others are deleted.
    size = f"{bounded(path, most) / 2**20:,.0f} MiB"
    say(f"compilation cache: {path} ({size}{f' of {most / 2**20:,.0f}' if most else ''})")


def bounded(folder: pathlib.Path, most: int | None) -> int:
    """Return the size of the programs in a folder, in bytes, at most `most`.

    Those that were used longest ago are deleted until the others fit.
    """
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):  # Another process may be at it.
                if _PROGRAM.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    used = max(about.st_atime, about.st_mtime)
                    found.append((used, about.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if most is None or total <= most:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
    return total
