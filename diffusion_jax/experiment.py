"""From a config to the parts that it describes: schedule, network, sampler.

The trainer and the sampling command both start here. Whatever the maths refuses
(a beta of 2, more steps than T) comes out as BadRequest.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax import losses, networks, parallel, schedules, weightings
from diffusion_jax.config import (
    Config,
    ProcessConfig,
    SamplingConfig,
    UNetConfig,
)
from diffusion_jax.samplers.chain import sample_chain
from diffusion_jax.samplers.steps import spaced_timesteps
from diffusion_jax.samplers.tables import SamplerTable, ddim_table, ddpm_table
from diffusion_jax.schedules import Schedule
from diffusion_jax.validation import BadRequest

LossFn = Callable[..., jax.Array]


def make_schedule(process: ProcessConfig) -> Schedule:
    """The noise process of a config.

    Raises:
      BadRequest: for T < 2, a beta outside (0, 1), or an unknown schedule.
    """
    with _values_refused():
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
        with _values_refused():
            weights = weightings.loss_weights(
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
    config: Config,
) -> tuple[Callable[[jax.Array], Any], Callable[..., jax.Array]]:
    """(init_fn, apply_fn) of a config's network; see `networks.as_functions`."""
    kind = networks.UNet if isinstance(config.model, UNetConfig) else networks.MLP
    channels = config.data.channels * (2 if config.process.variance == "learned" else 1)
    module = kind(out_channels=channels, **dataclasses.asdict(config.model))
    return networks.as_functions(module, config.data.shape)


def make_table(
    schedule: Schedule, process: ProcessConfig, sampling: SamplingConfig
) -> SamplerTable:
    """The sampler's table of a config.

    Raises:
      BadRequest: for more steps than T, eta outside 0 .. 1, or an unknown name.
    """
    with _values_refused():
        timesteps = spaced_timesteps(
            sampling.spacing, schedule.num_timesteps, sampling.steps
        )
        if sampling.sampler == "ddim":
            return ddim_table(
                schedule,
                timesteps,
                prediction_type=process.prediction,
                eta=sampling.eta,
            )
        if sampling.sampler == "ddpm":
            return ddpm_table(
                schedule,
                timesteps,
                prediction_type=process.prediction,
                variance_type=sampling.variance or process.variance,
            )
        raise ValueError(f"sampling.sampler {sampling.sampler!r} is unknown")


@contextlib.contextmanager
def _values_refused() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BadRequest(str(error)) from error


def make_sampler(
    config: Config,
    apply_fn: Callable[..., jax.Array],
    table: SamplerTable,
    mesh: jax.sharding.Mesh,
    *,
    frames: Sequence[int] = (),
    on_progress: Callable[[Any], None] | None = None,
) -> Callable[[Any, jax.Array, np.ndarray], tuple[jax.Array, jax.Array]]:
    """The whole chain as one compiled program, its batch split over the mesh.

    Args:
      config: of the run.
      apply_fn: its network.
      table: rows to run.
      mesh: the devices.
      frames: states to keep; see `sample_chain`.
      on_progress: called with the rows done, a hundred times a chain.

    Returns:
      sampler(params, key, sample_indices) -> (samples, frames), compiled at the first
      call with a batch of that size.
    """
    is_image = bool(config.data.image_size)

    def sampler(params: Any, key: jax.Array, sample_indices: jax.Array):
        return sample_chain(
            apply_fn,
            params,
            table,
            key,
            sample_indices,
            shape=config.data.shape,
            clip_x0=config.sampling.clip_x0 and is_image,
            frames=frames,
            progress_every=max(1, table.num_rows // 100),
            on_progress=on_progress,
        )

    whole, rows = parallel.replicated(mesh), parallel.split_batch(mesh)
    return jax.jit(
        sampler,
        in_shardings=(whole, whole, rows),
        out_shardings=(rows, parallel.split_batch(mesh, axis=1)),
    )
