"""The launch files, with the variables that each engine sets, on real local processes."""

import os
import re
import signal
import subprocess
import sys

import pytest
import yaml

from helpers import ROOT, Group, free_port, saved_steps, steps_logged, wait_for

LAUNCH = ROOT / "launch"
POINTS = (
    "--config.data.batch_size=32",
    "--config.model.width=16",
    "--config.model.num_blocks=1",
    "--config.training.num_steps=4",
    "--config.training.log_every=2",
    "--config.training.eval_every=0",
    "--config.training.sample_every=0",
    "--config.ema.snapshots=0",
)
OF_ENGINES = re.compile(
    "SLURM_|OMPI_|JAX_(COORDINATOR|NUM_PROC|PROCESS_ID)|KUBERNETES_|JOB_"
)


def variables(folder, **own):
    """The environment with the commands of `bin` first, without variables of an engine."""
    inherited = {k: v for k, v in os.environ.items() if not OF_ENGINES.match(k)}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**inherited, "PATH": path, "JAX_NUM_CPU_DEVICES": "1", **own}


def script(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/bash", *lines, "")))
    path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    """A folder with `bin/python` and `.venv/bin/python`, which run in the project."""
    for name in ("bin/python", ".venv/bin/python"):
        script(tmp_path / name, f'cd "{ROOT}" && exec "{sys.executable}" "$@"')
    return tmp_path


def bash(line, folder, **own):
    return subprocess.Popen(
        ["bash", *map(str, line)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables(folder, **own),
    )


def outputs(started):
    """Return the output of each process; all have to end with status 0."""
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said
    return said


def of_skypilot():
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def of_kubernetes():
    """The JobSet, and the one container in it."""
    job_set = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    (job,) = job_set["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return job_set, container


@pytest.mark.parametrize("name", ["gpus.sh", "tpu_pod.sh", "slurm.sbatch"])
def test_the_shell_files_can_be_read(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


# Slurm: SLURM_STEP_NODELIST and the rest, for each task of a step.
SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!
echo $other > "$0.pid"
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $other
"""


def batch_job(place, *more):
    script(place / "bin/srun", SRUN)
    script(place / "bin/scontrol", "echo queued again")
    return bash(
        (LAUNCH / "slurm.sbatch", *POINTS, *more),
        place,
        CONFIG="configs/swiss_roll.py",
        RUN=str(place / "run"),
        SLURM_JOB_ID="123",
        SLURM_NTASKS="2",  # Also outside of a step, as in a batch script.
        JAX_COORDINATOR_PORT=str(free_port()),
    )


@pytest.mark.slow
def test_slurm_trains_with_a_process_for_each_task(place):
    (said,) = outputs([batch_job(place)])
    assert "devices: 2 x cpu, of 2 processes, 1 of them here" in said
    assert steps_logged(place / "run") == [2, 4] and "queued again" not in said


@pytest.mark.slow
def test_a_job_of_slurm_that_was_preempted_is_queued_again_and_goes_on(place):
    """SIGTERM to one of its tasks, while it trains."""
    run, every = place / "run", "--config.training.checkpoint_every=50"
    line = ("--config.training.num_steps=500", "--config.training.log_every=50", every)
    first = batch_job(place, *line)
    wait_for(lambda: saved_steps(run))
    os.kill(int((place / "bin/srun.pid").read_text()), signal.SIGTERM)
    (said,) = outputs([first])
    assert "goes on from step" in said and said.endswith("queued again\n")
    (said,) = outputs([batch_job(place, *line)])
    assert "finished 500 steps" in said and "queued again" not in said
    assert steps_logged(run) == list(range(50, 501, 50))


@pytest.mark.parametrize(
    ("status", "is_finished", "again"),
    [(0, False, True), (143, False, True), (0, True, False), (1, False, False)],
)
def test_slurm_queues_a_run_again_that_was_stopped(status, is_finished, again, tmp_path):
    """Status 0 without loss.png is that of a run that SIGTERM has stopped."""
    script(tmp_path / "bin/srun", f"exit {status}")
    script(tmp_path / "bin/scontrol", 'echo "scontrol $@"')
    if is_finished:
        (tmp_path / "loss.png").touch()
    started = bash(
        (LAUNCH / "slurm.sbatch",), tmp_path, RUN=str(tmp_path), SLURM_JOB_ID="123"
    )
    said = started.communicate(timeout=60)[0]
    assert started.returncode == status
    assert said == ("scontrol requeue 123\n" if again else "")


def test_open_mpi_is_found_by_its_variables(tmp_path):
    def variables_of(i, port):
        return {
            "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(i),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
            "JAX_COORDINATOR_PORT": str(port),
        }

    line = ("train.py", "--config=configs/swiss_roll.py", *POINTS, "--dry_run")
    with Group(tmp_path, 2, *line, env=variables_of) as group:
        assert group.wait() == [0, 0], group.said(0) + group.said(1)
        assert "devices: 2 x cpu, of 2 processes, 1 of them here" in group.said(0)


@pytest.mark.slow
def test_skypilot_trains_with_a_process_for_each_node(place):
    """The lines of `run` are what is run, with another port."""
    run, lines = place / "run", of_skypilot()["run"]
    lines = lines.replace("12345", str(free_port()))
    lines = lines.replace("train.py", f"train.py --profile=1:3 {' '.join(POINTS)}")
    started = [
        bash(
            ("-c", lines),
            place,
            CONFIG="configs/swiss_roll.py",
            RUN=str(run),
            SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.2",
            SKYPILOT_NUM_NODES="2",
            SKYPILOT_NODE_RANK=str(rank),
        )
        for rank in range(2)
    ]
    first, second = outputs(started)
    assert "devices: 2 x cpu, of 2 processes, 1 of them here" in first
    assert "devices" not in second
    assert steps_logged(run) == [2, 4]
    for rank in range(2):  # All of them write a profile.
        made = run / f"profile/plugins/profile/steps_1_3_process_{rank}"
        assert len(list(made.glob("*.xplane.pb"))) == 1


def kubernetes_pod(place, index, python):
    """A pod of the JobSet, with these lines in place of `python`."""
    _, container = of_kubernetes()
    own = {each["name"]: each["value"] for each in container["env"]}
    script(place / "bin/python", *python)
    line = (*container["command"][1:], *container["args"])
    # As every pod has it: jax's own detection would need the package kubernetes.
    of_pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": str(index)}
    return bash(line, place, **{**own, "RUN": str(place), **of_pod})


def test_kubernetes_names_the_first_pod_and_counts_all(tmp_path):
    job_set, _ = of_kubernetes()
    name, spec = job_set["metadata"]["name"], job_set["spec"]
    (job,) = spec["replicatedJobs"]
    inner = job["template"]["spec"]
    assert inner["completionMode"] == "Indexed" and inner["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (tmp_path / "loss.png").touch()
    python = ("echo $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $@",)
    (said,) = outputs([kubernetes_pod(tmp_path, 2, python)])
    address, count, own, *line = said.split()
    # The host name that a JobSet gives to a pod: SET-JOB-0-INDEX.SET.
    assert address == f"{name}-{job['name']}-0-0.{name}:12345"
    assert int(count) == inner["parallelism"] == inner["completions"]
    assert own == "2"
    assert line == [
        "train.py",
        "--config",
        "configs/cifar10.py",
        "--workdir",
        str(tmp_path),
    ]


@pytest.mark.parametrize(
    ("index", "python", "is_finished", "status"),
    [
        (0, ("exit 0",), True, 0),
        (0, ("exit 0",), False, 1),  # Stopped by SIGTERM: the set is started again.
        (1, ("exit 0",), False, 0),  # The first one decides, which has written it.
        (1, ("exit 2",), False, 2),
    ],
)
def test_kubernetes_starts_a_run_again_that_was_stopped(
    index, python, is_finished, status, tmp_path
):
    if is_finished:
        (tmp_path / "loss.png").touch()
    pod = kubernetes_pod(tmp_path, index, python)
    pod.communicate(timeout=60)
    assert pod.returncode == status


def test_kubernetes_passes_sigterm_on(tmp_path):
    python = ("trap 'echo saved; kill $!; exit 0' TERM", "sleep 60 &", "echo began", "wait")
    pod = kubernetes_pod(tmp_path, 0, python)
    assert pod.stdout.readline() == "began\n"
    pod.terminate()
    assert pod.communicate(timeout=30)[0] == "saved\n"
    assert pod.returncode != 0


def test_a_plain_machine_needs_nothing_or_one_variable_for_each(tmp_path):
    told = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID'
    script(tmp_path / "bin/python", f'{told} $CUDA_VISIBLE_DEVICES; $@"')
    (said,) = outputs([bash((LAUNCH / "gpus.sh", "one", "--dry_run"), tmp_path)])
    line = "train.py --config configs/cifar10.py --workdir runs/cifar10 --dry_run"
    assert said.strip() == f"; {line}"
    (said,) = outputs([bash((LAUNCH / "gpus.sh", "each", "3", "--dry_run"), tmp_path)])
    each = [f"127.0.0.1:12345 3 {i} {i}; {line}" for i in range(3)]
    assert sorted(said.splitlines()) == each


def test_a_pod_slice_gets_the_same_command_on_every_worker(tmp_path):
    script(tmp_path / "bin/gcloud", 'printf "%s\\n" "$@"')
    own = {"TPU": "slice", "ZONE": "zone-a", "RUN": "/shared/run"}
    (said,) = outputs([bash((LAUNCH / "tpu_pod.sh", "--overwrite"), tmp_path, **own)])
    *where, command = said.splitlines()
    assert where == [*"compute tpus tpu-vm ssh slice --zone=zone-a --worker=all".split()]
    assert command == (
        "--command=cd diffusion_jax && .venv/bin/python train.py --config "
        "configs/cifar10.py --workdir /shared/run --overwrite"
    )
