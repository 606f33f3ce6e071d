"""Runs that have stalled, and those that learn or have converged, told by their losses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    LossConfig,
    MLPConfig,
    OptimizerConfig,
    ProcessConfig,
    TrainingConfig,
)
from diffusion_jax.data import sources
from diffusion_jax.diffusion.schedules import cosine_betas, make_schedule
from diffusion_jax.evaluation.reference_losses import ReferenceLosses
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runs import events, weight_files
from diffusion_jax.runs.metrics_log import read_metrics
from diffusion_jax.training import stalled, train
from diffusion_jax.training.references import references_of
from helpers import ROOT, points_config, tiny_unet

RECORDED = sorted((ROOT / "tests/fixtures/held_out_curves").glob("*.json"))
# Configs without a recorded run: they need other machines, data or hours.
NOT_RECORDED = {
    *("cars64", "cifar10", "cifar10_16to32", "cifar10_conditional", "cifar10_iddpm"),
    *("clip_folder", "fashion_mnist", "folder", "folder256", "folder64to256"),
    *("mnist_conditional", "sound_folder"),
}
REFERENCE = ReferenceLosses(untrained=1.0, mean=1.0, linear=0.3)
EVERY, NUM_STEPS = 100, 10_000
STEPS = range(EVERY, NUM_STEPS + 1, EVERY)


def first_stall(curve, reference=REFERENCE, settled=0, num_steps=NUM_STEPS):
    """The train step of the first evaluation at which a run has stalled, and the stall."""
    steps = sorted(curve)
    for count, step in enumerate(steps, 1):
        until = {s: curve[s] for s in steps[:count]}
        found = stalled.find_stall(until, reference, settled, num_steps)
        if found is not None:
            return step, found
    return None, None


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_no_run_of_the_projects_configs_has_stalled(path):
    """At no evaluation of a real run; the losses were recorded by record_curve.py."""
    run = json.loads(path.read_text())
    curve = {int(step): loss for step, loss in run["held_out_loss"].items()}
    reference = ReferenceLosses(**run["reference"])
    assert min(curve.values()) < reference.linear < reference.untrained
    assert first_stall(curve, reference, run["settled"], run["num_steps"]) == (None, None)


def test_each_config_is_recorded_or_said_not_to_be():
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert names == NOT_RECORDED | {path.stem for path in RECORDED}


@pytest.mark.parametrize("until", [300, 1000, 2000, 2800, 3100, 5000, 20_000, 10**6])
def test_a_straight_line_has_stalled_if_it_takes_too_long(until):
    """A loss on a line reaches the linear denoiser's at `until`.

    At step S, until - S steps are left. They are more than 10 / 3 S, and the run has
    stalled, if until > 13 / 3 S; the first S that is looked at is 600.
    """
    curve = {s: 1.0 - 0.7 * s / until for s in STEPS}
    step, _ = first_stall(curve)
    assert step == (600 if until > 13 / 3 * 600 else None)


@pytest.mark.parametrize("level", [0.4, 0.5, 0.6])
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_loss_that_stays_far_above_the_linear_denoisers_has_stalled(level, noise):
    """The fall ends at step 1,500; in a third of 2,250 steps there is nothing of it."""
    rng = np.random.default_rng(0)
    drawn = noise * rng.standard_normal(len(STEPS))
    fall = (1.2 - level) / 1500
    curve = {s: max(level, 1.2 - fall * s) + e for s, e in zip(STEPS, drawn, strict=True)}
    step, found = first_stall(curve)
    assert 1500 < step <= 2300
    assert found.best == pytest.approx(level, abs=0.01)
    assert found.gain_before > 10 * found.gain


@pytest.mark.parametrize("level", [0.05, 0.29, 0.35])
@pytest.mark.parametrize("rate", [0.001, 0.003, 0.02])
def test_a_loss_that_has_converged_has_not_stalled(level, rate):
    """Nor does it where data are nearly Gaussian, and the linear denoiser the best one."""
    rng = np.random.default_rng(0)
    curve = {
        s: level + (1 - level) * np.exp(-rate * s) + 0.003 * rng.standard_normal()
        for s in STEPS
    }
    assert first_stall(curve) == (None, None)


def test_a_loss_that_rises_after_it_was_low_has_diverged_not_stalled():
    curve = {s: 0.2 if s < 3000 else 5.0 for s in STEPS}
    assert first_stall(curve) == (None, None)


def test_nothing_is_concluded_while_the_average_holds_the_first_weights():
    """The loss of an average that forgets in 3,000 steps stays, and then falls."""
    curve = {s: 1.0 if s < 3000 else 0.2 + 0.8 * 0.9 ** ((s - 3000) / 100) for s in STEPS}
    assert first_stall(curve)[0] == 600
    assert first_stall(curve, settled=3000) == (None, None)
    assert first_stall(dict.fromkeys(STEPS, 1.0), settled=3000)[0] == 3600
    config = Config(optimizer=OptimizerConfig(warmup_steps=500))
    config.ema = EMAConfig(decay=0.999, warmup=False)
    assert stalled.settled_after(config) == 3500
    config.ema.warmup = True
    assert stalled.settled_after(config) == 500


def test_nothing_is_concluded_from_the_first_twentieth_of_a_run():
    curve = dict.fromkeys(STEPS, 1.0)
    assert first_stall(curve, num_steps=60_000)[0] == 3000
    assert first_stall({s: 1.0 for s in (2000, 4000, 6000, 8000, 10_000)})[0] is None


# Runs


def config_of(**training):
    """A small network on the real digits."""
    return Config(
        data=DataConfig(source="digits", image_size=(8,), batch_size=32),
        model=dataclasses.replace(tiny_unet(), base_channels=8, num_groups=4),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000),
        optimizer=OptimizerConfig(learning_rate=1e-7, warmup_steps=5),
        ema=EMAConfig(decay=0.9, warmup=True, stds=()),
        training=TrainingConfig(
            **{
                "num_steps": 80,
                "eval_every": 10,
                "num_held_out": 200,
                "sample_every": 0,
                "checkpoint_every": 0,
                "steps_per_dispatch": 10,
                **training,
            }
        ),
    )


def silent_weights(path, config, data):
    """A file of weights with which the network of a config gives 0."""
    params = make_plan(config, data).init_fn(jax.random.key(0))
    params["dense_out"] = jax.tree.map(jnp.zeros_like, params["dense_out"])
    weight_files.write(path, weight_files.Weights(params, "ema", 0), config)
    return path


def warnings_of(workdir):
    found = (e for e in events.read(workdir) if e.kind == events.WARNING)
    return [e for e in found if e.text.startswith(stalled.BEGINNING)]


def test_a_learning_rate_that_is_too_small_is_warned_of_once(tmp_path, capsys):
    """A run on points, whose linear denoiser has the errors of a Wiener filter."""
    rng = np.random.default_rng(0)
    points = np.float32(rng.normal(size=(5300, 2)) * [0.3, 0.8])
    data = sources.arrays(points[:300], points[300:])

    def config_of_points(num_steps=80):
        config = config_of(num_steps=num_steps, num_held_out=5000)
        config.data = DataConfig(source="mine", image_size=(), channels=2, batch_size=32)
        config.model = MLPConfig(width=16, num_blocks=1)
        return config

    start = silent_weights(tmp_path / "silent.npz", config_of_points(), data)
    workdir = tmp_path / "run"
    train.train(config_of_points(), workdir, data, train.Request(init_from=start))
    said = capsys.readouterr().out
    (event,) = warnings_of(workdir)
    assert event.step == 60 and said.count(f"warning: {event.text}") == 1
    for what in ("learning_rate (1e-07)", "warmup_steps (5)", "schedule (cosine)"):
        assert what in event.text
    first, *others = (
        line for line in read_metrics(workdir / "metrics.jsonl") if "held_out_loss" in line
    )
    reference = first["reference_loss"]
    assert reference["untrained"] == reference["mean"] == 1
    assert first["held_out_loss"] == pytest.approx(1, rel=0.04)
    assert not any("reference_loss" in line for line in others)
    share = make_schedule(cosine_betas(1000)).alphas_cumprod[:, None]
    signal = share * points[:300].astype(float).var(axis=0)
    linear = (signal / (signal + 1 - share)).mean()
    assert f"untrained 1, as predicting the mean, a linear denoiser {linear:.4g}" in said

    train.train(config_of_points(num_steps=120), workdir, data)
    assert len(warnings_of(workdir)) == 1
    assert "for comparison" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_learns_is_not_warned_of_also_if_it_goes_on(tmp_path):
    for num_steps in (80, 200):
        train.train(points_config(num_steps=num_steps), tmp_path)
    assert warnings_of(tmp_path) == []


def test_references_are_of_the_examples_as_the_network_sees_them():
    """For x_0: its mean square, and its mean variance, by NumPy from the digits."""
    config = config_of()
    config.process.prediction = "x0"
    x = sources.open_data_set(config.data).train.astype(float) / 127.5 - 1
    found = references_of(make_plan(config))
    np.testing.assert_allclose(found.untrained, np.square(x).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.mean, x.var(axis=0).mean(), rtol=1e-6)


def test_references_have_the_norm_and_the_weights_of_the_loss():
    config = config_of()
    config.loss.norm = "l1"
    assert references_of(make_plan(config)).untrained == pytest.approx((2 / np.pi) ** 0.5)
    config.loss = LossConfig(weighting="snr")
    plan = make_plan(config)
    config.process.prediction = "x0"
    of_x0 = references_of(make_plan(config))
    # Weighted by the SNR, the error of x_0 is that of eps (Salimans & Ho, section 4).
    assert references_of(plan).linear == pytest.approx(of_x0.linear, rel=1e-9)


def test_the_bound_has_no_references():
    config = config_of()
    config.loss.kind = "variational"
    assert references_of(make_plan(config)) is None
    config.loss.kind, config.process.variance = "hybrid", "learned"
    assert references_of(make_plan(config)).untrained == 1
