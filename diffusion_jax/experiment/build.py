"""The parts that a config describes: schedule, loss, network.

The trainer and the sampling command both start here. Whatever the maths refuses
(a beta of 2, more steps than T) comes out as BadRequest.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax import networks
from diffusion_jax.config import Config, ProcessConfig, UNetConfig
from diffusion_jax.diffusion import loss_weighting, losses, schedules
from diffusion_jax.diffusion.batch import AUG_LEVEL, LOW_RES
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.parameterization import NEED_SIGNAL
from diffusion_jax.diffusion.schedules import Schedule
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest

LossFn = Callable[..., jax.Array]


def make_schedule(process: ProcessConfig) -> Schedule:
    """The noise process of a config.

    Raises:
      BadRequest: for T < 2, a beta outside (0, 1), or an unknown schedule.
    """
    with values_refused():
        if process.schedule == "custom":
            betas = np.array(process.betas)
        else:
            betas = schedules.named_betas(
                process.schedule,
                process.num_timesteps,
                process.beta_start,
                process.beta_end,
            )
        if process.log_snr_shift:
            betas = schedules.shift_log_snr(betas, process.log_snr_shift)
        if process.zero_terminal_snr:
            betas = schedules.rescale_zero_terminal_snr(betas)
        schedule = schedules.make_schedule(betas)
    if schedule.has_zero_terminal_snr and process.prediction in NEED_SIGNAL:
        raise BadRequest(
            f"process.prediction ({process.prediction!r}) cannot be used with a zero "
            f"terminal signal-to-noise ratio (process.schedule {process.schedule!r}, "
            f"process.zero_terminal_snr {process.zero_terminal_snr}), where it does not "
            "determine x_0; set it to v or x0"
        )
    return schedule


def make_loss(config: Config, model: Model) -> LossFn:
    """Return the loss of a config: loss_fn(params, batch, draw, *, key=None) -> [B].

    Raises:
      BadRequest: for a parameter that a weighting refuses.
    """
    loss = config.loss
    if loss.kind == "variational":
        return functools.partial(losses.variational_loss, model)
    distance = make_distance(config, model)
    if loss.kind == "prediction":
        return functools.partial(losses.prediction_loss, model, distance=distance)
    return functools.partial(
        losses.hybrid_loss,
        model,
        distance=distance,
        variational_scale=loss.variational_scale,
    )


def make_distance(config: Config, model: Model) -> losses.Distance:
    """Return the distance of a prediction from its target in a config's loss.

    Raises:
      BadRequest: for a parameter that a weighting refuses.
    """
    loss, weights = config.loss, None
    if loss.weighting != "simple":
        with values_refused():
            parameters = loss_weighting.Parameters(
                loss.min_snr_gamma, loss.p2_gamma, loss.p2_k, loss.sigmoid_bias
            )
            weights = loss_weighting.loss_weights(model, loss.weighting, parameters)
    return losses.Distance(loss.norm, loss.huber_delta, weights)


def make_network(
    config: Config, *, platform: str | None = None
) -> tuple[Callable[[jax.Array], Any], Callable[..., jax.Array]]:
    """Return (init_fn, apply_fn) of a config's network; see `networks.as_functions`.

    Args:
      config: has the kind of network, its size, and its channels.
      platform: platform to compile for ("cpu", "cuda", "tpu", ...) if it is another than
        that of JAX's default backend; see `networks.UNet`.
    """
    kind = networks.UNet if isinstance(config.model, UNetConfig) else networks.MLP
    channels = config.data.channels * (2 if config.process.variance == "learned" else 1)
    options = dataclasses.asdict(config.model)
    options["num_classes"] = config.data.num_classes if config.data.labels else 0
    if platform and kind is networks.UNet:
        options["platform"] = platform
    module = kind(out_channels=channels, **options)
    return networks.as_functions(module, config.data.shape, _cond_shapes(config))


def _cond_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape, for one example, of conditions that change a network's params."""
    if not config.data.low_res:
        return {}
    return {LOW_RES: config.data.low_res_shape, AUG_LEVEL: ()}


def without_network(process: ProcessConfig) -> Model:
    """Return the model of a config without its network: what samplers' tables need.

    Raises:
      BadRequest: as `make_schedule`.
    """
    return Model(make_schedule(process), process.prediction, process.variance)


def make_model(config: Config) -> Model:
    """Return the model of a config, with its network.

    Raises:
      BadRequest: as `make_schedule`.
    """
    _, apply_fn = make_network(config)
    return dataclasses.replace(without_network(config.process), apply_fn=apply_fn)
