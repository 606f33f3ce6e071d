"""A profile of some train steps, by JAX's profiler, for TensorBoard or xprof."""

import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime import files, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import quoted

_WINDOW = re.compile("([0-9]{1,18}):([0-9]{1,18})")


class Window(NamedTuple):
    """The train steps after step `first`, up to step `last`."""

    first: int
    last: int


def window_of(text: str | None, num_steps: int) -> Window | None:
    """Return the window that --profile names; None for None.

    Raises:
      BadRequest: if it is not FIRST:LAST, does not rise, or ends beyond the last step.
    """
    if text is None:
        return None
    found = _WINDOW.fullmatch(text)
    if not found:
        raise BadRequest(f"--profile {text}: must be FIRST:LAST, two steps such as 100:120")
    window = Window(*map(int, found.groups()))
    if window.first >= window.last:
        raise BadRequest(f"--profile {text}: the first step must be less than the last")
    if window.last > num_steps:
        raise BadRequest(
            f"--profile {text} ends beyond training.num_steps ({num_steps:,}); give an "
            "earlier window"
        )
    return window


class Profiler:
    """The profiler, started and stopped between dispatches in every process.

    Attributes:
      ends: steps at which a dispatch has to end.
    """

    def __init__(
        self,
        window: Window | None,
        workdir: pathlib.Path,
        start: int,
        say: Callable[[str], None],
    ):
        """Prepare for a run that starts or goes on at step `start`.

        A window that begins before it is left out, and that is said: the command that a
        run was started with resumes it.
        """
        if window and window.first < start:
            say(
                f"no profile: its steps begin at {window.first:,}, and the run goes on "
                f"from step {start:,}"
            )
            window = None
        self.ends = tuple(window or ())
        self._window, self._workdir, self._say = window, workdir, say
        self._is_on = False

    def begin_at(self, step: int) -> None:
        """Begin if the next train step is the first of the window."""
        if self._window is None or step != self._window.first:
            return
        options = jax.profiler.ProfileOptions()
        # Else the time, which differs between processes; one host may have several.
        options.session_id = f"steps_{step}_{self._window.last}" + (
            f"_process_{jax.process_index()}" if processes.are_many() else ""
        )
        folder = run_folder.profile_path(files.plain(self._workdir))
        jax.profiler.start_trace(str(folder), profiler_options=options)
        self._is_on = True

    def end_at(self, step: int, results: Any) -> None:
        """Wait for the results of this step, and end, if it is the last of the window."""
        if self._is_on and self._window and step == self._window.last:
            jax.block_until_ready(results)
            self.end()
            folder = quoted(run_folder.profile_path(self._workdir))
            self._say(
                f"profile of steps {self._window.first:,} to {step:,} in {folder}; look at "
                f"it with: tensorboard --logdir {folder} (pip install tensorboard xprof)"
            )

    def end(self) -> None:
        """End a profile that is being made, and write it."""
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
