"""The commands as a user runs them: real processes, real files, real signals."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import ROOT, TINY, wait_for


@pytest.fixture(scope="module")
def run(tmp_path_factory, command):
    """A finished run of twenty steps."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    result = command(
        "train.py",
        *TINY,
        "--config.training.num_steps=20",
        "--config.training.sample_every=20",
        f"--workdir={workdir}",
        check=0,
    )
    assert "finished 20 steps" in result.stdout
    return workdir


def sizes(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_sampling_writes_images_that_can_be_looked_at_and_trained_on(
    run, command, tmp_path
):
    out = tmp_path / "out"
    args = ("sample.py", f"--workdir={run}", "--batch-size=8", f"--out={out}")
    result = command(*args, "--num=11", "--show_chain", check=0)
    assert "wrote" in result.stdout
    with np.load(f"{out}.npz", allow_pickle=False) as file:
        images = file["arr_0"]
    assert images.shape == (11, 8, 8, 1) and images.dtype == np.uint8
    # The grid holds the same pixels: image 5 is in the second row of four.
    grid = np.asarray(Image.open(f"{out}.png"))
    corner = grid[52 + 3 : 52 + 48 : 6, 52 + 3 : 52 + 48 : 6]
    np.testing.assert_array_equal(corner, images[5, ..., 0])
    note = json.loads((tmp_path / "out.json").read_text())
    assert (note["checkpoint_step"], note["num"], note["steps"]) == (20, 11, 50)
    assert Image.open(f"{out}_chain.gif").n_frames == 28
    assert Image.open(f"{out}_chain.png").size == (10 * 50 + 2, 8 * 50 + 2)
    assert not (tmp_path / "out.partial").exists()

    # --num changes no image, and the batch size no level of an image.
    more, other = tmp_path / "more", tmp_path / "other"
    command(
        "sample.py",
        f"--workdir={run}",
        "--batch_size=8",
        f"--out={more}",
        "--num=16",
        check=0,
    )
    command(
        "sample.py",
        f"--workdir={run}",
        "--batch_size=4",
        f"--out={other}",
        "--num=5",
        check=0,
    )
    np.testing.assert_array_equal(np.load(f"{more}.npz")["arr_0"][:11], images)
    np.testing.assert_array_equal(np.load(f"{other}.npz")["arr_0"], images[:5])

    # What is there is not overwritten, and an --overwrite gives the same bytes again.
    before = sizes(tmp_path)
    refused = command(*args, "--num=11", check=2)
    assert "exists already" in refused.stderr and sizes(tmp_path) == before
    content = (tmp_path / "out.npz").read_bytes()
    command(*args, "--num=11", "--overwrite", check=0)
    with np.load(f"{out}.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], images)
    assert content == (tmp_path / "out.npz").read_bytes()


@pytest.mark.slow
def test_any_path_works_and_none_is_executed_by_the_terminal(tmp_path, command):
    """A run, its samples and the cache, below every odd name at once; an ASCII terminal."""
    odd = "é [v2]*? %20 \x1b[31m\nerror: forged \udcff"
    workdir, out = tmp_path / odd / "run [1]", tmp_path / odd / "out [1]"
    options = {"env": {**os.environ, "PYTHONIOENCODING": "ascii"}, "cwd": ROOT}
    cache = f"--compilation_cache={tmp_path / odd / 'cache'}"
    few = ("--config.training.num_steps=2", "--config.training.num_held_out=16")
    train = ("train.py", *TINY, *few, f"--workdir={workdir}")
    sample = ("sample.py", f"--workdir={workdir}", "--num=2", "--steps=2", f"--out={out}")
    said = []
    for args in (train, train, (*sample, cache)):
        said.append(command(*args, check=0, **options))
    text = "".join(result.stdout + result.stderr for result in said)
    assert "is finished: it has 2 steps" in said[1].stdout
    assert "\x1b" not in text and "\nerror" not in text and "Traceback" not in text
    assert r"[v2]*? %20 \x1b[31m\nerror: forged \udcff" in text
    assert len(np.load(f"{out}.npz")["arr_0"]) == 2
    assert any(name.endswith("-cache") for name in os.listdir(tmp_path / odd / "cache"))
    # The hint at the end of the first is a command.
    hint = said[0].stdout.partition("sample with: python ")[2].splitlines()[0]
    again = f"{shlex.quote(sys.executable)} {hint} --num=1 --steps=2"
    assert (
        subprocess.run(["bash", "-c", again], cwd=ROOT, capture_output=True).returncode == 0
    )


@pytest.mark.slow
def test_interrupted_sampling_goes_on_and_ends_with_the_same_images(run, command, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = ["sample.py", f"--workdir={run}", "--num=48", "--batch_size=4"]
    command(*args, f"--out={whole}", check=0)
    process = subprocess.Popen(
        [sys.executable, *args, f"--out={cut}"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    partial = tmp_path / "cut.partial"
    wait_for(lambda: len(list(partial.glob("0*.npy"))) >= 2)
    process.kill()
    process.wait()
    assert partial.exists() and not (tmp_path / "cut.npz").exists()
    for change in ("--seed=1", "--weights=raw"):
        other = command(*args, f"--out={cut}", change, check=2)
        assert "another request" in other.stderr
    # A file that somebody else has put there meanwhile is not overwritten.
    cut.with_suffix(".png").write_text("precious")
    assert "cut.png exists already" in command(*args, f"--out={cut}", check=2).stderr
    cut.with_suffix(".png").unlink()
    # Other weights in the same place, of the same config and step, are another request.
    note = partial / "request.json"
    request = note.read_text()
    sha = json.loads(request)["weights_sha256"]
    note.write_text(request.replace(sha, "0" * 64))
    assert "another request" in command(*args, f"--out={cut}", check=2).stderr
    note.write_text(request)
    command(*args, f"--out={cut}", check=0)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "cut.npz").read_bytes()


def test_ctrl_c_in_sampling_says_how_to_go_on_and_exits_130(run, command, tmp_path):
    out = tmp_path / "out"
    args = ["sample.py", f"--workdir={run}", "--num=9999", "--batch_size=2", f"--out={out}"]
    process = subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: list((tmp_path / "out.partial").glob("0*.npy")))
    second = command(*args, check=2)
    assert f"pid {process.pid} on" in second.stderr and "is writing to" in second.stderr
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "goes on from there" in said
    assert "Traceback" not in said


def test_no_file_of_somebody_else_is_overwritten(run, command, tmp_path):
    (tmp_path / "q.json").write_text("precious")
    sample = ("sample.py", f"--workdir={run}", "--num=2", "--sampler=ddim", "--steps=2")
    refused = command(*sample, f"--out={tmp_path / 'q'}", check=2)
    assert "q.json exists already" in refused.stderr
    (tmp_path / "p.partial").mkdir()
    (tmp_path / "p.partial/mine").write_text("precious")
    refused = command(*sample, f"--out={tmp_path / 'p'}", "--overwrite", check=2)
    assert "holds other files" in refused.stderr
    before = (run / "config.json").read_bytes()
    refused = command(*sample, f"--out={run / 'config'}", "--overwrite", check=2)
    assert "belongs to the run" in refused.stderr
    assert (run / "config.json").read_bytes() == before
    assert (tmp_path / "q.json").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.partial", "q.json"]


def test_damaged_runs_get_one_line(run, command, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", run, folder], check=True)
    record = (folder / "run.json").read_text()
    sample = ("sample.py", f"--workdir={folder}", "--num=1")
    train = ("train.py", *TINY, f"--workdir={folder}")
    for args in (sample, train):
        for text in ("[]", record.replace('"step": 20', '"step": "x"')):
            (folder / "run.json").write_text(text)
            result = command(*args, check=2)
            assert "run.json is damaged" in result.stderr
            assert result.stderr.count("\n") == 1
    (folder / "run.json").write_text(record)
    for text in ("{}", "[", '{"model": null}'):
        (folder / "config.json").write_text(text)
        result = command(*sample, check=2)
        assert "is not the config of a run" in result.stderr
        assert result.stderr.count("\n") == 1


BAD = [
    (("train.py",), "--config needs a file"),
    (("train.py", "--confg=configs/digits.py"), "did you mean it by --confg?"),
    (("train.py", *TINY, "--learning_rate=1"), "mean --config.optimizer.learning_rate?"),
    (("train.py", *TINY, "--config.seed=1e3"), "'1e3' is not a whole number"),
    (("train.py", "--config=configs/digts.py"), "did you mean configs/digits.py?"),
    (("train.py", *TINY, "--config.data.sorce=x"), "did you mean config.data.source?"),
    (("train.py", *TINY, "--config.training.num_steps=many"), "num_steps=many"),
    (("train.py", *TINY, "--config.process.num_timesteps=1"), "process.num_timesteps (1)"),
    (("train.py", *TINY, "--config.process.beta_end=1.5"), "beta_end (1.5)"),
    (("train.py", *TINY, "--config.process.beta_start=0"), "beta_start (0.0)"),
    (("train.py", *TINY, "--config.process.schedule=cosin"), "did you mean cosine?"),
    (
        (
            "train.py",
            *TINY,
            "--config.process.schedule=custom",
            "--config.process.betas=0.1,0.5",
        ),
        "process.betas has 2 values, and process.num_timesteps is 50",
    ),
    (("train.py", *TINY, "--config.optimizer.learning_rate=-1"), "learning_rate (-1.0)"),
    (("train.py", *TINY, "--config.ema.decay=1"), "ema.decay (1.0)"),
    (("train.py", *TINY, "--config.ema.decay=-0.1"), "ema.decay (-0.1)"),
    (("train.py", *TINY, "--config.ema.more_decays=0.9,1.5"), "ema.more_decays (1.5)"),
    (("train.py", *TINY, "--config.ema.more_decays=0.995,"), "must all be different"),
    (("train.py", *TINY, "--config.ema.stds=0.05,0.3"), "ema.stds (0.3) must be in 0.015"),
    (("train.py", *TINY, "--config.ema.snapshots=-1"), "ema.snapshots (-1)"),
    (("train.py", *TINY, "--workdir=gs://bucket/run"), "in a file system"),
    (("train.py", *TINY, f"--workdir={ROOT}/README.md"), "README.md is a file"),
    (("train.py", *TINY, f"--workdir={ROOT}/tests"), "is not the folder of a run"),
    (("train.py", *TINY, "--workdir=/proc/run"), "/proc/run"),
    (("train.py", *TINY, "--config.data.source=digit"), "did you mean digits?"),
    (
        ("train.py", TINY[0], "--config.model.channel_mults=(1,1,1,1,1)"),
        "data.image_size (8,) must be divisible by 16",
    ),
    (("train.py", *TINY, "--workdri=x"), "did you mean --workdir?"),
    (("train.py", *TINY, "num_steps=3"), "'num_steps=3' is not a flag"),
    (("train.py", *TINY, "--workdir", "--overwrite"), "--workdir needs a value"),
    (("train.py", *TINY, "--config.model.channel_mults=(1,2)"), "is given twice"),
    (("train.py", *TINY, "--config.data.batch_size=99999999999"), "data.batch_size"),
    (("train.py", *TINY, "--nodry_run=1"), "dry_run"),
    (
        ("train.py", TINY[0], "--config.model.attn_resolutions=(7,)"),
        "heights of the levels",
    ),
    (("train.py", *TINY, "--workdir=/dev/null/x"), "/dev/null"),
    (("train.py", *TINY, "--config.training=3"), "config.training is a section; set a"),
    (("train.py", *TINY, "--config.training.microbatch=3"), "digits.py --help lists them"),
    (("train.py", *TINY, "--config.num_steps=3"), "did you mean config.training.num_steps"),
    (("train.py", "--config=configs"), "it is a folder; there are"),
    (("train.py", *TINY, "--flagfile"), "--flagfile: with no argument"),
    (("train.py", *TINY, "--flagfile=nowhere"), "--flagfile: Unable to open"),
    (("train.py", *TINY, "--pdb"), "--pdb: there is no such flag"),
    (("sample.py", "--only_check_args"), "--only_check_args: there is no such flag"),
    (("sample.py", "--" + "x" * 50_000), "there is no such flag"),
    (("sample.py", "--overwrite=maybe"), "--overwrite=maybe: must be true or false"),
    (("train.py", *TINY, "--workdir="), "--workdir is empty"),
    (("train.py", *TINY, "--workdir=~no_such_user/x"), "--workdir ~no_such_user/x"),
    (("train.py", *TINY, "--init_from="), "--init_from is empty"),
    (("train.py", *TINY, "--init_weights=raw"), "--init_weights raw needs --init_from"),
    (("train.py", *TINY, "--overwrite", "--change_learning_rate"), "give one of them"),
    (
        (
            "train.py",
            *TINY,
            "--config.training.num_steps=20",
            "--init_from=RUN",
            "--workdir=RUN",
        ),
        "no effect: the run in",
    ),
    (("train.py", *TINY, "--dry_run", "--init_from=nowhere"), "nowhere is neither"),
    (("train.py", *TINY, "--dry_run", "--init_from=RUN", "--init_weights=x"), "unknown"),
    (("train.py", *TINY, "--dry_run", "--compilation_cache=/proc/x"), "cannot be written"),
    (("train.py", *TINY, "--dry_run", "--workdir=/dev/null/x"), "/dev/null/x: Not a dir"),
    (("train.py", *TINY, "--dry_run", "--workdir=/proc/run"), "/proc/run"),
    (("train.py", *TINY, "--dry_run", f"--workdir={ROOT}/README.md"), "is a file"),
    (
        ("train.py", *TINY, "--dry_run", f"--workdir={ROOT}/tests"),
        "not the folder of a run",
    ),
    (
        ("train.py", *TINY, "--dry_run", "--config.seed=5", "--workdir=RUN"),
        "was started with another config",
    ),
    (("export.py", "--out="), "--out is empty"),
    (("export.py", "--workdir="), "--workdir is empty"),
    (
        ("export.py", "--workdir=RUN", "--out=~no_such_user/x.npz"),
        "--out ~no_such_user/x.npz",
    ),
    (("evaluate.py", "--ode", "--workdir="), "--workdir is empty"),
    (("evaluate.py", "--ode", "--steps=5"), "--steps 5 needs --likelihood"),
    (("evaluate.py", "--ode", "--variance=fixed_large"), "needs --likelihood"),
    (
        ("evaluate.py", "--ode", "--num_timesteps_sampled=5"),
        "--num_timesteps_sampled 5 needs --likelihood",
    ),
    (("evaluate.py", "--likelihood", "--ode_steps=50"), "--ode_steps 50 needs --ode"),
    (("sample.py", "--workdir=nowhere"), "there is no run in nowhere"),
    (("sample.py",), "no run with a checkpoint under runs"),
    (("sample.py", "--workdir=RUN", "--num=0"), "--num 0"),
    (("sample.py", "--workdir=RUN", "--out=gs://bucket/x"), "gs://bucket/x is a URL"),
    (("sample.py", "--workdir=RUN", "--step"), "--step"),
    (("sample.py", "--workdir=RUN", "--step=7"), "no checkpoint of step 7; it has 20"),
    (("sample.py", "--workdir=RUN", "--data_path=x"), "for --spacing auto"),
    (("evaluate.py", "--workdir=RUN", "--ode", "--step=last"), "of a step, newest or best"),
    (
        ("export.py", "--workdir=RUN", "--out=RUN/checkpoints/x.npz"),
        "checkpoints/x.npz belongs to the run",
    ),
    (("train.py", *TINY, "--dry_run", "--init_step=best"), "best needs --init_from"),
    (("sample.py", "--workdir=RUN", "--num=-3"), "--num -3"),
    (("sample.py", "--workdir=RUN", "--num=x"), "--num=x"),
    (("sample.py", "--workdir=RUN", "--steps=51"), "--steps (51) must be at most"),
    (("sample.py", "--workdir=RUN", "--steps=0"), "--steps (0) must be in 1 .."),
    (("sample.py", "--workdir=RUN", "--sampler=ddim", "--eta=1.5"), "--eta (1.5)"),
    (("sample.py", "--workdir=RUN", "--eta=0.5"), "--eta (0.5) is not for sampler ddpm"),
    (("sample.py", "--workdir=RUN", "--sampler=heun", "--churn=-1"), "--churn (-1.0)"),
    (("sample.py", "--workdir=RUN", "--sampler=dimm"), "did you mean ddim?"),
    (("sample.py", "--workdir=RUN", "--spacing=karas"), "did you mean karras?"),
    (("sample.py", "--workdir=RUN", "--timesteps=3,9"), "3 is followed by 9"),
    (("sample.py", "--workdir=RUN", "--timesteps=50,9"), "must lie in 0 .. 49"),
    (("sample.py", "--workdir="), "--workdir is empty"),
    (("sample.py", "--workdir=RUN", "--out="), "--out is empty"),
    (
        ("sample.py", "--workdir=RUN", "--compilation_cache="),
        "--compilation_cache is empty",
    ),
    (("sample.py", "--workdir=RUN", "--out=RUN/checkpoints/20/x"), "belongs to the run"),
    (("sample.py", "--workdir=RUN", "--timesteps=9,x"), "--timesteps must be numbers"),
    (
        ("sample.py", "--workdir=RUN", "--compilation_cache=/dev/null/x"),
        "cannot be written",
    ),
    (("train.py", *TINY, "--compilation_cache=/proc/x"), "cannot be written"),
    (("sample.py", "--workdir=RUN", "--weights=mean"), "it can be ema, raw"),
    (("sample.py", "--workdir=RUN", "--weights=1.5"), "--weights (1.5): a rate"),
    (("sample.py", "--workdir=RUN", "--weights=std:0.5"), "must be in 0.015 .. 0.25"),
    (("sample.py", "--workdir=RUN", "--weights=std:x"), "--weights ('std:x')"),
    (
        ("sample.py", "--workdir=RUN", "--weights=0.9"),
        "holds ema (which is 0.995), raw, 0.995, std:0.05, std:0.1, and by its snapshots",
    ),
]


@pytest.mark.parametrize(
    ("args", "said"), BAD, ids=[" ".join(a[:1] + a[-1:])[:80] for a, _ in BAD]
)
def test_bad_input_gets_one_line_and_exit_status_2(args, said, run, command, tmp_path):
    args = [arg.replace("RUN", str(run)) for arg in args]
    args[1:] = [
        arg.replace("configs/", f"{ROOT}/configs/") if "digts" not in arg else arg
        for arg in args[1:]
    ]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    before = sizes(run)
    result = command(*args, cwd=tmp_path, check=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr
    assert sizes(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config = 3\n", "must define a function get_config()"),
        ("def get_config():\n    return 1 / 0\n", "line 2 raised ZeroDivisionError"),
        ("def get_config():\n    return 3\n", "must return a diffusion_jax.config.Config"),
        ("def get_config(:\n", "raised SyntaxError"),
        ("import sys\ndef get_config():\n    sys.exit(3)\n", "raised SystemExit"),
        (
            "from diffusion_jax.config import Config\n"
            "def get_config():\n    c = Config()\n    c.seeed = 1\n    return c\n",
            "'Config' object has no attribute 'seeed'",
        ),
        (
            "from diffusion_jax.config import Config\n"
            "def get_config():\n    return Config(seed='x')\n",
            "seed ('x') must be of type int",
        ),
    ],
)
def test_a_broken_config_file_gets_one_line(text, said, command, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    result = command("train.py", "--config=mine.py", cwd=tmp_path, check=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr and not (tmp_path / "runs").exists()


def test_a_batch_that_the_devices_cannot_share_is_refused(command, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    workdir = f"--workdir={tmp_path / 'run'}"
    result = command("train.py", *TINY, workdir, env=environment, check=2)
    assert "must be divisible by the number of devices, 3; take 15" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_config_and_writes_nothing(command, tmp_path):
    """A dry run prints the config, writes nothing, and warns in one line of what is odd."""
    args = (
        "--config.process.schedule=constant",
        "--config.process.beta_end=0.5",
        "--dry-run",
        "--config.training.sample_every=50",  # Else sample_steps has no effect.
        f"--workdir={tmp_path / 'run'}",
        "--config.optimizer.learning-rate=5e-4",
    )
    result = command("train.py", *TINY, *args, check=0)
    assert '"learning_rate": 0.0005' in result.stdout
    expected = "warning: betas do not rise everywhere: betas[0] is 0.5 and betas[1] is 0.5"
    assert result.stderr.splitlines() == [expected]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_and_a_run_refuse_a_run_that_is_being_trained(run, tmp_path):
    """A run in training, or with other examples, is refused, and nothing is written."""
    config = run_folder.read_config(run)
    before = sizes(run)
    with open(run / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadRequest, match="another process .* is training in"):
            train.prepare(config, run)
    train.prepare(config, run)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    record["data"]["train"] = 7
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadRequest, match="the examples are not those"):
        train.prepare(config, copy, dry_run=True)
    assert sizes(run) == before


def test_odd_lengths_and_odd_betas_are_said_at_the_start_of_a_run_alone(run, tmp_path):
    config = run_folder.read_config(run)
    config.data.batch_size, config.optimizer.warmup_steps = 2000, 20
    config.process.schedule, config.process.beta_end = "linear", 0.02
    with pytest.warns(UserWarning) as caught:
        train.prepare(config, tmp_path / "new")
    said = " ".join(str(w.message) for w in caught)
    for expected in (
        "optimizer.warmup_steps (20)",
        "data.batch_size (2,000)",
        "x_T is not",
    ):
        assert expected in said
    workdir = tmp_path / "old"
    shutil.copytree(run, workdir)
    run_folder.write_config(workdir, config)
    (workdir / "run.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.prepare(config, workdir)


def test_odd_betas_are_not_said_again_by_sample(command, tmp_path, run):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    config = run_folder.read_config(run)
    config.process.schedule, config.process.beta_end = "linear", 0.02
    run_folder.write_config(workdir, config)
    arguments = (f"--workdir={workdir}", "--num=1", "--batch_size=1", "--steps=50")
    result = command("sample.py", *arguments, check=0)
    assert "x_T is not noise" not in result.stderr


def test_few_steps_of_the_ode_are_warned_of(command, run):
    few = ("--ode", "--ode_steps=3", "--weights=mean")  # These weights are refused.
    result = command("evaluate.py", f"--workdir={run}", *few, check=2)
    assert "warning: --ode_steps 3: fewer than 20" in result.stderr


def test_flags_may_come_from_a_file(command, run, tmp_path):
    (tmp_path / "flags").write_text(f"--workdir={run}\n--num=0\n")
    result = command("sample.py", f"--flagfile={tmp_path / 'flags'}", check=2)
    assert "--num 0" in result.stderr


def test_the_newest_run_is_the_default(run, command, tmp_path):
    """The default of two runs in a folder is the one whose checkpoints changed last."""
    for name, when in (("old", 1), ("new", 2)):
        folder = tmp_path / "runs" / name
        folder.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", run, folder], check=True)
        os.utime(folder / "checkpoints", (when, when))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    args = ("--num=1", "--batch_size=1", "--sampler=ddim", "--steps=2")
    command("sample.py", *args, cwd=tmp_path, env=environment, check=0)
    assert (tmp_path / "runs/new/samples/ddim_2_seed0_num1.png").exists()
