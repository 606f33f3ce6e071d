"""What a config says reaches the parts that are made of it."""

import ast
import contextlib
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


LOSSES = {
    "defaults": (LossConfig(), {}),
    "norm": (
        LossConfig(norm="huber", huber_delta=0.2),
        {"norm": "huber", "huber_delta": 0.2},
    ),
    "min_snr": (
        LossConfig(weighting="min_snr", min_snr_gamma=2.0),
        {"weights": ("min_snr", {"min_snr_gamma": 2.0})},
    ),
    "p2": (
        LossConfig(weighting="p2", p2_gamma=0.5, p2_k=3.0),
        {"weights": ("p2", {"p2_gamma": 0.5, "p2_k": 3.0})},
    ),
    "sigmoid": (
        LossConfig(weighting="sigmoid", sigmoid_bias=1.0),
        {"weights": ("sigmoid", {"sigmoid_bias": 1.0})},
    ),
    "fixed_large": (
        LossConfig(weighting="variational"),
        {"weights": ("variational", {"variance_type": "fixed_large"})},
    ),
}


def network(params, x_t, t, cond, *, train, key):
    return jnp.sin(3 * x_t)


def doubled(*args, **options):
    return jnp.tile(network(*args, **options), 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_config_decides_the_loss(name, kind):
    loss, options = LOSSES[name]
    config = images_config(loss=loss)
    config.process.prediction = kind
    config.process.variance = "fixed_large"
    validation.check(config)
    schedule = build.make_schedule(config.process)
    x0 = jax.random.uniform(jax.random.key(0), (20, 8, 8, 1), minval=-1.0)
    t, noise = jnp.arange(20), jax.random.normal(jax.random.key(1), x0.shape)
    found = build.make_loss(config, network, schedule)(None, x0, t, noise)
    if "weights" in options:
        weighting, parameters = options["weights"]
        table = loss_weighting.loss_weights(schedule, kind, weighting, **parameters)
        options = {"weights": table}
    expected = losses.prediction_loss(
        network, None, schedule, x0, t, noise, prediction_type=kind, **options
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["hybrid", "variational"])
def test_learned_variances_are_trained_by_the_bound(kind):
    config = images_config(loss=LossConfig(kind=kind, variational_scale=0.3))
    if kind == "hybrid":
        config.loss.weighting, config.loss.norm = "snr", "l1"
    config.process.variance = "learned"
    config.process.prediction = "v"
    validation.check(config)
    schedule = build.make_schedule(config.process)
    x0 = jnp.round(jax.random.uniform(jax.random.key(0), (20, 8, 8, 1)) * 255) / 127.5 - 1
    args = (x0, jnp.arange(20), jax.random.normal(jax.random.key(1), x0.shape))
    found = build.make_loss(config, doubled, schedule)(None, *args)
    if kind == "hybrid":
        expected = losses.hybrid_loss(
            doubled,
            None,
            schedule,
            *args,
            prediction_type="v",
            norm="l1",
            weights=loss_weighting.loss_weights(schedule, "v", "snr"),
            variational_scale=0.3,
        )
    else:
        expected = losses.variational_loss(
            doubled, None, schedule, *args, prediction_type="v", variance_type="learned"
        )
    np.testing.assert_array_equal(found, expected)
    # The network is twice as wide, and the sampler uses what it says unless told else.
    shapes = jax.eval_shape(build.make_network(config)[0], jax.random.key(0))
    assert shapes["conv_out"]["kernel"].shape[-1] == 2
    table = build_sampler.make_table(schedule, config.process, config.sampling)
    assert table.is_learned
    config.sampling.variance = "fixed_small"
    assert not build_sampler.make_table(
        schedule, config.process, config.sampling
    ).is_learned


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
    "process.schedule=custom": "betas are given for custom",
    "process.betas=(0.1,)": "betas are given for custom, and only then",
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
    "loss.kind=variational loss.norm=l1": "of the prediction's error",
    "loss.kind=hybrid process.variance=learned loss.weighting=variational": (
        "for learned ones set loss.kind to variational"
    ),
}


@pytest.mark.parametrize("fields", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(fields):
    """Before a plan is made: nothing compiled, nothing written."""
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
