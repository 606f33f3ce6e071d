"""Faults that can happen to a run from outside, in real processes."""

import contextlib
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.experiment import build
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import Checkpoints, abstract, parts_of
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.train_state import init_state
from helpers import (
    ROOT,
    assert_same_run,
    saved_steps,
    start_training,
    steps_logged,
    train_arguments,
    wait_for,
)

# Intervals of which none is a multiple of another.
INTERVALS = (
    "--config.training.num_steps=120",
    "--config.training.log_every=7",
    "--config.training.eval_every=60",
    "--config.training.num_held_out=32",
    "--config.training.checkpoint_every=20",
    "--config.training.sample_every=100",
    "--config.training.num_samples=4",
    "--config.ema.snapshots=4",
)
# A run that does not end before it is made to.
ENDLESS = ("--config.training.num_steps=1000000", "--config.ema.snapshots=0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """A run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    command(*train_arguments(workdir, *INTERVALS), check=0)
    return workdir


def arrays_of(workdir):
    """Return the newest checkpoint: params, averages, optimiser, tally, key."""
    config = run_folder.read_config(workdir)
    init_fn, _ = build.make_network(config)
    tx = make_optimizer(config.optimizer, config.training.num_steps)
    shapes = jax.eval_shape(lambda: init_state(init_fn, tx, config))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(workdir, writing=False) as checkpoints:
        found = checkpoints.restore(parts_of(abstract(shapes, here)))
    assert not found.damaged
    key = found.parts.pop("key")
    return [found.step, jax.random.key_data(key), *jax.tree.leaves(found.parts)]


def assert_same_bits(a, b):
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert_same_run(a, b)


def kill(process):
    process.kill()
    process.wait()


def killed_again_and_again(workdir, log, flags, kills, seed):
    """Kill a run (-9) at random moments, and while it writes a checkpoint."""
    rng = random.Random(seed)
    for i in range(kills):
        process = start_training(workdir, log, *flags)
        before = max(saved_steps(workdir), default=0)

        def newest():
            return max(saved_steps(workdir), default=0)

        def is_writing():
            return any("tmp" in path.name for path in workdir.glob("checkpoints/*"))

        assert process.poll() is None, log.read_text()
        if i % 2:
            wait_for(lambda: newest() > before or process.poll() is not None)  # noqa: B023
            wait_for(lambda: is_writing() or process.poll() is not None)  # noqa: B023
            pause = rng.uniform(0, 0.1)
        else:
            wait_for(lambda: "compiling" in log.read_text() or process.poll() is not None)  # noqa: B023
            pause = rng.uniform(0, 1.5)
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            kill(process)
        assert process.returncode == -signal.SIGKILL, log.read_text()
        assert steps_logged(workdir) == sorted(set(steps_logged(workdir)))
    assert start_training(workdir, log, *flags).wait(300) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "seed"), [(3, 0), (20, 1)])
def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_was_not(
    whole, tmp_path, kills, seed, command
):
    workdir, log, flags = tmp_path / "run", tmp_path / "log", INTERVALS
    if kills > 3:  # Long enough to be killed this often.
        whole, flags = tmp_path / "whole", (*flags, "--config.training.num_steps=3000")
        command(*train_arguments(whole, *flags), check=0)
    killed_again_and_again(workdir, log, flags, kills, seed)
    assert_same_bits(workdir, whole)
    assert saved_steps(workdir) == saved_steps(whole)


def test_signals_save_and_the_run_goes_on_with_the_same_bits(whole, tmp_path):
    """SIGTERM exits with 0 and Ctrl-C with 130; the run then goes on to the same bits."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        before = max(saved_steps(workdir), default=0)
        process = start_training(workdir, log, *INTERVALS)
        wait_for(lambda: max(saved_steps(workdir), default=0) > before)  # noqa: B023
        process.send_signal(number)
        assert process.wait(60) == status
        said = log.read_text()
        assert "saved at step" in said and "the same command goes on" in said
        assert "Traceback" not in said
        step = int(said.partition("saved at step ")[2].partition(" ")[0].replace(",", ""))
        assert saved_steps(workdir)[-1] == step < 120
    assert start_training(workdir, log, *INTERVALS).wait(300) == 0
    assert_same_bits(workdir, whole)


@pytest.mark.slow
def test_signals_before_the_first_step_leave_cleanly_and_at_once_if_repeated(tmp_path):
    """Signals while a run compiles and has nothing to save."""
    log = tmp_path / "log"
    for numbers, status in (
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM,), 0),
    ):
        cold = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        process = start_training(tmp_path / "run", log, *ENDLESS, env=cold)
        wait_for(lambda: "compiling the train step" in log.read_text())
        for i, number in enumerate(numbers):
            process.send_signal(number)
            if not i:
                wait_for(lambda: "stopping at the next point" in log.read_text(), 2)
        assert process.wait(1 if len(numbers) > 1 else 60) == status
        said = log.read_text()
        assert "Traceback" not in said
        assert ("the same command goes on" in said) == (len(numbers) == 1)


def test_ctrl_c_in_the_first_seconds_leaves_without_a_word(tmp_path):
    """Ctrl-C while Python imports, and while the config is checked."""
    log = tmp_path / "log"
    for delay in (0.15, 1.6, 2.4):
        process = start_training(tmp_path / "run", log, *ENDLESS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGINT)
        # Before its first line of code Python has only the system's way to end.
        assert process.wait(60) in (130, -signal.SIGINT)
        assert "Traceback" not in log.read_text() or process.returncode < 0
        assert "Exception" not in log.read_text()


@pytest.mark.slow
def test_what_it_was_told_first_is_its_exit_status(tmp_path):
    """The first of Ctrl-C and SIGTERM decides the exit status, in either order."""
    for numbers, status in (
        ((signal.SIGINT, signal.SIGTERM), 130),
        ((signal.SIGTERM, signal.SIGINT), 0),
    ):
        log = tmp_path / "log"
        process = start_training(tmp_path / "run", log, *ENDLESS)
        wait_for(lambda: "compiling the train step" in log.read_text())  # noqa: B023
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        assert process.wait(60) == status
        assert "goes on from step" in log.read_text()


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_leaves_nothing_in_the_way(small_disk, tmp_path):
    workdir, log = small_disk / "run", tmp_path / "log"
    few = (*INTERVALS, "--config.training.num_steps=3")
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
    os.truncate(small_disk / "filler", os.path.getsize(small_disk / "filler") - 4096)
    assert start_training(workdir, log, *few).wait(60) == 1
    assert_says_in_one_line(log, "No space left")
    (small_disk / "filler").unlink()
    assert start_training(workdir, log, *few).wait(120) == 0


def test_a_second_trainer_is_refused_and_told_of_the_first(tmp_path, command):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = start_training(workdir, log, *ENDLESS)
    wait_for(lambda: (workdir / "metrics.jsonl").exists())
    try:
        result = command(*train_arguments(workdir, *ENDLESS), check=2)
    finally:
        kill(process)
    assert f"another process (pid {process.pid} on" in result.stderr
    # A kill leaves no lock.
    command(
        *train_arguments(workdir, *ENDLESS[1:], "--config.training.num_steps=1"), check=0
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_says_in_one_line(log, *parts):
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and all(part in errors[0] for part in parts), log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_warning_of_a_loss_is_heard_and_the_run_stops(tmp_path):
    """A warning of Orbax itself, below a folder whose name it takes for a pattern."""
    code = (
        "import sys, runpy\n"
        "from diffusion_jax.runtime import files\n"
        "files.plain = lambda path: path.absolute()\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = train_arguments(tmp_path / "exp [v2]", *INTERVALS)
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    warning, error = result.stderr.splitlines()[-2:]
    assert warning.startswith("warning: ") and "Skipping merge" in warning
    assert error.startswith("error: the checkpoint of step 20 was written, and cannot be")


@pytest.mark.slow
def test_full_shared_memory_is_named_and_not_the_disk_of_the_run(tmp_path):
    """A run in a mount namespace of its own, where /dev/shm is 4 kB and full."""
    rng = np.random.default_rng(0)
    for i in range(20):
        picture = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    of_files = ("source=folder", f"path={tmp_path}", "memory_gib=0", "batch_size=4")
    arguments = train_arguments(
        tmp_path / "run", *INTERVALS, *(f"--config.data.{x}" for x in of_files)
    )
    fill = "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/x"
    train = shlex.join([sys.executable, *arguments])
    result = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{fill} && {train}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "/dev/shm" not in result.stderr:
        pytest.skip(f"no file system can be mounted here: {result.stderr}")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: /dev/shm is full")


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_what_is_saved_stays(whole, small_disk, tmp_path):
    """A disk that another program fills; with room again the run goes on with its bits."""
    workdir, log = small_disk / "run", tmp_path / "log"
    process = start_training(workdir, log, *INTERVALS)
    wait_for(lambda: len(saved_steps(workdir)) >= 2)
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        while process.poll() is None:  # Room that the run frees is taken as well.
            with contextlib.suppress(OSError):
                filler.write(bytes(4096))
    assert process.wait(60) == 1, log.read_text()
    assert_says_in_one_line(log, "cannot be written", "step", "give the same command again")
    left = saved_steps(workdir)
    assert left
    (small_disk / "filler").unlink()
    assert arrays_of(workdir)[0] == left[-1]
    assert start_training(workdir, log, *INTERVALS).wait(300) == 0
    assert_same_bits(workdir, whole)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path, command):
    """Files may not be larger than 20 kB, as with a quota."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    few = ("--config.training.num_steps=25", "--config.training.checkpoint_every=25")
    command(*train_arguments(workdir, *INTERVALS, *few), check=0)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start_training(workdir, log, *INTERVALS, preexec_fn=limit)
    assert process.wait(120) == 1, log.read_text()
    assert_says_in_one_line(log, "cannot be written", "step 25")
    assert saved_steps(workdir) == [25] == [arrays_of(workdir)[0]]


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    whole, tmp_path, command
):
    """Damage is set aside by train.py; sample.py leaves it, and takes the one before."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(whole, workdir)
    newest, before = saved_steps(workdir)[-1], saved_steps(workdir)[-2]
    for path in (workdir / f"checkpoints/{newest}/state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    out = f"--out={tmp_path / 'out'}"
    sample = ("sample.py", f"--workdir={workdir}", "--num=1", "--steps=2", out)
    result = command(*sample, check=0)
    assert f"checkpoint {newest:,} of {workdir} is damaged" in result.stderr
    assert f"taking that of step {before:,}" in result.stderr
    assert "Traceback" not in result.stderr
    assert start_training(workdir, log, *INTERVALS).wait(120) == 0
    assert f"checkpoint {newest:,} is damaged" in log.read_text()
    assert f"resuming {workdir} at step {before:,}" in log.read_text()
    assert (workdir / f"damaged_checkpoints/{newest}").is_dir()
    assert_same_bits(workdir, whole)


def test_with_no_checkpoint_left_both_commands_say_so(whole, tmp_path, command):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name == "state":
            path.write_bytes(b"")
    before = sorted(workdir.rglob("*"))
    for args in (
        ("sample.py", f"--workdir={workdir}", "--num=1"),
        train_arguments(workdir, *INTERVALS),
    ):
        result = command(*args, check=1)
        assert "can be read" in result.stderr and "nothing was changed" in result.stderr
        assert result.stderr.count("\n") == 1
    assert sorted(workdir.rglob("*")) == before


def test_a_process_without_free_files_has_failed_and_was_not_asked_wrongly(tmp_path):
    """A machine without free files, as one with a full disk, gives exit status 1."""
    code = (
        "import resource\n"
        "from diffusion_jax.jobs import command_line\n"
        "def main():\n"
        "    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limit))\n"
        "    files = [open('/dev/null') for _ in range(200)]\n"
        "command_line.run(main)\n"
    )
    (tmp_path / "script.py").write_text(code)
    result = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == "error: /dev/null: Too many open files\n"
