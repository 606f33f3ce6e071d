"""What a config says reaches the parts that are made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import experiment, parallel
from diffusion_jax.config import Config, DataConfig, ProcessConfig, SamplingConfig
from diffusion_jax.samplers import steps, tables


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_config_decides_the_table(prediction):
    process = ProcessConfig(
        num_timesteps=50, beta_start=1e-3, beta_end=0.1, prediction=prediction
    )
    schedule = experiment.make_schedule(process)
    np.testing.assert_allclose(schedule.betas[[0, -1]], [1e-3, 0.1])
    chosen = steps.linspace_timesteps(50, 7)
    for sampler, options in (
        ("ddim", {"eta": 0.3}),
        ("ddpm", {"variance_type": "fixed_large"}),
    ):
        sampling = SamplingConfig(
            sampler=sampler, steps=7, spacing="linspace", eta=0.3, variance="fixed_large"
        )
        found = experiment.make_table(schedule, process, sampling)
        make = {"ddim": tables.ddim_table, "ddpm": tables.ddpm_table}[sampler]
        expected = make(schedule, chosen, prediction_type=prediction, **options)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_points_are_not_clipped_images_are():
    def far(params, x_t, t, cond, *, train, key):
        return jnp.full_like(x_t, 5.0)

    for data, end in ((DataConfig(image_size=(), channels=2), 5.0), (DataConfig(), 1.0)):
        config = Config(data=data, process=ProcessConfig(prediction="x0"))
        sampling = SamplingConfig(steps=4)
        schedule = experiment.make_schedule(config.process)
        table = experiment.make_table(schedule, config.process, sampling)
        sampler = experiment.make_sampler(config, far, table, parallel.make_mesh())
        samples, _ = sampler({}, jax.random.key(0), np.arange(4, dtype=np.int32))
        np.testing.assert_allclose(samples, end, rtol=1e-6)
