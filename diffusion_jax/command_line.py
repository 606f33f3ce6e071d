"""What the commands share: flags, and errors as one line with an exit status.

0 is done, 1 the run failed, 2 the request was wrong, 130 after Ctrl-C.
"""

import difflib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from diffusion_jax.config import BadRequest, Config, fields_of
from diffusion_jax.training.loop import TrainingFailed


def run(main: Callable[..., None], *, takes_config: bool = False) -> None:
    """Parses the command line, calls main() or main(config), and exits."""
    arguments: list[Any] = []

    def parse(argv: Sequence[str]) -> list[str]:
        argv = _underscored(argv)
        if takes_config and not any(arg.startswith("--help") for arg in argv):
            path, argv = _take_config_path(argv)
            config = load_config(path)
            _check_fields(argv, path, config)
            flag = config_flags.DEFINE_config_dataclass("config", config, sys_argv=argv)
            arguments.append(flag)
        return _parse_flags(argv)

    try:
        app.run(
            lambda _: main(*(flag.value for flag in arguments)),
            sys.argv,
            flags_parser=parse,
        )
    except BadRequest as error:
        _fail(error, 2)
    except TrainingFailed as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def load_config(path: str) -> Config:
    """What `get_config()` of a config file returns.

    Raises:
      BadRequest: if there is no such file, it raises, or it returns something else.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise BadRequest(f"--config {path}: there is no such file; {hint}")
    try:
        spec = importlib.util.spec_from_file_location("config", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(file.absolute())]
        where = f", line {lines[-1]}" if lines else ""
        raise BadRequest(
            f"--config {path}{where} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Config):
        raise BadRequest(
            f"--config {path}: get_config() must return a diffusion_jax.config.Config, "
            f"not {type(config).__name__}"
        )
    return config


def _fail(error: Exception, status: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


def _underscored(argv: Sequence[str]) -> list[str]:
    """argv with every - inside the name of a flag made a _."""
    changed = []
    for arg in argv:
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        changed.append(name + equals + value)
    return changed


def _take_config_path(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The value of --config, and argv without it."""
    rest, path = [], ""
    args = iter(argv)
    for arg in args:
        if arg == "--config":
            path = next(args, "")
        elif arg.startswith("--config="):
            path = arg.partition("=")[2]
        else:
            rest.append(arg)
    if not path:
        raise BadRequest("--config is missing, such as --config configs/digits.py")
    return path, rest


def _check_fields(argv: Sequence[str], path: str, config: Config) -> None:
    known = [field for field, _ in fields_of(config)]
    for arg in argv:
        flag = arg.partition("=")[0].removeprefix("--")
        field = flag.removeprefix("no").removeprefix("config.")
        if flag.startswith(("config.", "noconfig.")) and field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.4)
            hint = f"did you mean config.{near[0]}?" if near else "see config.py"
            raise BadRequest(f"--{flag}: the config of {path} has no such field; {hint}")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists all"
        raise BadRequest(f"--{error.flagname}: there is no such flag; {hint}") from error
    except flags.Error as error:
        raise BadRequest(f"{error}; --help says what it can be") from error
    if rest[1:]:
        raise BadRequest(
            f"{rest[1]!r} is no flag; they are written --name value or --name=value"
        )
    # Orbax reports each file that it writes at absl's usual level.
    logging.set_verbosity(logging.ERROR)
    return rest
