"""Parts that the commands share: flags, and errors as one line with an exit status.

0 is done, 1 the run failed, 2 the request was wrong, 130 after Ctrl-C.
"""

import contextlib
import difflib
import logging as python_logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from diffusion_jax.config import Config, fields_of, help_text
from diffusion_jax.jobs import python_file
from diffusion_jax.runtime import cpu, environment, files, processes
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.fields import check_types, in_words, leaves_of
from diffusion_jax.runtime.files import is_machine_failure, project_file
from diffusion_jax.runtime.interrupts import leave
from diffusion_jax.runtime.text import command, going_on, quoted, reason, shown

_HELP = ("help", "helpfull", "helpshort", "h")
# What gloo, NCCL and the coordinator say when the other end of a connection is gone.
_LOST = re.compile("[Gg]loo|NCCL|[Cc]onnection (reset|closed|refused)|UNAVAILABLE")
_NEAR = 0.75  # Least likeness of a name that is suggested to what was written.

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, where several processes that work as one meet; needed where "
    "no cluster says it (docs/scaling.md).",
    module_name=sys.argv[0],  # The command's own, in its --help.
)
_NUM = flags.DEFINE_integer(
    "num_processes", None, "Number of these processes.", module_name=sys.argv[0]
)
_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0 on.", module_name=sys.argv[0]
)


def run(
    main: Callable[..., None],
    *,
    takes_config: bool = False,
    takes_names: bool = False,
    before_devices: Callable[[], None] = lambda: None,
) -> None:
    """Parse the command line, call main(), main(config) or main(names), and exit.

    Args:
      main: the command.
      takes_config: whether it takes --config.
      takes_names: whether it takes arguments that are not flags; they are a list.
      before_devices: called after the flags are parsed, before JAX looks for its devices.
    """
    cpu.keep_memory()
    _prepare_output()
    arguments: list[Any] = []

    def parse(argv: Sequence[str]) -> list[str]:
        argv = _underscored(_with_flagfiles(argv))
        _check_own(argv)
        if takes_config:
            path, argv = _take_config_path(argv)
            config = load_config(path)
            _check_fields(argv, path, config)
            flag = config_flags.DEFINE_config_dataclass("config", config, sys_argv=argv)
            arguments.append(flag)
        return _parse_flags(argv, takes_names=takes_names)

    def checked(*arguments: Any) -> None:
        before_devices()
        _start_processes()
        environment.check()
        processes.check_alike(_shared_arguments())  # Before anything is said.
        main(*arguments)

    try:
        if any(map(_asks_for_help, sys.argv)):
            _show_help(takes_config)
        app.run(
            lambda argv: checked(
                *(flag.value for flag in arguments), *([argv[1:]] if takes_names else [])
            ),
            flags_parser=parse,
        )
    except BadRequest as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            _fail_if_lost(error)
            raise
        _fail(f"{str(error).splitlines()[0]}; a smaller batch size needs less memory", 1)
    except OSError as error:
        # A name that cannot be written to was a wrong request; a full disk was not.
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1 if is_machine_failure(error) else 2)
    except KeyboardInterrupt:
        processes.end()
        leave()
    except Exception as error:
        _fail_if_lost(error)
        raise


def as_given(name: str) -> str:
    """Return the command line of this process, as a shell reads it.

    Args:
      name: of the command ("train").
    """
    return " ".join([command(name), *map(quoted, sys.argv[1:])])


def _prepare_output() -> None:
    """Let warnings and errors be lines that any stream can take."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {shown(message)}\n"
    sys.excepthook = _show_traceback
    for stream in (sys.stdout, sys.stderr):  # A name that its encoding lacks is no error.
        if stream is not None:  # As it is where somebody has closed it.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _asks_for_help(arg: str) -> bool:
    return arg.startswith("-") and arg.lstrip("-") in _HELP


def _fail_if_lost(error: Exception) -> None:
    """Fail with one line if this error is of a connection to another process."""
    if processes.are_many() and "Duplicate GPU" in str(error):  # NCCL's words.
        _fail(
            "two processes of this run see the same GPU: start one process for all GPUs of "
            "a machine, or give each its own by CUDA_VISIBLE_DEVICES",
            2,
        )
    if processes.are_many() and _LOST.search(str(error)):
        processes.wait_until_lost()  # Its line says which one.
        _fail("another process of this run is gone; give the same command to all again", 1)


def _start_processes() -> None:
    """Join the other processes of a command that works on all devices as one."""
    given = {f"--{flag.name}": flag.value for flag in (_COORDINATOR, _NUM, _ID)}
    for name in ("shard", "merge", "rehearse"):
        if name in flags.FLAGS and flags.FLAGS[name].value:
            told = [flag for flag, value in given.items() if value is not None]
            if told:
                raise BadRequest(f"--{name} is for one process alone: leave out {told[0]}")
            return
    processes.start(processes.place_of(given, os.environ), _shared_arguments())


def _shared_arguments() -> list[str]:
    """Return the arguments that all processes of a command have to share."""
    own = ("coordinator", "num_processes", "process_id")
    shared, arguments = [], iter(_underscored(sys.argv[1:]))
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in own:
            shared.append(argument)
        elif not equals:
            next(arguments, "")
    return shared


def _show_help(takes_config: bool) -> None:
    """Print what a command does, and its flags; with --config also the config's fields."""
    said = [str(sys.modules["__main__"].__doc__), flags.FLAGS.main_module_help()]
    if takes_config:
        fields = "  --config FILE --help lists every field of the config in that file."
        rest = [arg for arg in _underscored(sys.argv[1:]) if not _asks_for_help(arg)]
        if any(arg.startswith(("--config=", "-config=")) for arg in rest) or (
            {"--config", "-config"} & set(rest)
        ):
            path, _ = _take_config_path(rest)
            fields = f"\nThe config of {path}:\n{help_text(load_config(path))}"
        said.append(fields)
    with going_on():
        print(*said, sep="\n")
        sys.stdout.flush()
    sys.exit(0)


def _config_file(path: str) -> pathlib.Path:
    """Return the file that --config names, by its path or as a config of this project.

    Raises:
      BadRequest: if there is none, or a file and a config of this project have this name.
    """
    file = pathlib.Path(path)
    ours = {p.stem: p for p in sorted(project_file("configs").glob("*.py"))}
    if path in ours:
        if file.exists():
            raise BadRequest(
                f"--config {path} is the name of a config and of a file or folder here; "
                f"give {ours[path]}, or ./{path}"
            )
        return ours[path]
    if file.is_file():
        return file
    here = {p.stem: str(p) for p in sorted(pathlib.Path("configs").glob("*.py"))}
    known = here if file.suffix and here else dict(zip(ours, ours, strict=True))
    near = difflib.get_close_matches(file.stem[:99], known, n=1, cutoff=_NEAR)
    hint = f"there are {', '.join(known.values())}; or give the path to a .py file"
    what = "there is no such file"
    if file.exists():
        what = "it is a folder" if file.is_dir() else "it is not a regular file"
    elif near:
        hint = f"did you mean {known[near[0]]}?"
    raise BadRequest(f"--config {path}: {what}; {hint}")


def load_config(path: str) -> Config:
    """Return what `get_config()` of a config file returns.

    Args:
      path: of a file, or the name of a config of this project: "digits".

    Raises:
      BadRequest: if there is no such file, it raises, or it returns something else.
    """
    file = _config_file(path)
    module = python_file.load("--config", path, file)
    if not callable(getattr(module, "get_config", None)):
        raise BadRequest(
            f"--config {path} must define a function get_config() that returns a "
            "diffusion_jax.config.Config"
        )
    try:
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise python_file.refusal("--config", path, file, error) from error
    if not isinstance(config, Config):
        raise BadRequest(
            f"--config {path}: get_config() must return a diffusion_jax.config.Config, "
            f"not {type(config).__name__}"
        )
    try:
        check_types(config)
    except BadRequest as error:
        raise BadRequest(f"--config {path}: {error}") from error
    return config


def _show_traceback(_kind: Any, error: BaseException, _trace: Any) -> None:
    """Print what nobody has foreseen; its text may hold the names of files."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        print(shown(line), file=sys.stderr)


def _fail(message: str, status: int) -> None:
    line = shown(message)
    print("error:", line if len(line) < 2000 else line[:2000] + "...", file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    files.remove_links()
    # Not sys.exit: what is left of a failed job must not wait, or speak, at the exit.
    os._exit(status)


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
    rest, paths = [], []
    args = iter(argv)
    for arg in args:
        if arg in ("--config", "-config"):
            paths.append(next(args, ""))
        elif arg.startswith(("--config=", "-config=")):
            paths.append(arg.partition("=")[2])
        else:
            rest.append(arg)
    if len(paths) > 1:
        raise BadRequest(f"--config is given twice: {', '.join(paths)}")
    if not paths or not paths[0] or paths[0].startswith("-"):
        names = [arg.partition("=")[0][:99] for arg in rest if arg.startswith("--")]
        near = difflib.get_close_matches("--config", names, n=1, cutoff=_NEAR)
        hint = f"; did you mean it by {near[0]}?" if near and not paths else ""
        raise BadRequest(f"--config needs a file, such as --config configs/digits.py{hint}")
    return paths[0], rest


def _check_fields(argv: Sequence[str], path: str, config: Config) -> None:
    """Check that fields exist, and tuples are given once (config_flags adds them up)."""
    known = dict(fields_of(config))
    given = set()
    for arg in argv:
        flag = arg.partition("=")[0].lstrip("-")
        if not arg.startswith("-") or not flag.startswith(("config.", "noconfig.")):
            continue
        field = flag.removeprefix("no").removeprefix("config.")
        if field not in known:
            raise BadRequest(f"--{flag}: {_not_a_field(field, list(known), path)}")
        if field in given and isinstance(known[field], tuple):
            raise BadRequest(f"--config.{field} is given twice")
        given.add(field)


def _not_a_field(field: str, known: list[str], path: str) -> str:
    below = [f"config.{name}" for name in known if name.startswith(f"{field}.")]
    if below:
        return f"config.{field} is a section; set a field of it: {', '.join(below)}"
    said = f"the config of {path} has no such field"
    last = {name.rpartition(".")[2] for name in known}
    near = difflib.get_close_matches(field.rpartition(".")[2][:99], last, n=1, cutoff=_NEAR)
    if not near:
        return f"{said}; --config {path} --help lists them"
    named = [name for name in known if name.rpartition(".")[2] == near[0]]
    nearest = max(
        named, key=lambda n: difflib.SequenceMatcher(None, n, field[-99:]).ratio()
    )
    return f"{said}; did you mean config.{nearest}?"


def _own_flags() -> list[str]:
    return [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]


def _with_flagfiles(argv: Sequence[str]) -> list[str]:
    """Return argv with the lines of each --flagfile in its place."""
    try:
        return flags.FLAGS.read_flags_from_files(argv)
    except (flags.Error, OSError, ValueError, RecursionError) as error:
        said = reason(error).removeprefix("ERROR:: ").removeprefix("--flagfile ")
        raise BadRequest(f"--flagfile: {said}") from error


def _check_own(argv: Sequence[str]) -> None:
    """Refuse absl's own flags, of which some hide errors, or do nothing here."""
    own = {*_own_flags(), "config"}
    for arg in argv[1:]:
        name = arg.partition("=")[0].lstrip("-")
        if arg == "--":
            break
        if arg.startswith("-") and len(name) > 200:  # absl compares it by recursion.
            raise BadRequest(f"--{name[:50]}...: there is no such flag; --help lists all")
        for known in {name, name.removeprefix("no")} - own:
            if arg.startswith("-") and (known in flags.FLAGS or known == "undefok"):
                if name not in own:
                    raise BadRequest(f"--{name}: {_no_such_flag(name)}")


def _no_such_flag(name: str) -> str:
    fields = dict(fields_of(Config())) if "config" in flags.FLAGS else {}
    named = [f"config.{path}" for path in fields if path.rpartition(".")[2] == name]
    near = difflib.get_close_matches(name[:99], _own_flags(), n=1, cutoff=_NEAR)
    meant = " or ".join(f"--{flag}" for flag in named or near)
    hint = f"did you mean {meant}?" if meant else "--help lists all"
    return f"there is no such flag; {hint}"


def _hear_orbax() -> None:
    """Show Orbax's warnings, which may mean a loss; its errors are what it raises."""

    def hear(record: python_logging.LogRecord) -> bool:
        if record.levelno == python_logging.WARNING:
            warnings.warn(record.getMessage(), stacklevel=2)
        return False

    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(hear)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)

    def hook(unraisable: Any) -> None:
        # The error is of files that were being written when another one failed.
        if "Event loop is closed" not in str(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def _parse_flags(argv: Sequence[str], *, takes_names: bool = False) -> list[str]:
    flags.FLAGS.set_gnu_getopt(takes_names)  # Flags may come after names.
    try:
        rest = flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        raise BadRequest(f"--{name}: {_no_such_flag(name)}") from error
    except (flags.Error, ValueError, TypeError) as error:
        hint = "; --help lists the flags" if "config." not in str(error) else ""
        said = " ".join(": ".join(map(str, error.args)).split())
        said = re.sub(r"\('Non-boolean.*\)$", "must be true or false", said)
        said = re.sub(
            r"invalid literal for int.*: (.*)$", r"\1 is not a whole number", said
        )
        raise BadRequest(f"{said}{hint}") from error
    if rest[1:] and not takes_names:
        raise BadRequest(
            f"{rest[1]!r} is not a flag; flags are written --name value or --name=value"
        )
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, str) and value.startswith("--"):
            raise BadRequest(f"--{name} needs a value, but {value} looks like a flag")
    for name in _own_flags():
        if flags.FLAGS[name].value == "":
            raise BadRequest(f"--{name} is empty; give it a value, or leave it out")
    _hear_orbax()
    return rest


def define_field_flags(section: Any, names: Sequence[str]) -> dict[str, Any]:
    """Define a flag for each of these fields of a section, without a default.

    Args:
      section: with its default values.
      names: of the fields.

    Returns:
      The flags by the names of their fields; the value of one that is not given is None.
    """
    kinds: dict[Any, Callable[..., Any]] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    leaves = {leaf.path: leaf for leaf in leaves_of(section)}
    return {
        name: kinds.get(leaves[name].kind, flags.DEFINE_list)(
            name,
            None,
            in_words(leaves[name]).replace("sampling.", "--"),
            module_name=sys.argv[0],  # The command's own, in its --help.
        )
        for name in names
    }
