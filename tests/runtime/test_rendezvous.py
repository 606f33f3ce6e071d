"""The meeting of processes before jax joins them, with a thread for each."""

import concurrent.futures
import socket
import threading

import pytest

from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.rendezvous import Place, meet
from helpers import free_port

COMMAND = ["--config=configs/digits.py", "--seed=1"]


def met(*who, seconds=20):
    """Answers to each of these (id, total, command): None, or why it is refused."""
    address = f"127.0.0.1:{free_port()}"

    def come(process_id, total=2, command=COMMAND):
        try:
            meet(Place(address, total, process_id), command, seconds)
        except BadRequest as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(who)) as pool:
        return list(pool.map(lambda one: come(*one), who)), address


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_processes_that_fit_are_let_in(order):
    found, _ = met(*((i, 3) for i in order))
    assert found == [None] * 3


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (
            [(0,), (1, 2, [*COMMAND[:1], "--seed=2"])],
            "process 1 was started with another command than process 0 (--seed=1, --see",
        ),
        ([(0,), (1, 3)], "--num_processes is 2 in process 0, and 3 in process 1"),
        ([(0, 3), (1, 3), (1, 3)], "--process_id 1 was given to two processes"),
    ],
)
def test_what_does_not_fit_is_told_to_all(who, said):
    found, _ = met(*who)
    assert all(text and text.startswith(said) and "\n" not in text for text in found[:2])


def test_a_process_that_does_not_come_is_named():
    found, address = met((0, 3), (2, 3), seconds=1)
    wanted = f"process 1 of 3 has not come to {address} within 1 s"
    assert all(text.startswith(wanted) for text in found)


def test_a_stranger_at_the_port_changes_nothing():
    """Somebody who sends another thing, and somebody who leaves."""
    address = f"127.0.0.1:{free_port()}"
    place = Place(address, 2, 0)
    first = threading.Thread(target=meet, args=(place, COMMAND, 20))
    first.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b""):
        while True:
            try:
                with socket.create_connection(place.address, timeout=5) as stranger:
                    stranger.sendall(said)
                break
            except ConnectionRefusedError:
                continue
    meet(Place(address, 2, 1), COMMAND, 20)
    first.join(20)
    assert not first.is_alive()


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad Request\r\n", b"\0\0\6\4", b""])
def test_another_program_at_the_port_is_told(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve():
            guest, _ = server.accept()
            with guest:
                guest.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(BadRequest, match="another program is there, or a run that"):
            meet(Place(address, 2, 1), COMMAND, 20)


def test_a_host_that_is_not_known_is_refused_by_the_first_process():
    with pytest.raises(BadRequest, match="the coordinator no-such-host.invalid:1234"):
        meet(Place("no-such-host.invalid:1234", 2, 0), COMMAND, 5)
