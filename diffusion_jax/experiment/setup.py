"""The plan of a run: all that can be checked, and refused, before anything starts."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.data import sources
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler, epochs, validation
from diffusion_jax.runtime import devices, environment
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.text import say

# Network calls per example of a train step (the backward pass counts as two), and the
# share of all of them that sample grids may take.
_CALLS_PER_EXAMPLE, _PREVIEW_SHARE = 3, 0.1
_FEWEST_SAMPLES, _FEWEST_STEPS = 4, 10


class Plan(NamedTuple):
    """A checked config and the parts that it describes.

    Attributes:
      config: the experiment.
      data: its examples.
      init_fn: init_fn(key) returns the initial params of its network.
      model: its network, with the noise process and what it predicts.
      loss_fn: its loss.
      preview: sampling of the pictures that are drawn while it trains; see `preview_of`.
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
      data: the caller's own examples; if None, those of `config.data.source`.
      prepare: whether to download and prepare a tfds set that is not there.

    Raises:
      BadRequest: naming what does not fit.
    """
    environment.check()
    model = _checked_model(config, jax.device_count())
    with values_refused(), _progress() as progress:
        if data is None:
            data = sources.open_data_set(
                config.data, config.seed, prepare=prepare, progress=progress
            )
        else:
            data = sources.conditioned(data, config.data)
        if config.data.sound_length and not config.data.gain:
            config, data = _with_gain(config, data, progress)
    return _plan(config, data, model, jax.default_backend())


def _with_gain(
    config: Config, data: sources.DataSet, progress: sources.Progress
) -> tuple[Config, sources.DataSet]:
    """Return the config with the gain of its sounds, decoded if they fit into memory."""
    if sources.fits_in_memory(data, config.data):
        data = sources.into_memory(data, config.data, progress)
    peak = sources.loudest(data, config.data, progress)
    if not peak:
        raise BadRequest(
            f"{sources.where_from(config.data)}: all sounds to train on are silent, so "
            "that no data.gain makes the loudest value 1; give other sounds"
        )
    return _with_data(config, {"gain": 1 / peak}), data


def make_plan_of_shapes(config: Config, num_devices: int, platform: str) -> Plan:
    """Return the plan of a run on other devices, whose files are neither needed nor read.

    Examples of sources that read files have the shape of the config, and there are none
    of them; channels 0 ("as many as the data has") are 3, of sounds 2, and num_classes 0 is
    1,000.

    Args:
      config: the experiment.
      num_devices, platform: of the devices that the plan is for.

    Raises:
      BadRequest: naming what does not fit.
    """
    model = _checked_model(config, num_devices)
    if config.data.source in sources.EMBEDDED:
        data = sources.open_data_set(config.data, config.seed)
    else:
        config = _with_assumptions(config)
        none = np.zeros((0, *config.data.shape), kind_of(config.data).dtype)
        no_labels = np.zeros(0, np.int32) if config.data.labels else None
        data = sources.DataSet(none, none, config.data.shape, no_labels, no_labels)
        data = sources.conditioned_as(data, config.data)
    return _plan(config, data, model, platform)


def _with_assumptions(config: Config) -> Config:
    """Return the config with numbers in place of what only the data tell."""
    assumed: dict[str, Any] = {}
    if not config.data.channels:
        format = kind_of(config.data).file_format(config.data)
        assumed["channels"] = max(format.channels) if format else 3
        said = f"{assumed['channels']} channels are assumed"
        say(f"data.channels is 0, and the data are not read: {said}")
    if config.data.labels and not config.data.num_classes:
        say("data.num_classes is 0, and the data are not read: 1,000 classes are assumed")
        assumed["num_classes"] = 1000
    return _with_data(config, assumed)


def _with_epochs(config: Config, num_examples: int) -> Config:
    """Return the config with train steps in place of epochs."""
    if not epochs.are_used(config.training):
        return config
    if not num_examples:
        say("what is in epochs is not used, as the data are not read")
    size = config.data.batch_size
    training = epochs.in_train_steps(config.training, num_examples, size)
    return dataclasses.replace(config, training=training)


def _with_data(config: Config, values: Mapping[str, Any]) -> Config:
    if not values:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **values))


def _checked_model(config: Config, num_devices: int) -> Model:
    """Return the model without its network, after the checks that need no data."""
    validation.check(config)
    model = build.without_network(config.process)
    build_sampler.make_table(model, build_sampler.before_choice(config.sampling))
    with values_refused():
        size = config.data.batch_size
        devices.check_batch_size("data.batch_size", size, num_devices)
        part, name = size // config.optimizer.accumulate, "optimizer.accumulate"
        devices.check_batch_size(f"data.batch_size / {name}", part, num_devices)
    return model


def _plan(config: Config, data: sources.DataSet, model: Model, platform: str) -> Plan:
    of_data: dict[str, Any] = {}
    if not config.data.channels:
        of_data["channels"] = data.shape[-1]
    if config.data.labels and not config.data.num_classes:
        of_data["num_classes"] = data.num_classes
    config = _with_epochs(_with_data(config, of_data), len(data.train))
    if data.shape != config.data.shape:
        sizes = ", ".join(kind_of(config.data).sizes_in_words(config.data))
        raise BadRequest(
            f"{sizes} and data.channels "
            f"({config.data.channels}) say that an example has the shape "
            f"{config.data.shape}, but those of {config.data.source} have the shape "
            f"{data.shape}"
        )
    init_fn, apply_fn = build.make_network(config, platform=platform)
    model = dataclasses.replace(model, apply_fn=apply_fn)
    loss_fn = build.make_loss(config, model)
    return Plan(config, data, init_fn, model, loss_fn, preview_of(config))


def preview_of(config: Config) -> SamplingConfig:
    """Return the sampling of a run's sample grids: DDIM, with `batch_size` samples each.

    Each grid is drawn twice, with the raw weights and with the average. All grids of a run
    take at most a tenth of the network calls of its train steps: if the config asks for
    more, they have fewer samples, but at least 4, and then fewer steps, but at least 10.
    The least grid is drawn even where it takes more than the tenth.
    """
    training = config.training
    num_grids = max(1, times_due(training.sample_every, training.num_steps))
    calls = _CALLS_PER_EXAMPLE * training.num_steps * config.data.batch_size
    most = int(_PREVIEW_SHARE * calls / num_grids) // len(("raw weights", "average"))
    steps = min(training.sample_steps, config.process.num_timesteps)
    num = min(training.num_samples, max(most // steps, _FEWEST_SAMPLES))
    return ddim_sampling(config, min(steps, max(most // num, _FEWEST_STEPS)), num)


def ddim_sampling(config: Config, steps: int, batch_size: int) -> SamplingConfig:
    """Return the sampling while a run trains: DDIM, with the threshold of its config."""
    return SamplingConfig(
        sampler="ddim",
        steps=steps,
        threshold=config.sampling.threshold,
        dynamic_percentile=config.sampling.dynamic_percentile,
        batch_size=batch_size,
    )


def times_due(every: int, num_steps: int) -> int:
    """Return how many times in a run something at this interval, and at its end, is due."""
    return -(-num_steps // every) if every else 0


def load_data(plan: Plan) -> Plan:
    """Return the plan with its images decoded, if they fit into memory.

    Raises:
      BadRequest: if some cannot be read, unless the config skips them.
    """
    with _progress() as progress:
        data = sources.into_memory(plan.data, plan.config.data, progress)
    return plan._replace(data=data)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give progress(what, done, total), which shows a bar for each `what`."""
    bars: dict[str, ProgressBar] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = ProgressBar(what, total, "examples")
        bars[what].report(done)
        if done == total:
            bars.pop(what).close()

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
