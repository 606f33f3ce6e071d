"""The first meeting of the processes of a run, before jax joins them.

jax takes whoever comes to its port, and ends all processes if two have the same id or one
is missing. So they meet at that port first: each says who it is, and the first one lets
them in, or tells all of them what does not fit.
"""

import contextlib
import errno
import json
import socket
import time
from typing import Any, NamedTuple

from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason

_HELLO = "diffusion_jax"
_LONGEST = 2**16  # Bytes of what a process says.
_ANSWER_SECONDS = 5.0  # A stranger at the port says nothing, or something else.


class Place(NamedTuple):
    """The place of a process among those of a run.

    Attributes:
      coordinator: HOST:PORT, where the first process is reached.
      num_processes: of the run.
      process_id: 0 .. num_processes - 1.
    """

    coordinator: str
    num_processes: int
    process_id: int

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def meet(place: Place, command: list[str], seconds: float) -> None:
    """Wait for all processes of a run, and return in each of them when all are there.

    Args:
      place: of this process.
      command: its arguments, which all have to share.
      seconds: how long to wait.

    Raises:
      BadRequest: naming the address, and what does not fit.
    """
    if place.process_id:
        _come(place, command, time.monotonic() + seconds, seconds)
    else:
        _receive(place, command, time.monotonic() + seconds, seconds)


def _unusable(place: Place, why: str) -> BadRequest:
    return BadRequest(f"the coordinator {place.coordinator} cannot be used: {why}")


def _receive(place: Place, command: list[str], end: float, seconds: float) -> None:
    """Let the others in, or tell them why not."""
    host, port = place.address
    try:
        socket.getaddrinfo(host, port)
        server = socket.create_server(("", port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "its port is taken; give another" if taken else reason(error)
        raise _unusable(place, why) from error
    there, guests = set[int](), list[socket.socket]()
    refused = ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        while len(there) < place.num_processes - 1 and not refused:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                guest, _ = server.accept()
            except TimeoutError:
                missing = set(range(1, place.num_processes)) - there
                refused = (
                    f"process {', '.join(map(str, sorted(missing)))} of "
                    f"{place.num_processes} has not come to {place.coordinator} within "
                    f"{seconds:.0f} s: start the same command as that process"
                )
                break
            stack.enter_context(guest)
            said = _heard(guest)
            if said is None:  # A stranger, such as a scanner of ports.
                continue
            refused = _misfit(said, place, command, there)
            there.add(said["id"])
            guests.append(guest)
        for guest in guests:
            with contextlib.suppress(OSError):
                _say(guest, {"hello": _HELLO, "refused": refused})
        for guest in guests:  # Their end of the connection closes first.
            with contextlib.suppress(OSError):
                guest.recv(1)
    if refused:
        raise BadRequest(refused)


def _misfit(said: dict[str, Any], place: Place, command: list[str], there: set[int]) -> str:
    """Return why a process does not fit those that are there; "" if it does."""
    who, total = said["id"], said["total"]
    if total != place.num_processes:
        return (
            f"--num_processes is {place.num_processes} in process 0, and {total} in "
            f"process {who}: give all the same"
        )
    if who in there:
        return f"--process_id {who} was given to two processes: give each its own"
    differ = [*_without(command, said["command"]), *_without(said["command"], command)]
    if differ:
        return (
            f"process {who} was started with another command than process 0 "
            f"({', '.join(differ)[:300]}): give all the same"
        )
    return ""


def _without(some: list[str], others: list[str]) -> list[str]:
    return [argument for argument in some if argument not in others]


def _come(place: Place, command: list[str], end: float, seconds: float) -> None:
    """Go to the first process, and wait to be let in."""
    why = ""
    while time.monotonic() < end:
        try:
            host = socket.create_connection(place.address, timeout=_ANSWER_SECONDS)
        except OSError as error:
            why = error.strerror or reason(error)
            time.sleep(0.2)
            continue
        with host:
            _say(
                host,
                {
                    "hello": _HELLO,
                    "id": place.process_id,
                    "total": place.num_processes,
                    "command": command,
                },
            )
            answer = _heard(host, max(_ANSWER_SECONDS, end - time.monotonic()))
        if answer is None:
            raise _unusable(
                place,
                "another program is there, or a run that has begun; give another port",
            )
        if answer["refused"]:
            raise BadRequest(answer["refused"])
        return
    raise BadRequest(
        f"the coordinator {place.coordinator} has not answered within {seconds:.0f} s "
        f"({why}): start the same command as process 0 there, and let the port through"
    )


def _say(to: socket.socket, what: dict[str, Any]) -> None:
    to.sendall(json.dumps(what).encode() + b"\n")


def _heard(of: socket.socket, seconds: float = _ANSWER_SECONDS) -> dict[str, Any] | None:
    """Return what the other end says; None if it is none of ours."""
    of.settimeout(seconds)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _LONGEST:
            more = of.recv(4096)
            if not more:
                return None
            line += more
        said = json.loads(line)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("hello") == _HELLO else None
