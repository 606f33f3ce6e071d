"""Lengths and intervals in epochs, against the batches of a run counted one by one."""

import math

import numpy as np
import pytest

from diffusion_jax.config import Config, DataConfig, TrainingConfig, UNetConfig
from diffusion_jax.data import sources
from diffusion_jax.data.pipeline import batch_indices
from diffusion_jax.experiment import epochs, validation
from diffusion_jax.experiment.setup import make_plan, make_plan_of_shapes
from diffusion_jax.runtime.errors import BadRequest


@pytest.mark.parametrize(("num", "size"), [(10, 4), (12, 4), (7, 3), (3, 8), (100, 1)])
@pytest.mark.parametrize("wanted", [1, 2, 3, 0.5, 0.1])
def test_an_epoch_goes_through_the_examples_once(num, size, wanted):
    """One train step fewer leaves some examples out, by the batches of a run themselves."""
    training = TrainingConfig(epochs=float(wanted))
    steps = epochs.in_train_steps(training, num, size).num_steps
    seen = np.zeros(num, int)
    counts = []
    for step in range(steps):
        counts.append(seen.sum())
        np.add.at(seen, batch_indices(num, size, 0, step), 1)
    assert seen.sum() >= wanted * num > counts[-1]
    if wanted >= 1:
        assert seen.min() >= wanted


def test_an_interval_of_an_epoch_comes_at_most_once_per_epoch():
    for num, size in ((7981, 32), (1597, 64), (10, 9), (3, 8)):
        training = TrainingConfig(epochs=250.0, checkpoint_every_epochs=1.0)
        found = epochs.in_train_steps(training, num, size)
        times = math.ceil(found.num_steps / found.checkpoint_every)
        assert times <= 250
        assert num / size <= found.checkpoint_every < num / size + 1


def test_every_interval_has_its_own_field_and_the_others_stay():
    given = {"epochs": 20.0, "sample_every_epochs": 4.0, "eval_every_epochs": 0.5}
    found = epochs.in_train_steps(TrainingConfig(**given), 1000, 10)
    expected = TrainingConfig(num_steps=2000, sample_every=400, eval_every=50)
    assert found == expected
    assert not epochs.are_used(found) and epochs.are_used(TrainingConfig(**given))
    for steps, of_epochs in epochs.IN_EPOCHS.items():
        found = epochs.in_train_steps(TrainingConfig(**{of_epochs: 3.0}), 1000, 10)
        assert found == TrainingConfig(**{steps: 300})


def test_decimal_fractions_of_an_epoch_are_exact():
    """0.1 is above one tenth as a binary number, and would be rounded up."""
    training = TrainingConfig(epochs=0.1, eval_every_epochs=0.3)
    found = epochs.in_train_steps(training, 1000, 10)
    assert (found.num_steps, found.eval_every) == (10, 30)


def test_too_many_train_steps_are_refused():
    with pytest.raises(BadRequest, match=r"training.epochs \(1e\+06\) is 3,000,000,000"):
        epochs.in_train_steps(TrainingConfig(epochs=1e6), 3000, 1)


@pytest.mark.parametrize("steps", epochs.IN_EPOCHS)
def test_train_steps_that_epochs_replace_are_named(steps):
    """A run in epochs is as long with another training.num_steps."""
    of_epochs = epochs.IN_EPOCHS[steps]
    (said,) = epochs.without_effect(TrainingConfig(**{steps: 7, of_epochs: 2.0}))
    assert said.startswith(
        f"training.{steps} (7) has no effect: training.{of_epochs} is 2;"
    )
    for alone in ({steps: 7}, {of_epochs: 2.0}):
        assert not epochs.without_effect(TrainingConfig(**alone))


def config_of(**training):
    return Config(
        data=DataConfig(source="mine", image_size=(4,), channels=1, batch_size=8),
        model=UNetConfig(
            base_channels=8, channel_mults=(1,), attn_resolutions=(), num_groups=4
        ),
        training=TrainingConfig(**training),
    )


def test_a_plan_has_train_steps_of_the_examples_to_train_on():
    """36 examples are 4.5 batches of 8; those held out do not count."""
    images = np.zeros((40, 4, 4, 1), np.uint8)
    data = sources.arrays(images[:36], images[36:])
    config = config_of(epochs=3.0, sample_every_epochs=1.0, checkpoint_every=7)
    plan = make_plan(config, data)
    training = plan.config.training
    assert (training.num_steps, training.sample_every) == (14, 5)
    assert (training.checkpoint_every, training.epochs) == (7, 0)
    assert make_plan(plan.config, data).config == plan.config
    assert config.training.epochs == 3


def test_without_examples_what_is_in_train_steps_counts(capsys):
    config = config_of(epochs=3.0, num_steps=50)
    config.data.source, config.data.path = "folder", "nowhere"
    training = make_plan_of_shapes(config, 1, "cpu").config.training
    assert (training.num_steps, training.epochs) == (50, 0)
    assert "epochs is not used" in capsys.readouterr().out


def test_what_needs_an_interval_takes_one_in_epochs():
    config = config_of(best_by="bits_per_dim", likelihood_every_epochs=1.0)
    validation.check(config)
    validation.check(
        config_of(
            best_by="fd_pca2_n20",
            quality_every_epochs=1.0,
            quality_samples=20,
            quality_features="pca2",
        )
    )
    config.data.image_size, config.data.channels = (), 2
    with pytest.raises(
        BadRequest, match=r"training.likelihood_every \(1.0\) is for images"
    ):
        validation._check_training(config)
