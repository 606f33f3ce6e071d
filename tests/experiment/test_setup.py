"""Sizes of the sample grids in a plan of training."""

import fractions
import itertools

import pytest

from diffusion_jax.config import Config, DataConfig, ProcessConfig, TrainingConfig
from diffusion_jax.experiment.setup import preview_of, times_due
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.training.periodic import is_due
from helpers import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def calls_of_grids(config, num, steps):
    """Network calls of all grids, with the raw weights and with the average, one by one."""
    training = config.training
    every, last = training.sample_every, training.num_steps
    return 2 * num * steps * sum(is_due(every, s, last) for s in range(1, last + 1))


def test_grids_take_at_most_a_tenth_of_the_calls():
    """Grids have as many samples as a tenth allows, of the steps asked for if these fit."""
    for num_steps, every, batch_size, num, steps in itertools.product(
        (1, 20, 999, 1000), (7, 500, 5000), (1, 64), (3, 64), (5, 50, 5000)
    ):
        config = Config(
            data=DataConfig(batch_size=batch_size),
            process=ProcessConfig(num_timesteps=1000),
            training=TrainingConfig(
                num_steps=num_steps,
                sample_every=every,
                num_samples=num,
                sample_steps=steps,
            ),
        )
        most = fractions.Fraction(3 * num_steps * batch_size, 10)
        steps, preview = min(steps, 1000), preview_of(config)
        found = preview.batch_size, preview.steps
        assert found <= (num, steps) and preview.steps <= steps
        if calls_of_grids(config, num, steps) <= most:
            assert found == (num, steps)
        elif calls_of_grids(config, min(num, 4), steps) <= most:
            assert preview.steps == steps and calls_of_grids(config, *found) <= most
            assert calls_of_grids(config, preview.batch_size + 1, steps) > most
        elif calls_of_grids(config, min(num, 4), min(steps, 10)) <= most:
            assert preview.batch_size == min(num, 4)
            assert calls_of_grids(config, *found) <= most
            assert calls_of_grids(config, preview.batch_size, preview.steps + 1) > most
        else:
            assert found == (min(num, 4), min(steps, 10))


def test_a_run_that_draws_nothing_has_a_preview_and_is_never_due():
    config = Config(training=TrainingConfig(sample_every=0))
    assert preview_of(config).batch_size == 64 and times_due(0, 1000) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_the_grids_of_every_config_are_as_it_says(path):
    config = load_config(str(path))
    training, preview = config.training, preview_of(config)
    assert (preview.batch_size, preview.steps) == (
        training.num_samples,
        training.sample_steps,
    )
