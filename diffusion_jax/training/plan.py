"""The plan of a run: all that can be known, and refused, before anything starts."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffusion_jax import experiment, parallel
from diffusion_jax.config import BadRequest, Config, SamplingConfig, check_choice
from diffusion_jax.data import sources
from diffusion_jax.schedules import Schedule


class Plan(NamedTuple):
    """A checked config and the parts that it describes.

    Attributes:
      config: the experiment.
      data: its examples.
      schedule: its noise process.
      init_fn, apply_fn: its network.
      preview: how the pictures are sampled that are drawn while it trains.
    """

    config: Config
    data: sources.DataSet
    schedule: Schedule
    init_fn: Callable[[jax.Array], Any]
    apply_fn: Callable[..., jax.Array]
    preview: SamplingConfig


def make_plan(config: Config, data: sources.DataSet | None = None) -> Plan:
    """Checks a config against its data and the devices; nothing is compiled or written.

    Args:
      config: the experiment.
      data: examples of the caller's own; otherwise those of `config.data.source`.

    Raises:
      BadRequest: naming what does not fit.
    """
    config.validate()
    try:
        parallel.check_batch_size("data.batch_size", config.data.batch_size)
        if data is None:
            check_choice("data.source", config.data.source, sources.SOURCES)
            data = sources.open_data_set(config.data.source, config.seed)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if data.shape != config.data.shape:
        raise BadRequest(
            f"data.image_size {config.data.image_size} and data.channels "
            f"({config.data.channels}) say that an example has the shape "
            f"{config.data.shape}, but those of {config.data.source} have {data.shape}"
        )
    schedule = experiment.make_schedule(config.process)
    preview = dataclasses.replace(
        config.sampling,
        sampler="ddim",
        steps=min(config.training.sample_steps, config.process.num_timesteps),
        spacing="trailing",
        eta=0.0,
    )
    experiment.make_table(schedule, config.process, config.sampling)
    init_fn, apply_fn = experiment.make_network(config)
    return Plan(config, data, schedule, init_fn, apply_fn, preview)
