"""A process for each side of a comparison, which waits while the other one is timed."""

import ctypes
import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parent
COMPILED = str(HERE.parent.parent / ".venv-parity" / "compiled")  # Kept for the next run.


class Worker:
    """One side, seen from the process that compares."""

    def __init__(self, script: str, *arguments: str):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": f"{COMPILED}/jax",
                "TORCHINDUCTOR_CACHE_DIR": f"{COMPILED}/torch",
            },
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question of `serve`."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} died of {question}")
        return json.loads(line)

    def close(self) -> None:
        self.ask(do="leave")
        self._process.wait()


def serve(
    prepare: Callable[..., tuple[Callable[[], Any], dict[str, Any]]],
    memory: Callable[[], int | None],
) -> None:
    """Answers until it is told to leave.

    {"do": "prepare", ...} calls prepare(...), which returns what is to be timed and what
    there is to say. {"do": "time", "repeats": n} times n calls of it and a wait for the
    last, the time on all cores, and the page faults of a call. Both say the largest memory
    that the process has had since it was prepared, in bytes: `memory()`, or if that is
    None, the resident set.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Whatever else is printed is none.
    run: Callable[[], Any] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        do = question.pop("do")
        answer: dict[str, Any] = {}
        if do == "prepare":
            run = None  # Its memory is free for the next.
            run, answer = prepare(**question)
            forget()
        elif do == "time":
            assert run is not None
            start, faults, cpu = time.perf_counter(), page_faults(), time.process_time()
            for _ in range(question["repeats"]):
                run()
            answer["seconds"] = (time.perf_counter() - start) / question["repeats"]
            answer["cpu"] = (time.process_time() - cpu) / question["repeats"]
            answer["faults"] = (page_faults() - faults) / question["repeats"]
        answer["memory"] = memory() or resident()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if do == "leave":
            return


def forget() -> None:
    """Gives back what is free; the largest resident set begins again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def page_faults() -> int:
    """How often the system has given this process a page."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    """The largest resident set of this process, bytes, since `forget`."""
    # Not getrusage, which counts what the parent had when it forked.
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
