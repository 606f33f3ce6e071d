"""The place of a process among others, and what is said when they do not come together."""

import os
import socket
import time

import pytest

from diffusion_jax.runtime import lost_process, processes
from diffusion_jax.runtime.errors import BadRequest
from helpers import free_port

NO_FLAGS = dict.fromkeys(("--coordinator", "--num_processes", "--process_id"))


def of_flags(coordinator="h:1", count=2, own=1):
    return dict(zip(NO_FLAGS, (coordinator, count, own), strict=True))


def of_variables(coordinator="h:1", count="2", own="1"):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = zip(names, (coordinator, count, own), strict=True)
    return {name: value for name, value in given if value is not None}


def test_a_place_comes_from_flags_or_from_the_environment():
    assert processes.place_of(NO_FLAGS, {}) is None
    assert processes.place_of(of_flags(), {}) == ("h:1", 2, 1)
    assert processes.place_of(NO_FLAGS, of_variables()) == ("h:1", 2, 1)
    assert processes.place_of(of_flags(own=0), of_variables(count="9")) == ("h:1", 2, 0)
    assert processes.place_of(of_flags("[::1]:80"), {}) == ("[::1]:80", 2, 1)
    # Others set the address alone.
    assert processes.place_of(NO_FLAGS, of_variables(count=None, own=None)) is None


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        (of_flags(own=None), {}, "--coordinator and --num_processes without --process_id"),
        (of_flags("", 2, 0), {}, "without --coordinator: give all three"),
        (NO_FLAGS, of_variables(own=None), "without JAX_PROCESS_ID"),
        (NO_FLAGS, of_variables(None), "without JAX_COORDINATOR_ADDRESS"),
        (NO_FLAGS, of_variables(count="two"), "JAX_NUM_PROCESSES ('two') is not a whole"),
        (of_flags(count=0), {}, "--num_processes (0) must be at least 1"),
        (of_flags(own=2), {}, "--process_id (2) must be in 0 .. 1"),
        (of_flags(own=-1), {}, "--process_id (-1) must be in 0 .. 1"),
        (of_flags("host"), {}, "--coordinator (host) must be HOST:PORT"),
        (of_flags(":80"), {}, "(:80) must be HOST:PORT"),
        (of_flags("host:0"), {}, "(host:0) must be HOST:PORT"),
        (of_flags("host:65536"), {}, "(host:65536) must be HOST:PORT"),
        (of_flags("host:http"), {}, "(host:http) must be HOST:PORT"),
    ],
)
def test_a_place_that_is_none_is_refused_by_the_names_of_its_parts(flags, variables, said):
    with pytest.raises(BadRequest) as error:
        processes.place_of(flags, variables)
    assert said in str(error.value) and "\n" not in str(error.value)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
STEP = {**SLURM, "SLURM_STEP_NODELIST": "node[1-2]"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "is_one_of_several"),
    [
        ({}, False),
        (SLURM, False),  # An allocation, without srun.
        (STEP, True),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, False),  # An interactive allocation.
        ({**STEP, "SLURM_NTASKS": "1"}, False),
        (OPEN_MPI, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        (POD, False),
        ({**POD, "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_cluster_is_known_by_its_variables(variables, is_one_of_several):
    assert processes._is_in_cluster({"JAX_PLATFORMS": "cpu", **variables}) == (
        is_one_of_several
    )


@pytest.mark.parametrize(
    ("variables", "has_device", "has_library", "is_one_of_several"),
    [
        ({}, True, True, True),
        ({}, False, True, False),
        ({}, True, False, False),  # Another device that is given to a virtual machine.
        ({"TPU_LIBRARY_PATH": "/lib/libtpu.so"}, True, False, True),
        ({"JAX_PLATFORMS": "cpu"}, True, True, False),
        ({"JAX_PLATFORMS": "tpu,cpu"}, True, True, True),
    ],
)
def test_a_tpu_is_known_by_its_device_and_its_library(
    variables, has_device, has_library, is_one_of_several, monkeypatch
):
    monkeypatch.setattr(processes.os.path, "exists", lambda _: has_device)
    monkeypatch.setattr(
        processes.importlib.util, "find_spec", lambda _: object() if has_library else None
    )
    assert processes._is_in_cluster(variables) == is_one_of_several


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(processes, "START_SECONDS", 1)
    address, began = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(BadRequest) as error:
        processes.start(processes.Place(address, 2, 1), [])
    assert time.monotonic() - began < 10
    said = f"the coordinator {address} has not answered within 1 s (Connection refused): "
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_port_that_is_taken_is_named(command):
    """By a server that shares it as well, as the coordinator of another run does."""
    for reuses in (False, True):
        with socket.create_server(("", 0), reuse_port=reuses) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            place = (f"--coordinator={address}", "--num_processes=2", "--process_id=0")
            line = ("train.py", "--config=configs/swiss_roll.py", "--dry_run", *place)
            result = command(*line, check=2, env=os.environ)  # Not in a fork.
        assert result.stderr == (
            f"error: the coordinator {address} cannot be used: its port is taken; give "
            "another\n"
        )


def test_a_cluster_that_does_not_say_enough_is_refused(command):
    """Open MPI from version 5 on does not set what jax reads."""
    line = ("train.py", "--config=configs/swiss_roll.py", "--dry_run")
    env = {**os.environ, **OPEN_MPI}
    result = command(*line, check=2, env=env)
    said = result.stderr.splitlines()
    assert len(said) == 1 and said[0].startswith(
        "error: the other processes of this cluster"
    )
    assert "give --coordinator, --num_processes, --process_id; to" in said[0]


# What jax 0.10.2 has written when one of two processes was killed, or did not start.
FATAL = (
    "F1127 18:20:38.194049   13862 client.h:80] Terminating process because the JAX "
    "distributed service detected fatal errors. This most likely indicates that another "
    "task died; see the other task logs for more details. Disable Python buffering, i.e. "
    "`python -u`, to be sure to see all the previous output. absl::Status: "
)
POLLED = (
    "E1127 18:20:38.193907   13862 coordination_service_agent.cc:289] Polled an error from "
    "coordination service (this can be an error from this or another task).\n"
)
CRASHED = (
    "The tasks have crashed. Check the task logs for an earlier error, or scheduler events "
    "(e.g. preemption, eviction) to debug further."
)
TRACE = """*** Check failure stack trace: ***
    @     0x7f950ce40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
    @     0x7f95142a71f5  (unknown)
Fatal Python error: Aborted

Thread 0x00007f2 (most recent call first):
  File "train.py", line 100 in main
"""
SECOND_KILLED = (
    "E1127 18:20:38.193389   13851 coordination_service.cc:1549] [4543216206089562514] Use "
    "error polling to propagate the following error to all tasks: UNAVAILABLE: The "
    "following tasks are unhealthy (stopped sending heartbeats):\n"
    f"1\n{CRASHED} [type.googleapis.com/tensorflow.CoordinationServiceError='']\n"
    f"{POLLED}{FATAL}UNAVAILABLE: The following tasks are unhealthy (stopped sending "
    f"heartbeats):\n1\n{CRASHED}\n\n"
    "RPC: /xla.coordination.CoordinationService/PollForError "
    "[type.googleapis.com/tensorflow.CoordinationServiceError='']\n"
    f"{TRACE}"
)
# What jax 0.12 puts after each line that came over the network.
SINCE_0_12 = (
    "=== Source Location Trace: ===\n"
    "external/xla+/xla/pjrt/distributed/coordination/coordination_service.cc:232\n\n"
)
FIRST_KILLED = (
    f"{POLLED}{FATAL}UNAVAILABLE: Failed to send RPC to coordination service. Either the "
    "leader task was preempted/died/restarted unexpectedly or this task is experiencing "
    "network issues. Check earlier logs from 1) this task, 2) the leader (usually slice 0 "
    "task 0), and 3) cluster scheduler to debug further.\n"
    "Additional GRPC error information from remote target coordination_service while "
    "calling /xla.coordination.CoordinationService/PollForError:\n"
    ':UNKNOWN:Error received from peer  {grpc_message:"Socket closed", grpc_status:14}\n'
    f"{TRACE}"
)
NOT_STARTED = (
    f"{FATAL}DEADLINE_EXCEEDED: Deadline Exceeded\n\n"
    f"RPC: /xla.coordination.CoordinationService/RegisterTask\n{TRACE}"
)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (SECOND_KILLED, "error: process 1 of this run is gone; give the same command"),
        (
            SECOND_KILLED.replace(POLLED, SINCE_0_12 + POLLED),
            "error: process 1 of this run is gone; give the same command",
        ),
        (FIRST_KILLED, "error: process 0 of this run is gone; give the same command"),
        (NOT_STARTED, "error: not all processes of this run have started;"),
        (f"{FATAL}something new\n{TRACE}", "error: a process of this run is gone ("),
    ],
)
def test_the_report_of_a_lost_process_is_one_line(report, said):
    before = ["warning: as usual\n", "Traceback (most recent call last):\n", "12\n", "\n"]
    lines = [*before, *report.splitlines(keepends=True)]
    *passed, last = lost_process.in_one_line(lines)
    assert passed == before
    assert last.startswith(said) and last.count("\n") == 1


def test_what_is_no_report_passes():
    lines = [
        "a line\n",
        "W1127 18:20:38.194049   13862 other.cc:80] of another part\n",
        "1",
    ]
    assert list(lost_process.in_one_line(lines)) == lines
