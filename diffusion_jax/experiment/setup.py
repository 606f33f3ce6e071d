"""The plan of a run: all that can be known, and refused, before anything starts."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.data import sources
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler, validation
from diffusion_jax.runtime import devices, environment
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.progress import ProgressBar


class Plan(NamedTuple):
    """A checked config and the parts that it describes.

    Attributes:
      config: the experiment.
      data: its examples.
      init_fn: init_fn(key) gives the parameters of its network.
      model: its network, with the noise process and what it predicts.
      loss_fn: its loss.
      preview: how the pictures are sampled that are drawn while it trains.
    """

    config: Config
    data: sources.DataSet
    init_fn: Callable[[jax.Array], Any]
    model: Model
    loss_fn: build.LossFn
    preview: SamplingConfig


def make_plan(
    config: Config, data: sources.DataSet | None = None, *, prepare: bool = True
) -> Plan:
    """Check a config against its data and the devices; nothing is compiled or written.

    Args:
      config: the experiment.
      data: examples of the caller's own; otherwise those of `config.data.source`.
      prepare: whether to download and prepare a tfds set that is not there.

    Raises:
      BadRequest: naming what does not fit.
    """
    environment.check()
    validation.check(config)
    model = build.without_network(config.process)
    build_sampler.make_table(model, build_sampler.before_choice(config.sampling))
    with values_refused():
        devices.check_batch_size("data.batch_size", config.data.batch_size)
        if data is None:
            with _progress() as progress:
                data = sources.open_data_set(
                    config.data, config.seed, prepare=prepare, progress=progress
                )
    if not config.data.channels:
        channels = dataclasses.replace(config.data, channels=data.shape[-1])
        config = dataclasses.replace(config, data=channels)
    if data.shape != config.data.shape:
        raise BadRequest(
            f"data.image_size {config.data.image_size} and data.channels "
            f"({config.data.channels}) say that an example has the shape "
            f"{config.data.shape}, but those of {config.data.source} have {data.shape}"
        )
    preview = SamplingConfig(
        sampler="ddim",
        steps=min(config.training.sample_steps, config.process.num_timesteps),
        threshold=config.sampling.threshold,
        dynamic_percentile=config.sampling.dynamic_percentile,
    )
    init_fn, apply_fn = build.make_network(config)
    model = dataclasses.replace(model, apply_fn=apply_fn)
    loss_fn = build.make_loss(config, model)
    return Plan(config, data, init_fn, model, loss_fn, preview)


def load_data(plan: Plan) -> Plan:
    """The plan with its images decoded, if they fit into memory.

    Raises:
      BadRequest: if some cannot be read, unless the config skips them.
    """
    with _progress() as progress:
        data = sources.into_memory(plan.data, plan.config.data, progress)
    return plan._replace(data=data)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """progress(what, done, total): a bar for each `what`."""
    bars: dict[str, ProgressBar] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = ProgressBar(what, total, "images")
        bars[what].report(done)
        if done == total:
            bars.pop(what).close()

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
