"""What is due while a run trains, and by what the best checkpoint is chosen."""

import json

import numpy as np
import pytest

from diffusion_jax.config import Config, DataConfig, TrainingConfig, UNetConfig
from diffusion_jax.data import sources
from diffusion_jax.experiment import validation
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runtime import devices
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training.periodic import Due, Milestones


def milestones(workdir, losses, **training):
    every = {"eval_every": 10, "likelihood_every": 20, "sample_every": 30, "num_steps": 65}
    config = Config(
        data=DataConfig(source="mine", image_size=(4,), channels=1, batch_size=8),
        model=UNetConfig(
            base_channels=8, channel_mults=(1,), attn_resolutions=(), num_groups=4
        ),
        training=TrainingConfig(**{**every, **training}),
    )
    images = np.zeros((16, 4, 4, 1), np.uint8)
    plan = make_plan(config, sources.arrays(images[:8], images[8:]))
    return Milestones(plan, workdir, devices.make_mesh(), Stop(), losses)


def test_each_is_due_at_its_interval_and_all_at_the_end(tmp_path):
    found = milestones(tmp_path, {})
    assert found.due(7) == Due()
    assert found.due(10) == Due(evaluate=True)
    assert found.due(30) == Due(evaluate=True, draw=True)
    assert found.due(40) == Due(evaluate=True, bound=True)
    assert found.due(65) == Due(True, True, True)
    assert milestones(tmp_path, {}, likelihood_every=0).due(65) == Due(True, False, True)


@pytest.mark.parametrize(
    ("best_by", "expected"),
    [("held_out_loss", {20: 0.2, 40: 0.1}), ("bits_per_dim", {20: 3.0, 40: 4.0})],
)
def test_the_best_checkpoint_is_by_what_the_config_says(tmp_path, best_by, expected):
    """By the loss step 40, by the bound step 20; step 60 is behind the checkpoint."""
    lines = [
        {"step": 20, "held_out_loss": 0.2},
        {"step": 20, "bits_per_dim": 3.0},
        {"step": 40, "held_out_loss": 0.1},
        {"step": 40, "bits_per_dim": 4.0},
        {"step": 60, "held_out_loss": 0.05, "bits_per_dim": 2.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    losses = {}
    assert milestones(tmp_path, losses, best_by=best_by).to_make_up(40) == Due()
    assert losses == expected


def test_what_a_stop_left_out_is_made_up(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 60, "held_out_loss": 0.2}\n')
    found = milestones(tmp_path, {})
    assert found.to_make_up(60) == Due(bound=True, draw=True)
    assert found.to_make_up(0) == Due()


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
def test_what_cannot_be_is_refused(tmp_path, training, said):
    with pytest.raises(BadRequest, match=said):
        milestones(tmp_path, {}, **training)


def test_points_have_no_bound():
    config = Config(data=DataConfig(source="two_moons", image_size=(), channels=2))
    config.training.likelihood_every = 10
    with pytest.raises(BadRequest, match=r"training\.likelihood_every \(10\)"):
        validation.check(config)
