"""Training in processes of its own, as a user starts it."""

import json
import subprocess
import sys
import time

from conftest import ROOT

# The digits with a network that compiles in seconds.
TINY = (
    "--config=configs/digits.py",
    "--config.model.base_channels=8",
    "--config.model.channel_mults=(1,)",
    "--config.model.attn_resolutions=()",
    "--config.model.num_groups=4",
    "--config.data.batch_size=16",
    "--config.process.num_timesteps=50",
    "--config.sampling.steps=50",
    "--config.training.sample_steps=5",
    "--config.training.sample_every=0",
    "--config.training.eval_every=0",
    "--config.ema.snapshots=2",
)
# Of a line in metrics.jsonl, what is a matter of time.
TIMING = {"steps_per_sec", "images_per_sec"}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def train_arguments(workdir, *more):
    return (str(ROOT / "train.py"), *TINY, f"--workdir={workdir}", *more)


def start_training(workdir, log, *more, **options):
    """A process; what it says goes into the file `log`."""
    return subprocess.Popen(
        [sys.executable, *train_arguments(workdir, *more)],
        cwd=ROOT,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        **options,
    )


def lines_of(workdir):
    """metrics.jsonl but for what is a matter of time."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def steps_logged(workdir):
    return [line["step"] for line in lines_of(workdir) if "loss" in line]


def files_of(workdir):
    """What else a run leaves: its pictures and snapshots, byte for byte."""
    found = [*workdir.glob("*.png"), *workdir.glob("samples/*"), *workdir.glob("ema_*/*")]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


def saved_steps(workdir):
    """Checkpoints that are whole."""
    done = workdir.glob("checkpoints/[0-9]*/commit_success.txt")
    return sorted(int(p.parent.name) for p in done if p.parent.name.isdigit())


def assert_same_run(a, b):
    assert lines_of(a) == lines_of(b)
    files_a, files_b = files_of(a), files_of(b)
    assert files_a.keys() == files_b.keys()
    assert [name for name in files_a if files_a[name] != files_b[name]] == []
