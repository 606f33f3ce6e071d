"""Several real processes that work on one run as one, joined by gloo on this machine."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import weights
from helpers import SHARED, TINY, Group, files_of, lines_of, saved_steps, wait_for

STEPS = 50
ARGUMENTS = (
    *TINY,
    f"--config.training.num_steps={STEPS}",
    "--config.optimizer.decay=constant",
    "--config.training.log_every=1",
    "--config.training.eval_every=25",
    "--config.training.num_held_out=40",
    "--config.training.likelihood_every=50",
    "--config.training.likelihood_timesteps=2",
    "--config.training.sample_every=50",
    "--config.training.checkpoint_every=25",
)


def trained(folder, count=1, devices=1, *more):
    workdir = folder / "run"
    line = ("train.py", *ARGUMENTS, f"--workdir={workdir}", *more)
    with Group(folder, count, *line, devices=devices) as group:
        assert group.wait() == [0] * count, group.said(0) + group.said(count - 1)
        return workdir, [group.said(i) for i in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("two"), 2)


def params_of(workdir):
    config = run_folder.read_config(workdir)
    both = [weights.load_from_run(workdir, config, kind).params for kind in ("raw", "ema")]
    return jax.tree.map(np.asarray, both)


def ravelled(tree):
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def assert_alike(workdir, other):
    """The same lines and pictures, to the rounding of sums in another order."""
    lines, others = lines_of(workdir), lines_of(other)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, its in zip(lines, others, strict=True):
        for name in line.keys() & {"loss", "held_out_loss", "bits_per_dim"}:
            assert line[name] == pytest.approx(its[name], rel=1e-5), (line["step"], name)
    # Of a bias before a norm, the gradient is rounding: all params as one vector.
    ours, theirs = map(ravelled, (params_of(workdir), params_of(other)))
    assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs)
    assert files_of(workdir).keys() == files_of(other).keys()
    assert saved_steps(workdir) == saved_steps(other)


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_eight_devices_train_as_one(fsdp, alone, tmp_path):
    workdir, _ = trained(tmp_path, 1, 8, f"--config.parallel.fsdp={fsdp}")
    assert_alike(workdir, alone)


def test_two_processes_train_as_one(alone, two):
    """One of them prints and writes; each line and file is there once."""
    workdir, (first, second) = two
    assert_alike(workdir, alone)
    assert second == []
    assert any(line.startswith("devices: 2 x cpu, of 2 processes, 1 of") for line in first)
    assert any(line.startswith("mesh: data 2, fsdp 1") for line in first)
    assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_draw_and_evaluate_as_one(alone, two, tmp_path):
    """The same samples and bits per dimension of the same checkpoint."""
    results = {}
    run = f"--workdir={two[0]}"
    draw = ("sample.py", run, "--num=10", "--steps=4", "--batch_size=8")
    measure = ("evaluate.py", run, "--ode", "--ode_steps=20", "--max_examples=12")
    for count in (1, 2):
        for line in (draw, measure):
            out = f"--out={tmp_path / line[0]}{count}"
            with Group(tmp_path / f"{count}{line[0]}", count, *line, out) as group:
                assert group.wait() == [0] * count, group.said(0)
        said = json.loads((tmp_path / f"evaluate.py{count}.json").read_text())
        drawn = np.load(tmp_path / f"sample.py{count}.npz")["arr_0"]
        results[count] = drawn, said["bits_per_dim"]
    (drawn, bits), (drawn_by_two, bits_by_two) = results[1], results[2]
    assert np.abs(drawn.astype(int) - drawn_by_two).max() <= 1
    assert bits_by_two == pytest.approx(bits, rel=1e-5)


def test_processes_with_other_commands_are_refused(tmp_path):
    """What one process refuses all do, in one line, before anything is written."""
    line = ("train.py", *ARGUMENTS, f"--workdir={tmp_path / 'run'}")
    each = [(), ("--config.seed=1",)]
    with Group(tmp_path / "logs", 2, *line, each=each) as group:
        assert group.wait() == [2, 2]
        for i in range(2):
            said = "error: process 1 was started with another command than process 0 (--"
            assert group.said(i)[-1].startswith(said)
    assert not (tmp_path / "run").exists()


# What takes minutes


def killed(group, who, workdir):
    """Kill one process once a checkpoint is there, and wait for the others."""
    wait_for(lambda: saved_steps(workdir))
    began = time.monotonic()
    group.all[who].kill()
    statuses = group.wait()
    assert time.monotonic() - began < 60
    assert statuses[who] == -signal.SIGKILL and 0 not in statuses
    for i in set(range(len(statuses))) - {who}:
        said = f"error: process {who} of this run is gone; give the same command"
        assert [line for line in group.said(i) if line.startswith(said)], group.said(i)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_group_goes_on_with_the_same_bits(who, two, tmp_path):
    workdir = tmp_path / "run"
    line = ("train.py", *ARGUMENTS, f"--workdir={workdir}")
    with Group(tmp_path / "first", 2, *line) as group:
        killed(group, who, workdir)
    assert len(lines_of(workdir)) < len(lines_of(two[0]))
    with Group(tmp_path / "second", 2, *line) as group:
        assert group.wait() == [0, 0]
    assert lines_of(workdir) == lines_of(two[0])
    assert files_of(workdir) == files_of(two[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_the_same_step(number, two, tmp_path):
    workdir = tmp_path / "run"
    line = ("train.py", *ARGUMENTS, f"--workdir={workdir}")
    with Group(tmp_path / "first", 2, *line) as group:
        wait_for(lambda: saved_steps(workdir))
        group.all[1].send_signal(number)
        assert group.wait() == [0 if number == signal.SIGTERM else 130] * 2
        assert "goes on from step" in group.said(0)[-1]
    with Group(tmp_path / "second", 2, *line) as group:
        assert group.wait() == [0, 0]
    assert lines_of(workdir) == lines_of(two[0])


@pytest.mark.slow
def test_four_processes_train_as_one(alone, tmp_path):
    workdir, said = trained(tmp_path, 4, 1, "--config.parallel.fsdp=2")
    assert_alike(workdir, alone)
    assert any(line.startswith("mesh: data 2, fsdp 2") for line in said[0])


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(alone, tmp_path):
    """Four processes, then two that share the state, then one."""
    workdir = tmp_path / "run"
    for count, steps, fsdp in ((4, 20, 1), (2, 35, 2), (1, STEPS, 1)):
        line = ("train.py", *ARGUMENTS, f"--workdir={workdir}")
        more = (f"--config.training.num_steps={steps}", f"--config.parallel.fsdp={fsdp}")
        # The end of a run is evaluated, drawn and saved: not at these steps in `alone`.
        with Group(tmp_path / str(count), count, *line, *more) as group:
            assert group.wait() == [0] * count, group.said(0)
    losses, others = (
        {line["step"]: line["loss"] for line in lines_of(run) if "loss" in line}
        for run in (workdir, alone)
    )
    assert losses.keys() == others.keys()
    for step, loss in losses.items():
        assert loss == pytest.approx(others[step], rel=1e-5), step


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_images_are_shared_out_to_two_processes(workers, tmp_path):
    """Each reads its rows of each batch: the losses of one process that reads all."""
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    data = (
        "--config.data.source=folder",
        f"--config.data.path={tmp_path}",
        "--config.data.memory_gib=0",
        f"--config.data.num_workers={workers}",
        "--config.training.num_steps=12",
    )
    runs = [
        trained(tmp_path.with_name(f"{tmp_path.name}_{count}"), count, 1, *data)[0]
        for count in (1, 2)
    ]
    assert_alike(*runs)


@pytest.mark.slow
def test_two_processes_prepare_a_set_once(tmp_path):
    """The real MNIST: one process prepares it, and both train on it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data in ../shared/data")
    place = tmp_path / "sets"
    subprocess.run(
        [sys.executable, SHARED / "tools/prepare_tfds.py", place, "mnist"], check=True
    )
    data = (
        "--config.data.source=tfds:mnist",
        f"--config.data.path={place}",
        "--config.data.image_size=(28,)",
        "--config.training.num_steps=4",
    )
    workdir, (first, _) = trained(tmp_path, 2, 1, *data)
    assert len([line for line in first if line.startswith("preparing tfds:mnist")]) <= 1
    assert len(list(place.glob("mnist/*"))) == 1
    again, _ = trained(tmp_path / "one", 1, 1, *data)
    assert_alike(workdir, again)


@pytest.mark.slow
def test_two_processes_choose_the_same_timesteps(two, tmp_path):
    out = tmp_path / "x"
    line = ("sample.py", f"--workdir={two[0]}", "--spacing=auto", "--steps=5")
    with Group(tmp_path / "logs", 2, *line, "--num=4", f"--out={out}") as group:
        assert group.wait() == [0, 0], group.said(0)
    kept = np.load(f"{out}.npz")["arr_0"]
    with Group(tmp_path / "more", 1, *line, "--num=4", f"--out={out}1") as group:
        assert group.wait() == [0], group.said(0)
    assert np.abs(kept.astype(int) - np.load(f"{out}1.npz")["arr_0"]).max() <= 1
