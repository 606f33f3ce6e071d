"""Several processes that work on one run: their start, and what they agree on.

Each runs the same command. They compute as one, on the devices of all, so each has to
take every decision as the others do: what time, a signal or a file decides is agreed on
here. A process alone agrees with itself, without a network.
"""

import collections
import contextlib
import importlib.util
import json
import os
import pathlib
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.runtime import first_process, lost_process, rendezvous
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.rendezvous import Place
from diffusion_jax.runtime.text import reason, say

START_SECONDS = 300  # How long a process waits for the others.
_HEARTBEAT_SECONDS = 30  # After this long without a sign of life a process is gone.
_SHUTDOWN_SECONDS = 20  # How long a process that has ended waits for the others.
_LONGEST = 2**12  # Bytes of a value, or of a refusal, that the others are told.
_SHARED = ".shared_by_all_"  # The name of a file that all processes look for begins so.

# What says how a process is started, for other clusters than those that jax knows.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_FLAGS = ("--coordinator", "--num_processes", "--process_id")
_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # Processes of Slurm and Open MPI.
_TPUS = ("/dev/accel0", "/dev/vfio/0")


def place_of(
    given: Mapping[str, str | int | None], variables: Mapping[str, str]
) -> Place | None:
    """Return the place that the command line gives, or the environment; None without one.

    Args:
      given: the values of --coordinator, --num_processes and --process_id.
      variables: of the environment.

    Raises:
      BadRequest: if some are given and not all, or one is not what it should be.
    """
    if any(value is not None for value in given.values()):
        names, values = _FLAGS, [given[name] for name in _FLAGS]
    else:
        names, values = _VARIABLES, [variables.get(name) for name in _VARIABLES]
        if values[1:] == [None, None]:  # Others set the address alone.
            return None
    missing = [n for n, value in zip(names, values, strict=True) if value in (None, "")]
    if missing:
        there = [name for name in names if name not in missing]
        raise BadRequest(
            f"{' and '.join(there)} without {' and '.join(missing)}: give all three, the "
            "same address and number to every process, and each its own id from 0 on"
        )
    address, (total, own) = (
        str(values[0]),
        (_whole(n, v) for n, v in zip(names[1:], values[1:], strict=True)),
    )
    if total < 1:
        raise BadRequest(f"{names[1]} ({total}) must be at least 1")
    if not 0 <= own < total:
        raise BadRequest(
            f"{names[2]} ({own}) must be in 0 .. {total - 1}, the last process"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadRequest(f"{names[0]} ({address}) must be HOST:PORT, such as 10.0.0.1:1234")
    return Place(address, total, own)


def _whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise BadRequest(f"{name} ({value!r}) is not a whole number") from error


def start(place: Place | None, command: Sequence[str]) -> None:
    """Join the other processes of this run, if there are any. Call it before any device.

    Args:
      place: of this process; None leaves it to a cluster, if that has started it.
      command: the arguments of the command, which all processes have to share.

    Raises:
      BadRequest: if the others do not come, or do not fit.
    """
    alone = place.num_processes == 1 if place else not _is_in_cluster(os.environ)
    if alone or jax.distributed.is_initialized():
        return
    # A signal is a request to the trainer, which all processes then agree on.
    jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {
        "initialization_timeout": START_SECONDS,
        "heartbeat_timeout_seconds": _HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": _SHUTDOWN_SECONDS,
    }
    if place is not None:
        if place.process_id == 0:
            say(
                f"waiting for {place.num_processes - 1} more at {place.coordinator}, for "
                f"{START_SECONDS} s at most"
            )
        rendezvous.meet(place, list(command), START_SECONDS)
        options |= place._asdict() | {"cluster_detection_method": "deactivate"}
        options["coordinator_address"] = options.pop("coordinator")
    lost_process.begin()
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # Each kind of cluster has its own.
        where = f"at {place.coordinator}" if place else "of this cluster"
        raise BadRequest(
            f"the other processes {where} cannot be joined: {reason(error)}; "
            f"give {', '.join(_FLAGS)}; to a process that works alone, {_FLAGS[1]}=1"
        ) from error


def check_alike(command: Sequence[str]) -> None:
    """Refuse processes of which one has other devices, or another command.

    Raises:
      BadRequest: in all of them, naming the process.
    """
    if not are_many():
        return
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1 or len(counts) < jax.process_count():
        each = ", ".join(f"{counts[i]} in process {i}" for i in range(jax.process_count()))
        raise BadRequest(
            f"the processes have different numbers of devices ({each}): give each the same"
        )
    check_same("the command", " ".join(command))


def _is_in_cluster(variables: Mapping[str, str]) -> bool:
    """Return whether a cluster has started this process as one of several.

    Slurm, Open MPI, an indexed job of Kubernetes, and Cloud TPU are known to jax.
    """
    if any(variables.get(name, "1") not in ("", "0", "1") for name in _SIZES):
        # Within an allocation, but not started by srun, there is one process; the shell
        # of an interactive allocation is a step of one task.
        is_step = "SLURM_STEP_NODELIST" in variables
        is_alone = variables.get("SLURM_STEP_NUM_TASKS") == "1"
        return "SLURM_NTASKS" not in variables or (is_step and not is_alone)
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= variables.keys():
        return True
    if not variables.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return False
    # Other devices can lie there as well; a TPU is used by its library alone.
    has_library = "TPU_LIBRARY_PATH" in variables or importlib.util.find_spec("libtpu")
    return bool(has_library) and any(map(os.path.exists, _TPUS))


def are_many() -> bool:
    """Return whether there are other processes in this run.

    Somebody may have joined them by `jax.distributed.initialize`, and not by `start`: so
    the first one is told here that it is.
    """
    many = jax.process_count() > 1
    if many and jax.process_index() and first_process.is_here():
        first_process.say_whether(False)
        warnings.simplefilter("ignore")
    return many


def most_later(value: float) -> Any:
    """Begin to find the largest of the values that the processes give; `float()` waits.

    It is computed behind what the devices were given before.
    """
    if not are_many():
        return value
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    own = np.full(jax.local_device_count(), value, np.float32)
    given = jax.make_array_from_process_local_data(rows, own, (jax.device_count(),))
    return _largest(given)


@jax.jit
def _largest(values: jax.Array) -> jax.Array:
    return jnp.max(values)


def most(value: float) -> float:
    """Return the largest of the values that the processes give."""
    return float(most_later(value))


def of_first(value: Any) -> Any:
    """Return the value that the first process gives: what JSON can hold."""
    if not are_many():
        return value
    said = multihost_utils.broadcast_one_to_all(_as_bytes(json.dumps(value)))
    return json.loads(_as_text(said))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let all processes pass this context, or refuse what one of them refuses.

    Within it each works alone, so that no process waits for one that has left; none
    leaves it before all have come to its end.

    Raises:
      BadRequest, RunFailed: what this process, or the first one that did, has raised.
    """
    if not are_many():
        yield
        return
    own: Exception | None = None
    try:
        yield
    except (BadRequest, RunFailed, OSError) as error:
        own = error
    said = "" if own is None else f"{type(own).__name__}: {reason(own)}"
    all_said = _of_each(said)
    if own is not None:
        raise own
    for i, text in enumerate(all_said):
        if text:
            kind, _, why = text.partition(": ")
            raise (RunFailed if kind == "RunFailed" else BadRequest)(f"process {i}: {why}")


def check_same(what: str, value: str) -> None:
    """Raise BadRequest, in all processes, if they do not all have the same value."""
    if not are_many():
        return
    first, *others = _of_each(sha256([value]))
    differ = ", ".join(str(i) for i, other in enumerate(others, 1) if other != first)
    if differ:
        raise BadRequest(
            f"{what} of process {differ} is not that of process 0: give the same command, "
            "with the same data, to all"
        )


def check_shared(folder: pathlib.Path) -> None:
    """Refuse a folder of which not all processes see the same files.

    Raises:
      BadRequest: naming the processes that do not see a file of the first one.
    """
    if not are_many():
        return
    there = folder.absolute()
    while not there.is_dir():
        there = there.parent
    mark = there / of_first(f"{_SHARED}{secrets.token_hex(8)}")  # The name is that of all.
    with together():
        if first_process.is_here():
            mark.touch()
    sees = mark.exists()
    seen = multihost_utils.process_allgather(np.array(sees))
    if first_process.is_here():
        mark.unlink(missing_ok=True)
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise BadRequest(
            f"{folder} is not the same folder for all processes: {blind} cannot see what "
            "process 0 writes there; take a folder that all hosts mount"
        )


def wait_until_lost() -> None:
    """Wait for jax to find out which process is gone, and to end this one."""
    time.sleep(2 * _HEARTBEAT_SECONDS - 5)


def end() -> None:
    """Leave the other processes in peace, before a process that ends without exit hooks."""
    if are_many():
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def _of_each(text: str) -> list[str]:
    return list(map(_as_text, multihost_utils.process_allgather(_as_bytes(text))))


def _as_bytes(text: str) -> np.ndarray:
    given = np.frombuffer(text.encode()[:_LONGEST], np.uint8)
    return np.pad(given, (0, _LONGEST - len(given)))


def _as_text(given: np.ndarray) -> str:
    return bytes(np.asarray(given)).rstrip(b"\0").decode(errors="replace")
