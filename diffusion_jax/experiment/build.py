"""From a config to the parts that it describes: schedule, loss, network.

The trainer and the sampling command both start here. Whatever the maths refuses
(a beta of 2, more steps than T) comes out as BadRequest.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax import networks
from diffusion_jax.config import Config, ProcessConfig, UNetConfig
from diffusion_jax.diffusion import loss_weighting, losses, schedules
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
    if schedule.has_zero_terminal_snr and process.prediction == "eps":
        raise BadRequest(
            "process.prediction ('eps') cannot be with a zero terminal signal-to-noise "
            f"ratio (process.schedule {process.schedule!r}, process.zero_terminal_snr "
            f"{process.zero_terminal_snr}), where the noise says nothing of x_0; "
            "set it to v or x0"
        )
    return schedule


def make_loss(config: Config, apply_fn: losses.ApplyFn, schedule: Schedule) -> LossFn:
    """The loss of a config: loss_fn(params, x0, t, noise, train=, key=) -> float32 [B].

    Raises:
      BadRequest: for a parameter that a weighting refuses.
    """
    process, loss = config.process, config.loss
    function: LossFn = losses.variational_loss
    if loss.kind == "variational":
        options: dict[str, Any] = {"variance_type": process.variance}
    else:
        with values_refused():
            weights = loss_weighting.loss_weights(
                schedule,
                process.prediction,
                loss.weighting,
                variance_type=process.variance,
                min_snr_gamma=loss.min_snr_gamma,
                p2_gamma=loss.p2_gamma,
                p2_k=loss.p2_k,
                sigmoid_bias=loss.sigmoid_bias,
            )
        function = losses.prediction_loss
        options = {
            "norm": loss.norm,
            "huber_delta": loss.huber_delta,
            "weights": None if loss.weighting == "simple" else weights,
        }
        if loss.kind == "hybrid":
            function = losses.hybrid_loss
            options["variational_scale"] = loss.variational_scale

    def loss_fn(params: Any, x0: jax.Array, t: jax.Array, noise: jax.Array, **dropout: Any):
        return function(
            apply_fn,
            params,
            schedule,
            x0,
            t,
            noise,
            prediction_type=process.prediction,
            **options,
            **dropout,
        )

    return loss_fn


def make_network(
    config: Config, *, platform: str | None = None
) -> tuple[Callable[[jax.Array], Any], Callable[..., jax.Array]]:
    """(init_fn, apply_fn) of a config's network; see `networks.as_functions`.

    Args:
      config: says the kind of network, its size, and its channels.
      platform: platform to compile for ("cpu", "cuda", "tpu", ...) if it is another than
        that of JAX's default backend; see `networks.UNet`.
    """
    kind = networks.UNet if isinstance(config.model, UNetConfig) else networks.MLP
    channels = config.data.channels * (2 if config.process.variance == "learned" else 1)
    options = dataclasses.asdict(config.model)
    if platform and kind is networks.UNet:
        options["platform"] = platform
    module = kind(out_channels=channels, **options)
    return networks.as_functions(module, config.data.shape)
