"""The report of a run, or of several, as one HTML page."""

import pathlib
import warnings
from collections.abc import Sequence

from diffusion_jax.config import fields_of
from diffusion_jax.jobs import command_line
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.report import curves, facts, page
from diffusion_jax.runtime import files, first_process
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.files import project_file
from diffusion_jax.runtime.text import command, quoted, reason, say, utc_now

_GRIDS = 30  # Sample grids of a page, of all runs together.
# Fields of a config that a run takes from its data.
_FROM_DATA = ("data.channels", "data.num_classes")


def write(
    workdirs: Sequence[pathlib.Path], out: pathlib.Path | None = None
) -> pathlib.Path:
    """Write the report of a run, or a comparison of several.

    Args:
      workdirs: one run folder, or several.
      out: the page, or a folder for it; None is report.html in the run folder, and of
        several runs comparison.html beside the folder of the first.

    Returns:
      The page.

    Raises:
      BadRequest: before anything is written: if a folder is no run, or has no metrics; if
        runs have no metric in common; if the page would replace something else.
      OSError: naming what cannot be read or written.
    """
    _check_different(workdirs)
    path = _page_path(workdirs, out)
    each = max(6, _GRIDS // len(workdirs))
    runs = facts.read_all(workdirs, each)
    _check_in_common(runs)
    text = page.render(runs, [train_command(run) for run in runs], utc_now())
    files.write_whole(path, text.encode("utf-8", "backslashreplace"))
    return path


def write_after_training(workdir: pathlib.Path) -> None:
    """Write the report of a run whose training has ended; a failure is a warning."""
    if not first_process.is_here():
        return
    try:
        path = write([workdir])
    except Exception as error:  # Nothing that a report meets may fail a run.
        warnings.warn(f"the report was not written: {reason(error)}", stacklevel=2)
    else:
        say(f"the report of the run: {path}")


def _check_different(workdirs: Sequence[pathlib.Path]) -> None:
    seen: dict[pathlib.Path, pathlib.Path] = {}
    for workdir in workdirs:
        first = seen.setdefault(workdir.resolve(), workdir)
        if first is not workdir:
            raise BadRequest(
                f"{workdir} is the run {first}, given twice; name different runs"
            )


def _check_in_common(runs: Sequence[facts.Facts]) -> None:
    first, *others = runs
    common = curves.names_of(first)
    for run in others:
        common &= curves.names_of(run)
    if not common:
        names = ", ".join(str(run.workdir) for run in runs)
        raise BadRequest(
            f"{names} have no metric in common, so there is nothing to compare; make a "
            "report of each"
        )


def _page_path(workdirs: Sequence[pathlib.Path], out: pathlib.Path | None) -> pathlib.Path:
    """Return the path of the page.

    Raises:
      BadRequest: if something else is there, or would be replaced.
    """
    many = len(workdirs) > 1
    usual = workdirs[0] / "report.html"
    if many:
        usual = workdirs[0].absolute().parent / "comparison.html"
    path = usual if out is None else out
    if path.is_dir():
        path = path / usual.name
    if path.suffix != ".html":
        raise BadRequest(f"--out {path} must end in .html")
    for workdir in workdirs:
        own = (workdir / "report.html").resolve()
        if run_folder.is_part(workdir, path) and (many or path.resolve() != own):
            raise BadRequest(f"--out {path} belongs to the run; give another --out")
    if path.exists() and not _is_report(path):
        raise BadRequest(
            f"{path} exists and is not a report of diffusion_jax; give another --out, or "
            "move it away"
        )
    return path


def _is_report(path: pathlib.Path) -> bool:
    with files.open_regular(path) as file:
        return page.MARK.encode() in file.read(500)


def train_command(run: facts.Facts) -> list[str]:
    """Return the command that trains a run again, made from its config.

    Returns:
      The command; nothing where the config is not one of this project, changed by flags.
    """
    name = run.config.name
    ours = {path.stem for path in project_file("configs").glob("*.py")}
    config = command_line.load_config(name) if name in ours else None
    if config is None or type(config.model) is not type(run.config.model):
        return []
    usual = dict(fields_of(config))
    changed = [
        f"--config.{path}={quoted(_as_flag(value))}"
        for path, value in fields_of(run.config)
        if value != usual[path] and path not in _FROM_DATA
    ]
    start = f"{command('train')} --config {quoted(name)}"
    return [" ".join([start, *changed, f"--workdir {quoted(run.workdir)}"])]


def _as_flag(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
