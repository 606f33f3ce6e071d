"""Training on pictures of one's own and from weights, as a user does: real processes."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from diffusion_jax.config import Config
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runs.weights import Weights, load_for, save_to_file
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT

RNG = np.random.default_rng(0)
# A network that compiles in seconds, for pictures of 8 by 8.
TINY = (
    f"--config={ROOT / 'configs/folder.py'}",
    "--config.data.image_size=(8,)",
    "--config.data.channels=3",
    "--config.data.batch_size=8",
    "--config.model.base_channels=8",
    "--config.model.channel_mults=(1,)",
    "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=()",
    "--config.model.num_groups=4",
    "--config.process.num_timesteps=20",
    "--config.sampling.steps=20",
    "--config.training.sample_steps=5",
    "--config.training.num_samples=4",
    "--config.training.log_every=2",
    "--config.training.checkpoint_every=5",
    "--config.training.steps_per_dispatch=2",
    "--config.training.num_steps=20",
)
STREAMED = ("--config.data.memory_gib=0", "--config.data.num_workers=2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Thirty photographs of noise, larger than what is trained on."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(30):
        noise = RNG.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(pictures, command, tmp_path_factory):
    """A finished run on `pictures`, all in memory."""
    workdir = tmp_path_factory.mktemp("runs") / "folder"
    path = f"--config.data.path={pictures}"
    result = command("train.py", *TINY, path, f"--workdir={workdir}", check=0)
    assert "29 examples to train on, 1 held out" in result.stdout
    return workdir


def exported(command, workdir, path, weights="raw"):
    args = (f"--workdir={workdir}", f"--out={path}", f"--weights={weights}")
    command("export.py", *args, check=0)
    with np.load(path) as file:
        return {name: file[name] for name in file if name != "about"}


def assert_same(a, b):
    assert a.keys() == b.keys() and a
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def start(workdir, pictures, log, steps):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *STREAMED]
    command += [f"--config.data.path={pictures}", f"--workdir={workdir}"]
    command.append(f"--config.training.num_steps={steps}")
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


needs_proc = pytest.mark.skipif(
    not pathlib.Path("/proc/self/stat").exists(), reason="looks at processes in /proc"
)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def group(process, naming=""):
    """Ids of the processes in the session that was started for `process`, by /proc."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # The process has just ended.
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            called = stat.with_name("cmdline").read_text()
            if int(session) == process.pid and state != "Z" and naming in called:
                found.append(int(stat.parent.name))
    return found


@needs_proc
@pytest.mark.slow
def test_a_streamed_run_that_is_killed_ends_like_one_in_memory(
    run, pictures, command, tmp_path
):
    """A killed run ends with the same bits, whatever its workers, and none outlives it."""
    workdir = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        process = start(workdir, pictures, log, 20)
        wait_for(lambda: (workdir / "checkpoints/5").is_dir())
        assert len(group(process)) >= 3
        process.kill()
        process.wait()
    wait_for(lambda: not group(process), 20)
    moved = tmp_path / "moved"
    moved.symlink_to(pictures)  # The data may lie elsewhere; the batches are the same.
    args = (*TINY, *STREAMED[:1], "--config.data.num_workers=0")
    result = command(
        "train.py", *args, f"--config.data.path={moved}", f"--workdir={workdir}", check=0
    )
    assert "resuming" in result.stdout and "data.path" in result.stdout
    mine = exported(command, workdir, tmp_path / "mine.npz")
    assert_same(mine, exported(command, run, tmp_path / "theirs.npz"))


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_to_all_saves_and_leaves_no_process(pictures, tmp_path, number, status):
    """Ctrl-C as a terminal sends it, SIGTERM as a scheduler does: to the workers too."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    with log.open("w") as file:
        process = start(workdir, pictures, file, 100_000)
        wait_for(lambda: (workdir / "checkpoints/5").is_dir())
        os.killpg(process.pid, number)
        assert process.wait(60) == status
    wait_for(lambda: not group(process), 20)
    said = log.read_text()
    assert "saved at step" in said and "goes on from step" in said
    assert "Traceback" not in said and "leaked" not in said and "rror" not in said


@pytest.mark.parametrize("how", ["vanishes", "is overwritten"])
@pytest.mark.slow
def test_an_image_that_goes_bad_while_it_trains_is_named(pictures, tmp_path, how):
    folder, log = tmp_path / "pictures", tmp_path / "log"
    subprocess.run(["cp", "-r", pictures, folder], check=True)
    with log.open("w") as file:
        process = start(tmp_path / "run", folder, file, 100_000)
        wait_for(lambda: (tmp_path / "run/checkpoints/5").is_dir())
        if how == "vanishes":
            (folder / "07.png").unlink()
        else:
            (folder / "07.png").write_bytes(b"something else")
        assert process.wait(60) == 1
    (error,) = [x for x in log.read_text().splitlines() if x.startswith("error: ")]
    assert "07.png" in error and "the newest checkpoint is that of step" in error
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_an_image_that_breaks_on_the_way_ends_the_run_in_one_line(
    pictures, command, tmp_path
):
    """A truncated image with a good header ends a streamed run, which decodes it late."""
    folder = tmp_path / "pictures"
    subprocess.run(["cp", "-r", pictures, folder], check=True)
    broken = folder / "07.png"
    broken.write_bytes(broken.read_bytes()[:300])
    args = (*TINY, f"--config.data.path={folder}")
    workdir = f"--workdir={tmp_path / 'memory'}"
    result = command("train.py", *args, workdir, check=2)
    assert "1 of 30 images cannot be read: 07.png" in result.stderr
    assert not (tmp_path / "memory").exists()
    workdir = f"--workdir={tmp_path / 'streamed'}"
    result = command("train.py", *args, *STREAMED, workdir, check=1)
    assert result.stderr.startswith("error: 07.png: ")
    assert "data.unreadable=skip" in result.stderr and result.stderr.count("\n") == 1
    skip = "--config.data.unreadable=skip"
    result = command("train.py", *args, *STREAMED, workdir, skip, check=0)
    assert "finished 20 steps" in result.stdout


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_ctrl_c_while_workers_start_saves_as_well(pictures, tmp_path, delay):
    """Ctrl-C while the workers still import, before they handle it."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    with log.open("w") as file:
        process = start(workdir, pictures, file, 100_000)
        wait_for(lambda: group(process, "spawn_main"))
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    wait_for(lambda: not group(process), 20)
    assert "Traceback" not in log.read_text() and "saved at step" in log.read_text()


@pytest.mark.slow
@needs_proc
def test_a_worker_that_dies_ends_the_run_in_one_line(pictures, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    with log.open("w") as file:
        process = start(workdir, pictures, file, 100_000)
        wait_for(lambda: (workdir / "checkpoints/5").is_dir())
        os.kill(group(process, "spawn_main")[0], signal.SIGKILL)
        assert process.wait(60) == 1
    said = log.read_text().splitlines()
    (error,) = [line for line in said if line.startswith("error: ")]
    assert "terminated" in error and "the newest checkpoint is that of step" in error
    assert not any("Traceback" in line for line in said)


@pytest.mark.slow
def test_what_was_sampled_can_be_trained_on(run, command, tmp_path):
    out = tmp_path / "samples"
    command("sample.py", f"--workdir={run}", "--num=16", f"--out={out}", check=0)
    result = command(
        "train.py",
        *TINY,
        "--config.data.source=npz",
        f"--config.data.path={out}.npz",
        "--config.data.held_out_fraction=0.25",
        f"--workdir={tmp_path / 'run'}",
        check=0,
    )
    assert "12 examples to train on, 4 held out" in result.stdout


# Weights


@pytest.fixture(scope="module")
def files(run, command, tmp_path_factory):
    """Files of the run's average, in both formats."""
    folder = tmp_path_factory.mktemp("exported")
    for suffix in ("npz", "safetensors"):
        out = f"--out={folder / 'ema.'}{suffix}"
        result = command("export.py", f"--workdir={run}", out, check=0)
        assert "the ema weights" in result.stdout and "at step 20" in result.stdout
    return folder


def test_both_formats_hold_the_same_arrays(run, files, command, tmp_path):
    with np.load(files / "ema.npz") as file:
        about = json.loads(str(file["about"]))
        arrays = {name: file[name] for name in file if name != "about"}
    assert (about["kind"], about["step"]) == ("ema", "20")
    assert json.loads(about["config"])["model"]["base_channels"] == 8
    assert_same(arrays, load_file(files / "ema.safetensors"))
    # 3 x 3 from the 3 channels of an image to the 8 of the network.
    assert (3, 3, 3, 8) in {x.shape for x in arrays.values()}
    raw = exported(command, run, tmp_path / "raw.npz")
    assert any((raw[name] != arrays[name]).any() for name in arrays)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["run", "ema.safetensors", "raw"])
def test_a_run_starts_from_the_weights_that_it_is_given(
    source, run, files, pictures, command, tmp_path
):
    """A run whose learning rate moves nothing ends with the weights that it starts from."""
    init = run if source in ("run", "raw") else files / source
    kind = "raw" if source == "raw" else "ema"
    wanted = exported(command, run, tmp_path / "wanted.npz", kind)
    result = command(
        "train.py",
        *TINY,
        f"--config.data.path={pictures}",
        f"--workdir={tmp_path / 'run'}",
        f"--init_from={init}",
        f"--init_weights={kind}",
        "--config.optimizer.learning_rate=1e-30",
        "--config.training.num_steps=2",
        check=0,
    )
    assert f"the {kind} weights of step 20" in result.stdout
    for weights in ("raw", "ema"):
        path = tmp_path / f"{weights}.npz"
        assert_same(exported(command, tmp_path / "run", path, weights), wanted)


@pytest.mark.slow
def test_overwrite_with_other_weights_starts_from_them(
    run, files, pictures, command, tmp_path
):
    workdir, init = tmp_path / "run", tmp_path / "ema.npz"
    init.write_bytes((files / "ema.npz").read_bytes())
    args = (
        *TINY,
        f"--config.data.path={pictures}",
        f"--workdir={workdir}",
        f"--init_from={init}",
        "--config.optimizer.learning_rate=1e-30",
        "--config.training.num_steps=2",
    )
    command("train.py", *args[:-3], args[-1], check=0)
    # A run's own weights would be deleted before they are read.
    itself = (*args[:-3], f"--init_from={workdir}", "--overwrite")
    result = command("train.py", *itself, check=2)
    assert "--overwrite would delete" in result.stderr
    assert (workdir / "checkpoints/2").is_dir()
    command("train.py", *args, "--overwrite", check=0)
    wanted = exported(command, run, tmp_path / "wanted.npz", "ema")
    assert_same(exported(command, workdir, tmp_path / "mine.npz"), wanted)
    # A run that goes on does not need the file again.
    init.unlink()
    result = command("train.py", *args[:-1], "--config.training.num_steps=3", check=0)
    assert "resuming" in result.stdout and "starting from" not in result.stdout


def test_weights_with_objects_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "hacked",))

    np.savez(tmp_path / "evil.npz", about=np.array([Evil()], object))
    with pytest.raises(BadRequest, match="was not written by export.py"):
        load_for(load_config(str(ROOT / "configs/digits.py")), tmp_path / "evil.npz", "ema")
    assert not (tmp_path / "hacked").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    weights = Weights({"w": np.arange(3.0)}, "raw", 7)
    path = tmp_path / "new/a.npz"
    save_to_file(path, weights, Config())
    before = path.read_bytes()
    save_to_file(path, weights._replace(step=8), Config(), overwrite=True)
    assert path.read_bytes() != before
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(BadRequest, match="is a folder"):
        save_to_file(tmp_path / "b.npz", weights, Config(), overwrite=True)

    def full(file, **arrays):
        file.write(b"some")
        raise OSError("no space left")

    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError):
        save_to_file(path, weights, Config(), overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


BAD = [
    ((), "data.path is empty; give the folder: --config.data.path=DIR"),
    (
        ("--config.data.origin=Ask the museum.",),
        "data.path is empty; give it with --config.data.path=PATH. Ask the museum.",
    ),
    (("--config.data.path=EMPTY",), "no images"),
    (("--config.data.path=BROKEN",), "zero.png: the file is empty"),
    (("--config.data.source=npz", "--config.data.path=FLOATS"), "arr_0 is float64"),
    (("--config.data.source=tfds:cifr10",), "did you mean cifar10"),
    (("--config.data.held_out_fraction=2",), "data.held_out_fraction (2.0)"),
    (("--config.data.path=PICTURES", "--init_from=FLOATS"), "not written by export.py"),
    (
        (
            "--config.data.path=PICTURES",
            "--init_from=RUN",
            "--config.model.base_channels=16",
        ),
        "is float32 [3, 3, 3, 8] there and float32 [3, 3, 3, 16] here",
    ),
    (
        ("--config.data.path=PICTURES", "--init_from=RUN", "--init_weights=mean"),
        "--init_weights",
    ),
]


@pytest.mark.parametrize(("args", "said"), BAD, ids=[" ".join(a[-1:]) for a, _ in BAD])
def test_bad_input_gets_one_line_and_writes_nothing(
    args, said, run, pictures, command, tmp_path
):
    places = tmp_path / "places"
    for name in ("EMPTY", "BROKEN"):
        (places / name).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(places / "BROKEN/good.png")
    (places / "BROKEN/zero.png").touch()
    np.savez(places / "FLOATS.npz", np.zeros((4, 8, 8, 3)))
    known = {
        "PICTURES": pictures,
        "RUN": run,
        "FLOATS": places / "FLOATS.npz",
        **{p.name: p for p in places.iterdir() if p.is_dir()},
    }
    filled = []
    for arg in args:
        name, _, value = arg.partition("=")
        filled.append(f"{name}={known.get(value, value)}")
    workdir = tmp_path / "run"
    result = command("train.py", *TINY, *filled, f"--workdir={workdir}", check=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr and not workdir.exists()


def test_export_refuses_what_it_would_spoil(run, files, command):
    for args, said in (
        ((f"--workdir={run}", f"--out={files / 'ema.npz'}"), "exists already"),
        ((f"--workdir={run}", f"--out={files / 'ema.pt'}"), ".safetensors or .npz"),
        ((f"--workdir={run}", "--weights=mean"), "it can be ema, raw"),
        (("--workdir=nowhere",), "there is no run in nowhere"),
    ):
        result = command("export.py", *args, check=2)
        assert said in result.stderr and result.stderr.count("\n") == 1
