"""A Python file that a flag names, run as a module."""

import importlib.util
import pathlib
import traceback
from types import ModuleType

from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason


def load(flag: str, path: str, file: pathlib.Path) -> ModuleType:
    """Return the module that a file defines.

    Args:
      flag: that named it, for messages.
      path: as it was given, for messages.
      file: that there is.

    Raises:
      BadRequest: if its name does not end in .py, or it raises an error, with its line.
    """
    spec = importlib.util.spec_from_file_location("config", file)
    if spec is None or spec.loader is None:
        raise BadRequest(f"{flag} {path}: the name of the file must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise refusal(flag, path, file, error) from error
    return module


def refusal(flag: str, path: str, file: pathlib.Path, error: BaseException) -> BadRequest:
    """Return what is said of an error that the file raised, with its line there."""
    if isinstance(error, BadRequest):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(file.absolute())]
    where = f", line {lines[-1]}" if lines else ""
    return BadRequest(
        f"{flag} {path}{where} raised {type(error).__name__}: {reason(error)}"
    )
