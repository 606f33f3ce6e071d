"""Parts that are made of a config, against its values."""

import ast
import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    MLPConfig,
    ProcessConfig,
    SamplingConfig,
    UNetConfig,
)
from diffusion_jax.diffusion import loss_weighting, losses, schedules
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler, validation
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runtime.errors import BadRequest


def images_config(**sections):
    sections = {"process": ProcessConfig(num_timesteps=20, beta_end=0.6), **sections}
    model = UNetConfig(attn_resolutions=())
    return Config(model=model, sampling=SamplingConfig(steps=20), **sections)


def test_the_config_decides_the_schedule():
    process = ProcessConfig(schedule="quadratic", num_timesteps=50, beta_end=0.5)
    betas = schedules.quadratic_betas(50, 1e-4, 0.5)
    np.testing.assert_allclose(build.make_schedule(process).betas, betas)
    process.log_snr_shift, process.zero_terminal_snr = -0.7, True
    process.prediction = "v"
    moved = schedules.shift_log_snr(betas, -0.7)
    expected = schedules.rescale_zero_terminal_snr(moved)
    found = build.make_schedule(process)
    np.testing.assert_allclose(found.betas, expected, rtol=1e-12)
    process = ProcessConfig(schedule="custom", num_timesteps=3, betas=(0.1, 0.5, 0.99))
    with pytest.warns(UserWarning, match="noise"):
        assert build.make_schedule(process).betas.tolist() == [0.1, 0.5, 0.99]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("variance", ["fixed_large", "learned"])
def test_the_config_decides_the_model(prediction, variance):
    """The model of a config, with its network or, as for samplers' tables, without one."""
    config = images_config()
    config.process.prediction, config.process.variance = prediction, variance
    config.model = UNetConfig(8, channel_mults=(1,), attn_resolutions=(), num_groups=4)
    config.data.image_size, config.data.channels = (8, 8), 1
    betas = schedules.linear_betas(20, 1e-4, 0.6)
    without, model = build.without_network(config.process), build.make_model(config)
    for found in (without, model):
        np.testing.assert_allclose(found.process.betas, betas)
        assert (found.prediction, found.variance) == (prediction, variance)
    x_t, t = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32)
    with pytest.raises(TypeError, match="no network"):
        without.predict(None, x_t, t)
    init_fn, apply_fn = build.make_network(config)

    def ask(key):
        params = init_fn(key)
        said = model.predict(params, x_t, t)
        whole = apply_fn(params, x_t, t, None, train=False, key=None)
        return whole, said.output, said.variance_output

    whole, output, variance_output = jax.eval_shape(ask, jax.random.key(0))
    learned = variance == "learned"
    assert whole.shape == (2, 8, 8, 2 if learned else 1)
    assert output.shape == x_t.shape
    assert (variance_output is not None) == learned


LOSSES = {
    "defaults": (LossConfig(), {}),
    "norm": (
        LossConfig(norm="huber", huber_delta=0.2),
        {"norm": "huber", "huber_delta": 0.2},
    ),
    "min_snr": (
        LossConfig(weighting="min_snr", min_snr_gamma=2.0),
        {"weighting": "min_snr", "min_snr_gamma": 2.0},
    ),
    "p2": (
        LossConfig(weighting="p2", p2_gamma=0.5, p2_k=3.0),
        {"weighting": "p2", "p2_gamma": 0.5, "p2_k": 3.0},
    ),
    "sigmoid": (
        LossConfig(weighting="sigmoid", sigmoid_bias=1.0),
        {"weighting": "sigmoid", "sigmoid_bias": 1.0},
    ),
    "fixed_large": (
        LossConfig(weighting="variational"),
        {"weighting": "variational"},
    ),
}


def network(params, x_t, t, cond, *, train, key):
    return jnp.sin(3 * x_t)


def doubled(*args, **options):
    return jnp.tile(network(*args, **options), 2)


def batch_of_images():
    """Twenty images on the grid, each at its own timestep."""
    key, of_noise = jax.random.split(jax.random.key(0))
    x0 = jnp.round(jax.random.uniform(key, (20, 8, 8, 1)) * 255) / 127.5 - 1
    return Batch(x0), Draw(jnp.arange(20), jax.random.normal(of_noise, x0.shape))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_config_decides_the_loss(name, kind):
    """Each loss against the function of the maths with the numbers written out."""
    loss, options = LOSSES[name]
    config = images_config(loss=loss)
    config.process.prediction = kind
    config.process.variance = "fixed_large"
    validation.check(config)
    process = schedules.make_schedule(schedules.linear_betas(20, 1e-4, 0.6))
    model = Model(process, kind, "fixed_large", network)
    found = build.make_loss(config, model)(None, *batch_of_images())
    if "weighting" in options:
        weighting, *rest = options.values()
        parameters = loss_weighting.Parameters(
            **dict(zip([*options][1:], rest, strict=True))
        )
        weights = loss_weighting.loss_weights(model, weighting, parameters)
        options = {"weights": weights}
    distance = losses.Distance(**options)
    expected = losses.prediction_loss(model, None, *batch_of_images(), distance=distance)
    np.testing.assert_array_equal(found, expected)


def test_the_key_of_a_loss_switches_dropout_on():
    """Dropout in losses of every kind is on with a key, and off without one."""

    def telling(params, x_t, t, cond, *, train, key):
        seen.append((train, key))
        return jnp.tile(x_t, 2) if config.process.variance == "learned" else x_t

    for kind in ("prediction", "hybrid", "variational"):
        config = images_config(loss=LossConfig(kind=kind))
        config.process.variance = "fixed_small" if kind == "prediction" else "learned"
        model = build.without_network(config.process)
        loss_fn = build.make_loss(config, dataclasses.replace(model, apply_fn=telling))
        seen, key = [], jax.random.key(1)
        loss_fn(None, *batch_of_images(), key=key)
        loss_fn(None, *batch_of_images())
        assert seen == [(True, key), (False, None)]


@pytest.mark.parametrize("kind", ["hybrid", "variational"])
def test_learned_variances_are_trained_by_the_bound(kind):
    config = images_config(loss=LossConfig(kind=kind, variational_scale=0.3))
    if kind == "hybrid":
        config.loss.weighting, config.loss.norm = "snr", "l1"
    config.process.variance = "learned"
    config.process.prediction = "v"
    validation.check(config)
    without = build.without_network(config.process)
    model = Model(without.process, "v", "learned", doubled)
    found = build.make_loss(config, model)(None, *batch_of_images())
    if kind == "hybrid":
        distance = losses.Distance("l1", weights=loss_weighting.loss_weights(model, "snr"))
        expected = losses.hybrid_loss(
            model, None, *batch_of_images(), distance=distance, variational_scale=0.3
        )
    else:
        expected = losses.variational_loss(model, None, *batch_of_images())
    np.testing.assert_array_equal(found, expected)
    # The network is twice as wide, and the sampler uses its variance unless told otherwise.
    shapes = jax.eval_shape(build.make_network(config)[0], jax.random.key(0))
    assert shapes["conv_out"]["kernel"].shape[-1] == 2
    assert build_sampler.make_table(without, config.sampling).is_learned
    config.sampling.variance = "fixed_small"
    assert not build_sampler.make_table(without, config.sampling).is_learned


REFUSED = {
    "process.schedule=cosin": "did you mean cosine?",
    "process.prediction=epsilon": "process.prediction ('epsilon') is unknown",
    "process.variance=learnt": "did you mean learned?",
    "loss.weighting=minsnr": "did you mean min_snr?",
    "loss.norm=l3": "it can be l2, l1, huber",
    "loss.kind=hybird": "did you mean hybrid?",
    "loss.timesteps=stratifed": "did you mean stratified?",
    "loss.min_snr_gamma=0.0": "loss.min_snr_gamma (0.0) must be",
    "loss.min_snr_gamma=-1.0": "loss.min_snr_gamma (-1.0) must be",
    "process.zero_terminal_snr=True": "set it to v or x0",
    "process.schedule=jsd": "set it to v or x0",
    "process.schedule=custom": "must be given with process.schedule 'custom'",
    "process.betas=(0.1,)": "and only then; it is 'linear'",
    "process.schedule=custom process.betas=(0.1, 0.2)": (
        "process.betas has 2 values, and process.num_timesteps is 20"
    ),
    "process.schedule=custom process.num_timesteps=2 sampling.steps=2 "
    "process.betas=(0.1, 1.2)": "betas[1] (1.2) must be between 0 and 1",
    "process.betas=(0.1, 'x')": "process.betas ((0.1, 'x')) must be a tuple of Python",
    "process.schedule=cosin process.betas=(0.1,)": "did you mean cosine?",
    "process.log_snr_shift=11.0": "process.log_snr_shift (11.0) must be in -10 .. 10",
    "process.num_timesteps=4000 process.beta_end=0.1": "set it to v or x0",
    "loss.weighting=p2 loss.p2_gamma=100.0 loss.p2_k=1e-6": (
        "weighting 'p2' has a largest weight of"
    ),
    "process.variance=learned": "set loss.kind to hybrid or variational",
    "loss.timesteps=stratified data.batch_size=1000000 process.num_timesteps=2000": (
        "data.batch_size (1000000) must be at most 536870 for stratified"
    ),
    "loss.kind=hybrid": "set that to learned, or loss.kind to prediction",
    "sampling.variance=learned": "needs a network that has learned it",
    "loss.kind=variational loss.norm=l1": "set them to simple and l2",
    "loss.kind=hybrid process.variance=learned loss.weighting=variational": (
        "for learned ones set loss.kind to variational"
    ),
}


_SOUND = "data.image_size=() data.sound_length="
# Examples of one kind alone, in shapes that the levels of the network divide.
REFUSED |= {
    "data.sound_length=16": "set that to (), or data.sound_length to 0",
    "data.image_size=() data.num_frames=3": "need the height and width of a frame",
    f"{_SOUND}16 data.num_frames=3": "of sounds has no frames",
    f"{_SOUND}16 data.channels=3": "must be 1 (mono), 2 (stereo) or 0",
    f"{_SOUND}20": "data.sound_length (20) must be divisible by 8",
    f"{_SOUND}32 model.attn_resolutions=(2,)": "lengths of the levels, [32, 16, 8, 4]",
    "data.num_frames=3 data.image_size=(12,)": "(12,) must be divisible by 8",
    "data.num_frames=8 model.attn_resolutions=(3,)": "heights of the levels, [8, 4, 2, 1]",
    f"{_SOUND}16 data.random_flip=True": "is not for sounds",
    f"{_SOUND}16 loss.kind=hybrid process.variance=learned": "8-bit images, not of sounds",
    f"{_SOUND}16 training.likelihood_every=5": "these are sounds: set it to 0",
    f"{_SOUND}16 sampling.spacing=auto": "but these are sounds",
    f"{_SOUND}8388608": "GiB for each, which no machine holds",
    "data.image_size=(1024,) model.attn_resolutions=(1024,)": "GiB for each",
    "data.num_frames=3 loss.focus=1.5": "loss.focus (1.5) must be in 0 .. 1",
}


@pytest.mark.parametrize("fields", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(fields):
    """Wrong fields are refused before a plan is made: nothing compiled, nothing written."""
    config = images_config()
    for field in re.split(r" (?=[a-z]+\.[a-z])", fields):
        path, _, text = field.partition("=")
        section, name = path.split(".")
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(text)
        setattr(getattr(config, section), name, text)
    with pytest.raises(BadRequest) as error:
        make_plan(config)
    assert REFUSED[fields] in str(error.value)


def test_points_have_no_bound_of_images():
    config = Config(
        data=DataConfig(source="two_moons", image_size=(), channels=2),
        model=MLPConfig(),
        loss=LossConfig(kind="hybrid"),
        process=ProcessConfig(variance="learned"),
    )
    with pytest.raises(BadRequest, match="8-bit images, not of points"):
        make_plan(config)
