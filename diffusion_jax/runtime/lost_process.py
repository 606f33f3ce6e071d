"""One line in place of jax's report that another process of a run is gone.

jax notices it in a thread of its own, writes a dozen lines with addresses of its code to
the error output, and aborts. No Python runs any more then, so a small process in front of
the error output says it: it passes on all else.
"""

import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator

from diffusion_jax.runtime.text import shown

_LOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\] (.*)")
_FATAL = "Terminating process because the JAX distributed service"
_OWN = ("coordination_service.cc", "coordination_service_agent.cc", "add_port.cc")
_REST = re.compile(
    r"\d+|The tasks have crashed.*|Additional GRPC.*|:UNKNOWN.*|RPC: .*|\*\*\*.*|\s*@ .*|"
    r"=== .*|external/.*|"  # Where in its code an error began: since jax 0.11.
)
_GO_ON = "give the same command to all processes again: the run goes on"


def begin() -> None:
    """Put the process in front of the error output. Call it before any device is used."""
    if sys.stderr is None:  # As it is where somebody has closed it.
        return
    real = sys.stderr.fileno()
    source, sink = os.pipe()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A fork here: this child uses no thread of jax.
        child = os.fork()
    if child == 0:
        try:
            os.close(sink)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            with os.fdopen(source, errors="replace") as lines:
                for line in in_one_line(lines):
                    os.write(real, line.encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(source)
    os.dup2(sink, real)
    os.close(sink)


def in_one_line(lines: Iterable[str]) -> Iterator[str]:
    """Pass on lines, with one in place of those that jax writes when a process is gone.

    Nothing of what follows is passed on: it lists where each thread was.
    """
    report: list[str] = []
    is_of_jax = False
    for line in lines:
        found = _LOG.fullmatch(line.rstrip("\n"))
        if found:
            is_of_jax = found[1] in _OWN or _FATAL in found[2]
            if _FATAL in found[2]:
                report.append(found[2])
        elif is_of_jax and _REST.fullmatch(line.rstrip("\n")):
            report += [line.strip()] if report else []
        else:
            is_of_jax = False
        if not (is_of_jax or report):
            yield line
    if report:
        yield f"error: {shown(_in_words(report))}\n"


def _in_words(report: list[str]) -> str:
    if "unhealthy" in report[0]:
        gone = [line for line in report if line.isdecimal()]
        return f"process {', '.join(gone)} of this run is gone; {_GO_ON}"
    if "RegisterTask" in " ".join(report):
        return "not all processes of this run have started; start them within the same time"
    if "leader" in report[0]:
        return f"process 0 of this run is gone; {_GO_ON}"
    return f"a process of this run is gone ({report[0][-300:]}); {_GO_ON}"
