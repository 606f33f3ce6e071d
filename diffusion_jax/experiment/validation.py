"""What a user wrote, checked: one line that names the field, its value and the remedy."""

import re
import reprlib
from typing import Any

from diffusion_jax.config import check_types
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.loss_weighting import WEIGHTINGS
from diffusion_jax.diffusion.losses import NORMS
from diffusion_jax.diffusion.parameterization import PREDICTION_TYPES, VARIANCES
from diffusion_jax.diffusion.schedules import SCHEDULES
from diffusion_jax.diffusion.timestep_sampling import MAX_STRATA, TIMESTEP_SAMPLERS
from diffusion_jax.runtime.checks import check_choice
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.samplers.methods import METHODS
from diffusion_jax.samplers.thresholding import THRESHOLDS
from diffusion_jax.samplers.timesteps import AUTO, SPACINGS, check_timesteps

MIN_STD, MAX_STD = 0.015, 0.25  # Of averages that snapshots of others can rebuild well.
# What no machine holds: of images, levels of a U-Net, averages, calls of a chain, networks.
_MAX_SIZE, _MAX_LEVELS, _MAX_AVERAGES, _MAX_CALLS = 2**14, 15, 100, 10**7
_MAX_BLOCKS, _MAX_PARAMETERS, _MAX_ARRAY = 1000, 2**33, 2**38


def check(config: Any) -> None:
    """Checks every field of a Config that can be checked without data or devices.

    Raises:
      BadRequest: naming the field, its value and what it can be.
    """
    check_types(config)
    if not re.fullmatch(r"[\w.-]*\w", config.name):
        raise BadRequest(
            f"name ({config.name!r}) names the run's folder: letters, digits, _ . -"
        )
    for path, (low, high) in _RANGES.items():
        value = _get(config, path)
        if value is not None and not low <= value <= high:
            raise BadRequest(f"{path} ({value}) must be in {low} .. {high}")
    for name in ("beta_start", "beta_end"):
        beta = getattr(config.process, name)
        if not 0 < beta < 1:
            raise BadRequest(
                f"process.{name} ({beta}) must be between 0 and 1, both excluded"
            )
    for path, choices in _CHOICES.items():
        value = _get(config, path)
        if value is not None:
            check_choice(path, value, choices)
    _check_loss(config)
    if config.optimizer.learning_rate == 0:
        raise BadRequest("optimizer.learning_rate (0.0) must be above 0")
    _check_averages(config.ema)
    training = config.training
    if training.likelihood_every and not kind_of(config.data).has_levels:
        raise BadRequest(
            f"training.likelihood_every ({training.likelihood_every}) is for images on 256 "
            "levels, and these are points: set it to 0"
        )
    if training.best_by == "bits_per_dim" and not training.likelihood_every:
        raise BadRequest(
            "training.best_by ('bits_per_dim') needs training.likelihood_every above 0"
        )
    size = config.data.image_size
    if len(size) > 2 or not all(1 <= n <= _MAX_SIZE for n in size):
        raise BadRequest(
            f"data.image_size {_text(size)} must be (size,) or (height, width), each in "
            f"1 .. {_MAX_SIZE}, or () for points"
        )
    if config.sampling.steps > config.process.num_timesteps and not (
        config.sampling.timesteps
    ):
        raise BadRequest(
            f"sampling.steps ({config.sampling.steps}) must be at most "
            f"process.num_timesteps ({config.process.num_timesteps})"
        )
    calls = config.sampling.steps * (1 + config.sampling.langevin_steps)
    if calls > _MAX_CALLS:
        raise BadRequest(
            f"sampling.langevin_steps ({config.sampling.langevin_steps}) after each of "
            f"{config.sampling.steps:,} steps makes {calls:,} calls of the network; "
            f"at most {_MAX_CALLS:,} are possible"
        )
    if config.sampling.timesteps:
        try:
            check_timesteps(config.sampling.timesteps, config.process.num_timesteps)
        except ValueError as error:
            raise BadRequest(f"sampling.timesteps: {error}") from error
    elif config.sampling.spacing == AUTO and not kind_of(config.data).has_levels:
        raise BadRequest(
            "sampling.spacing ('auto') is chosen by the likelihood of images; these are "
            "points; take another spacing"
        )
    elif config.sampling.spacing == "ddim_quadratic" and (
        config.sampling.sampler not in ("ddpm", "ddim")
    ):
        raise BadRequest(
            "sampling.spacing ('ddim_quadratic') repeats timesteps, which sampler "
            f"{config.sampling.sampler} cannot; take ddpm or ddim, or another spacing"
        )
    if config.data.random_flip and not kind_of(config.data).can_flip:
        raise BadRequest("data.random_flip (True) is for images, not for points")
    if hasattr(config.model, "channel_mults"):
        _check_unet(config)
    elif not isinstance(config.model, kind_of(config.data).network):
        raise BadRequest(
            f"data.image_size {config.data.image_size} is that of an image, but the "
            "config's model is an MLP, for points: it needs a UNetConfig"
        )
    _check_network_size(config)


def _check_averages(ema: Any) -> None:
    count = len(ema.more_decays) + len(ema.stds)
    if count > _MAX_AVERAGES:
        raise BadRequest(
            f"ema.more_decays and ema.stds ({count:,} of them) must be at most "
            f"{_MAX_AVERAGES}: each is a whole network"
        )
    for path, rates in (("decay", (ema.decay,)), ("more_decays", ema.more_decays)):
        for rate in rates:
            if not 0 <= rate < 1:
                raise BadRequest(
                    f"ema.{path} ({rate}) must be at least 0 and below 1; DDPM uses 0.9999"
                )
    for std in ema.stds:
        if not MIN_STD <= std <= MAX_STD:
            raise BadRequest(f"ema.stds ({std}) must be in {MIN_STD} .. {MAX_STD}")
    names = [float(x) for x in (ema.decay, *ema.more_decays)], [float(x) for x in ema.stds]
    for path, values in zip(("decay and ema.more_decays", "stds"), names, strict=True):
        if len(set(values)) < len(values):
            raise BadRequest(f"ema.{path} ({values}) must all be different")


def _check_loss(config: Any) -> None:
    process, loss = config.process, config.loss
    if bool(process.betas) != (process.schedule == "custom"):
        raise BadRequest(
            f"process.schedule ({process.schedule!r}) and process.betas "
            f"({len(process.betas)} of them): betas are given for custom, and only then"
        )
    if process.betas and len(process.betas) != process.num_timesteps:
        raise BadRequest(
            f"process.betas has {len(process.betas)} values, and process.num_timesteps "
            f"is {process.num_timesteps}: there must be one for each timestep"
        )
    learned = process.variance == "learned"
    if learned and loss.kind == "prediction":
        raise BadRequest(
            "process.variance ('learned') is trained by the bound alone: set loss.kind "
            "to hybrid or variational"
        )
    if loss.kind == "hybrid" and not learned:
        raise BadRequest(
            f"loss.kind ('hybrid') trains learned variances, and process.variance is "
            f"{process.variance!r}: set that to learned, or loss.kind to prediction"
        )
    if config.sampling.variance == "learned" and not learned:
        raise BadRequest(
            f"sampling.variance ('learned') needs a network that has learned it; "
            f"process.variance is {process.variance!r}"
        )
    if loss.kind != "prediction" and not kind_of(config.data).has_levels:
        raise BadRequest(
            f"loss.kind ({loss.kind!r}) is the likelihood of 8-bit images, not of points"
        )
    if loss.kind == "variational" and (loss.weighting, loss.norm) != ("simple", "l2"):
        raise BadRequest(
            f"loss.weighting ({loss.weighting!r}) and loss.norm ({loss.norm!r}) are of "
            "the prediction's error, which loss.kind 'variational' does not use"
        )
    if loss.timesteps == "stratified":
        most = MAX_STRATA // process.num_timesteps
        if config.data.batch_size > most:
            raise BadRequest(
                f"data.batch_size ({config.data.batch_size}) must be at most {most} for "
                f"stratified timesteps out of {process.num_timesteps}"
            )
    if loss.weighting == "variational" and learned:
        raise BadRequest(
            "loss.weighting ('variational') is the bound of fixed variances; for "
            "learned ones set loss.kind to variational"
        )


def _check_unet(config: Any) -> None:
    model = config.model
    if not isinstance(model, kind_of(config.data).network):
        raise BadRequest(
            "data.image_size () is that of points, but the config's model is a "
            "U-Net: it needs an MLPConfig"
        )
    mults = model.channel_mults
    if not 1 <= len(mults) <= _MAX_LEVELS or not 1 <= min(mults) <= max(mults) <= 2**14:
        raise BadRequest(
            f"model.channel_mults {_text(mults)} must hold one width, in 1 .. {2**14}, for "
            f"each of at most {_MAX_LEVELS} levels"
        )
    factor = 2 ** (len(model.channel_mults) - 1)
    if any(n % factor for n in config.data.image_size):
        raise BadRequest(
            f"data.image_size {config.data.image_size} must divide by {factor}, "
            f"because model.channel_mults {model.channel_mults} has "
            f"{len(model.channel_mults)} levels; resize, or take fewer levels"
        )
    heights = [config.data.image_size[0] >> i for i in range(len(model.channel_mults))]
    for resolution in model.attn_resolutions:
        if resolution not in heights:
            raise BadRequest(
                f"model.attn_resolutions {_text(model.attn_resolutions)} must be among the "
                f"heights of the levels, {heights}; () is attention in the middle only"
            )
    for mult in model.channel_mults:
        width = model.base_channels * mult
        for path in ("num_groups", "num_heads"):
            if width % getattr(model, path):
                raise BadRequest(
                    f"model.{path} ({getattr(model, path)}) must divide every "
                    f"width, and one is {width} (base_channels * {mult})"
                )


def _check_network_size(config: Any) -> None:
    """Refuse a network that no machine holds, or that takes hours to compile."""
    model = config.model
    if hasattr(model, "channel_mults"):
        widths = [model.base_channels * mult for mult in model.channel_mults]
        a_level = 2 * model.num_res_blocks + 1
        blocks = a_level * len(widths)
        parameters = a_level * sum(18 * width**2 for width in widths)
        height, width = (config.data.image_size * 2)[:2]
        largest = max((height >> i) * (width >> i) * w for i, w in enumerate(widths))
        fields = "model.base_channels, channel_mults and num_res_blocks"
        if blocks > _MAX_BLOCKS:
            raise BadRequest(
                f"model.num_res_blocks ({model.num_res_blocks}) gives {blocks:,} blocks at "
                f"{len(widths)} levels, 2 n + 1 at each; at most {_MAX_BLOCKS:,} are "
                "possible"
            )
    else:
        parameters = 3 * model.num_blocks * model.width**2
        largest, fields = model.width, "model.width and num_blocks"
    if parameters > _MAX_PARAMETERS:
        raise BadRequest(
            f"{fields} give a network of about {parameters:,} parameters, which no machine "
            f"holds; at most {_MAX_PARAMETERS:,} are possible"
        )
    if 4 * largest > _MAX_ARRAY:
        raise BadRequest(
            f"data.image_size {config.data.image_size} gives feature maps of "
            f"{4 * largest / 2**30:,.0f} GiB for one image, which no machine holds"
        )


def _text(value: object) -> str:
    """A value for a message, cut short where it is long."""
    return reprlib.repr(value)


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "data.channels": (0, 4096),
    "data.held_out_fraction": (0.0001, 0.5),
    "data.memory_gib": (0, 2**20),
    "data.num_workers": (0, 256),
    "data.batch_size": (1, 2**20),
    "model.base_channels": (4, 2**14),
    "model.num_res_blocks": (1, 100),
    "model.num_heads": (1, 2**14),
    "model.num_groups": (1, 2**14),
    "model.dropout": (0, 0.99),
    "model.width": (4, 2**16),
    "model.num_blocks": (0, 1000),
    "process.num_timesteps": (2, 10**6),
    "process.log_snr_shift": (-10, 10),
    "loss.huber_delta": (1e-6, 1e6),
    "loss.min_snr_gamma": (1e-6, 1e12),
    "loss.p2_gamma": (0, 100),
    "loss.p2_k": (1e-6, 1e12),
    "loss.sigmoid_bias": (-30, 30),
    "loss.variational_scale": (0, 1e6),
    "optimizer.learning_rate": (0, 1),
    "optimizer.b1": (0, 0.9999999),
    "optimizer.b2": (0, 0.9999999),
    "optimizer.eps": (0, 1),
    "optimizer.weight_decay": (0, 1),
    "optimizer.warmup_steps": (0, 2**31 - 1),
    "optimizer.grad_clip": (0, 10**9),
    "training.num_steps": (1, 2**31 - 1),
    "ema.snapshots": (0, 10**4),
    "training.steps_per_dispatch": (0, 10**4),
    "training.log_every": (1, 2**31 - 1),
    "training.eval_every": (0, 2**31 - 1),
    "training.likelihood_every": (0, 2**31 - 1),
    "training.likelihood_timesteps": (1, 2**31 - 1),
    "training.checkpoint_every": (0, 2**31 - 1),
    "training.sample_every": (0, 2**31 - 1),
    "training.num_held_out": (1, 2**31 - 1),
    "training.num_samples": (1, 2**16),
    "training.sample_steps": (1, 2**31 - 1),
    "training.keep_checkpoints": (1, 10**6),
    "training.max_skipped_in_a_row": (1, 2**31 - 1),
    "sampling.steps": (1, 2**31 - 1),
    "sampling.eta": (0, 1),
    "sampling.churn": (0, 10**6),
    "sampling.langevin_steps": (0, 10**4),
    "sampling.langevin_step_size": (1e-6, 1),
    "sampling.dynamic_percentile": (0, 1),
    "sampling.batch_size": (1, 2**20),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "data.resize": ("crop", "squash"),
    "data.unreadable": ("refuse", "skip"),
    "model.dtype": ("float32", "bfloat16"),
    "process.schedule": (*SCHEDULES, "custom"),
    "process.prediction": PREDICTION_TYPES,
    "process.variance": VARIANCES,
    "loss.kind": ("prediction", "hybrid", "variational"),
    "loss.norm": NORMS,
    "loss.weighting": tuple(WEIGHTINGS),
    "loss.timesteps": TIMESTEP_SAMPLERS,
    "training.best_by": ("held_out_loss", "bits_per_dim"),
    "optimizer.name": ("adam", "adamw"),
    "optimizer.decay": ("constant", "cosine", "inverse_sqrt"),
    "sampling.sampler": tuple(METHODS),
    "sampling.spacing": ("", *SPACINGS, AUTO),
    "sampling.variance": ("", *VARIANCES),
    "sampling.threshold": THRESHOLDS,
}


def _get(config: Any, path: str) -> Any:
    """The value at "section.field"; None where this model has no such field."""
    for part in path.split("."):
        config = getattr(config, part, None)
    return config
