"""Work that is due while a run trains, and the choice of the best checkpoint."""

import json
import re
from types import SimpleNamespace

import numpy as np
import optax
import pytest

from diffusion_jax.config import Config, DataConfig, EMAConfig, TrainingConfig
from diffusion_jax.data import sources
from diffusion_jax.experiment import validation
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runtime import progress
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training import train
from diffusion_jax.training.first_state import FirstState
from diffusion_jax.training.periodic import Due, due_at, still_due
from diffusion_jax.training.train_state import init_state
from helpers import tiny_unet


def config_of(**training):
    every = {"eval_every": 10, "likelihood_every": 20, "sample_every": 30, "num_steps": 65}
    return Config(
        data=DataConfig(source="mine", image_size=(4,), channels=1, batch_size=8),
        model=tiny_unet(),
        ema=EMAConfig(stds=()),
        training=TrainingConfig(**{**every, **training}),
    )


def test_each_is_due_at_its_interval_and_all_at_the_end():
    training = config_of().training
    assert due_at(training, 7) == Due()
    assert due_at(training, 10) == Due(evaluate=True)
    assert due_at(training, 30) == Due(evaluate=True, draw=True)
    assert due_at(training, 40) == Due(evaluate=True, bound=True)
    assert due_at(training, 65) == Due(True, True, True)
    assert due_at(config_of(likelihood_every=0).training, 65) == Due(True, False, True)


LINES = [
    {"step": 20, "held_out_loss": 0.2},
    {"step": 20, "bits_per_dim": 3.0},
    {"step": 40, "held_out_loss": 0.1},
    {"step": 40, "bits_per_dim": 4.0},
    {"step": 60, "held_out_loss": 0.05, "bits_per_dim": 2.0},
]


@pytest.mark.parametrize(
    ("best_by", "expected"),
    [("held_out_loss", {20: 0.2, 40: 0.1}), ("bits_per_dim", {20: 3.0, 40: 4.0})],
)
def test_the_best_checkpoint_is_by_what_the_config_says(
    tmp_path, monkeypatch, best_by, expected
):
    """Step 40 is best by the loss, 20 by the bound; step 60 is after the checkpoint."""
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text)
    images = np.zeros((16, 4, 4, 1), np.uint8)
    config = config_of(best_by=best_by, eval_every=0, likelihood_every=0)
    config.training.likelihood_every = 10**6  # Needed by best_by, and not due.
    plan = make_plan(config, sources.arrays(images[:8], images[8:]))
    state = init_state(plan.init_fn, optax.sgd(0.1), config)
    at = FirstState(state, 40, record=SimpleNamespace(wall_time_s=0.0))
    monkeypatch.setattr(train, "first_state", lambda *arguments: at)
    with Checkpoints(tmp_path, writing=True) as checkpoints:
        told = {}
        monkeypatch.setattr(checkpoints, "score", told.__setitem__)
        train.prepared_trainer(plan, tmp_path, checkpoints, Stop())
    assert told == expected


def test_what_a_stop_left_out_is_made_up(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 60, "held_out_loss": 0.2}\n')
    assert still_due(config_of(), tmp_path, 60) == Due(bound=True, draw=True)
    assert still_due(config_of(), tmp_path, 0) == Due()
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert still_due(config_of(), tmp_path, 40) == Due()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"best_by": "bits_per_dim", "likelihood_every": 0},
            "needs training.likelihood_every",
        ),
        ({"best_by": "bits"}, "training.best_by"),
        ({"likelihood_timesteps": 0}, "training.likelihood_timesteps"),
    ],
)
def test_what_cannot_be_is_refused(training, said):
    with pytest.raises(BadRequest, match=said):
        validation.check(config_of(**training))


def test_points_have_no_bound():
    config = Config(data=DataConfig(source="two_moons", image_size=(), channels=2))
    config.training.likelihood_every = 10
    with pytest.raises(BadRequest, match=r"training\.likelihood_every \(10\)"):
        validation.check(config)


def test_what_takes_long_tells_its_progress(tmp_path, monkeypatch, capsys):
    """Progress has a line for each batch, segment and stratum, where no bar is shown."""
    monkeypatch.setattr(progress, "_LINE_EVERY", -1.0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    config = config_of(
        num_steps=100,
        steps_per_dispatch=100,
        eval_every=100,
        likelihood_every=100,
        likelihood_timesteps=3,
        sample_every=100,
        num_samples=4,
        sample_steps=15,
        num_held_out=12,
    )
    train.train(config, tmp_path, sources.arrays(images[:28], images[28:]))
    said = capsys.readouterr().out
    for line in (
        "held-out loss 8/12",
        "held-out loss 12/12",
        "bits/dim 3/6",
        "bits/dim 6/6",
        "drawing 5/30",  # With the raw weights.
        "drawing 10/30",
        "drawing 20/30",  # With the average.
        "drawing 25/30",
    ):
        assert f"\n{line}" in said, line
    assert re.search(r"drawing 25/30  [\d.,]+ calls/s  \d+ s left", said)
