"""The numbers of a run for Weights & Biases, offline; or what is said without it."""

import importlib.util
import json
import os

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.runs.metrics_log import MetricLog
from diffusion_jax.runs.wandb_log import begun
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import TINY, points_config

REQUEST = train.Request(wandb="project")
HAS_WANDB = importlib.util.find_spec("wandb") is not None
needs_wandb = pytest.mark.skipif(not HAS_WANDB, reason="needs wandb (pip install wandb)")


def test_without_the_package_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        BadRequest, match="^--wandb needs the package wandb: pip install wandb$"
    ):
        train.train(points_config(), tmp_path / "run", None, REQUEST)
    assert not (tmp_path / "run").exists()


class Sink:
    """Keeps what it gets."""

    def __init__(self):
        self.got = []

    def numbers(self, step, values):
        self.got.append((step, values))

    def picture(self, step, name, pixels):
        self.got.append((step, name, pixels.shape))

    def sync(self):
        self.got.append("sync")

    def close(self):
        self.got.append("close")


def test_a_log_passes_all_that_it_gets_on(tmp_path):
    sink = Sink()
    log = MetricLog(tmp_path, 0, sink)
    log.write(3, {"loss": 0.5, "by_t": {"0": 1.5, "1-3": 2.5}})
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "x.png")
    log.picture(3, "x", tmp_path / "x.png")
    log.sync()
    log.close()
    numbers = {"loss": 0.5, "by_t/0": 1.5, "by_t/1-3": 2.5}
    assert sink.got == [(3, numbers), (3, "x", (4, 6, 3)), "sync", "close"]


def sent(workdir):
    """What each start of a run has given to Weights & Biases, as bytes."""
    found = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    return [path.read_bytes() for path in found]


@needs_wandb
def test_each_start_of_a_run_is_of_one_run_of_weights_and_biases(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train.train(points_config(num_steps=10), tmp_path, None, REQUEST)
    train.train(points_config(num_steps=20), tmp_path, None, REQUEST)
    own = (tmp_path / "wandb/id.txt").read_text()
    starts = sent(tmp_path)
    assert len(starts) == 2 and all(own.encode() in start for start in starts)
    said = f"Weights & Biases: run {own}, offline"
    assert capsys.readouterr().out.count(said) == 2
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        start = starts[line["step"] > 10]
        for name in line.keys() & {"loss", "held_out_loss", "grad_norm"}:
            assert name.encode() in start and json.dumps(line[name]).encode() in start
    train.train(points_config(num_steps=2), tmp_path, None, train.Request(overwrite=True))
    assert not (tmp_path / "wandb").exists()


@needs_wandb
def test_a_picture_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (log,) = begun("project", tmp_path, points_config())
    log.picture(1, "x", np.zeros((4, 6, 3), np.uint8))
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/x_*.png"))


@needs_wandb
def test_what_weights_and_biases_refuses_is_said_in_one_line(tmp_path, command):
    """Without a key, a file of keys, and a terminal to ask for one."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    line = ("train.py", *TINY, f"--workdir={tmp_path / 'run'}", "--wandb=project")
    said = command(*line, check=2, env=env).stderr.splitlines()
    assert said[-1].startswith("error: --wandb project: ")
