"""Rules between the fields of a config; a refusal names field, value and remedy."""

import math
import re
from typing import Any

from diffusion_jax.data.kinds import PICTURES, kind_of
from diffusion_jax.diffusion.timestep_sampling import MAX_STRATA
from diffusion_jax.experiment.feature_names import metric_names
from diffusion_jax.runtime.checks import check_choice
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import check_types, check_values, text
from diffusion_jax.samplers.methods import REPEATING
from diffusion_jax.samplers.timesteps import AUTO, check_timesteps

# Limits of images, levels of a U-Net, averages, and calls of a chain.
_MAX_SIZE, _MAX_LEVELS, _MAX_AVERAGES, _MAX_CALLS = 2**14, 15, 100, 10**7
# Limits of a network: blocks, parameters, and bytes of one array; no machine holds more.
_MAX_BLOCKS, _MAX_PARAMETERS, _MAX_ARRAY = 1000, 2**33, 2**38


def check(config: Any) -> None:
    """Check every field of a Config that can be checked without data or devices.

    Raises:
      BadRequest: naming the field, its value and what it can be.
    """
    check_types(config)
    if not re.fullmatch(r"[\w.-]*\w", config.name):
        raise BadRequest(
            f"name ({config.name!r}) must be of letters, digits, _ . - (it names the run's "
            "folder), and not end in . or -"
        )
    check_values(config)
    _check_loss(config)
    _check_averages(config.ema)
    _check_training(config)
    _check_shape(config.data)
    _check_labels(config.data)
    _check_sampling(config)
    kind = kind_of(config.data)
    if config.data.random_flip and not kind.can_flip:
        raise BadRequest(f"data.random_flip (True) is not for {kind.name}; set it to False")
    if not isinstance(config.model, kind.network):
        raise BadRequest(
            f"the config's model is a {type(config.model).__name__}, but its examples are "
            f"{kind.name} (data.image_size {config.data.image_size}, data.sound_length "
            f"{config.data.sound_length}); change these, or give it a "
            f"{kind.network.__name__}"
        )
    if hasattr(config.model, "channel_mults"):
        _check_unet(config)
    _check_network_size(config)


def _check_shape(data: Any) -> None:
    size = data.image_size
    if len(size) > 2 or not all(1 <= n <= _MAX_SIZE for n in size):
        raise BadRequest(
            f"data.image_size {text(size)} must be (size,) or (height, width), each in "
            f"1 .. {_MAX_SIZE}, or () for points and sounds"
        )
    if data.sound_length and size:
        raise BadRequest(
            f"data.sound_length ({data.sound_length}) is for sounds, and data.image_size "
            f"{size} for images: set that to (), or data.sound_length to 0"
        )
    if data.sound_length and data.num_frames:
        raise BadRequest(
            f"data.sound_length ({data.sound_length}) of sounds has no frames, and "
            f"data.num_frames is {data.num_frames}: set one of them to 0"
        )
    if data.num_frames and not size:
        raise BadRequest(
            f"data.num_frames ({data.num_frames}) is for clips, which need the height and "
            "width of a frame: set data.image_size"
        )
    _check_reduction(data)
    if data.sound_length and data.channels > 2:
        raise BadRequest(
            f"data.channels ({data.channels}) of sounds must be 1 (mono), 2 (stereo) or 0 "
            "(as the sounds have)"
        )


def _check_reduction(data: Any) -> None:
    """Refuse what is not an image, and sizes that are not whole multiples."""
    kind = kind_of(data)
    for asked, large, small in (
        ("low_res", "image_size", "low_res"),
        ("reduced_from", "reduced_from", "image_size"),
    ):
        sizes = [getattr(data, field) for field in (large, small)]
        if not getattr(data, asked):
            continue
        if kind is not PICTURES:
            raise BadRequest(
                f"data.{asked} {text(getattr(data, asked))} is for images, and these are "
                f"{kind.name}; leave it out"
            )
        of_images = [size * 2 if len(size) == 1 else size for size in sizes]
        fits = all(len(size) == 2 and min(size) >= 1 for size in of_images) and all(
            m > n and m % n == 0 for m, n in zip(*of_images, strict=True)
        )
        if not fits:
            raise BadRequest(
                f"data.{large} {text(sizes[0])} must be a whole multiple of data.{small} "
                f"{text(sizes[1])}, two or more times as large: each pixel of low "
                "resolution is the mean of a block"
            )


def _check_labels(data: Any) -> None:
    if data.labels and data.num_classes == 1:
        raise BadRequest(
            "data.num_classes (1) must be at least 2, or 0 for as many as the data has"
        )
    if data.labels and data.label_file and data.source != "folder":
        raise BadRequest(
            f"data.label_file ({data.label_file!r}) is for data.source folder, and it is "
            f"{data.source!r}; leave it empty"
        )


def _check_training(config: Any) -> None:
    training = config.training
    if config.data.batch_size % config.optimizer.accumulate:
        raise BadRequest(
            f"optimizer.accumulate ({config.optimizer.accumulate}) must divide "
            f"data.batch_size ({config.data.batch_size})"
        )
    kind = kind_of(config.data)
    bound_every = training.likelihood_every or training.likelihood_every_epochs
    quality_every = training.quality_every or training.quality_every_epochs
    if bound_every and not kind.has_levels:
        raise BadRequest(
            f"training.likelihood_every ({bound_every}) is for images on 256 "
            f"levels, and these are {kind.name}: set it to 0"
        )
    if training.best_by == "bits_per_dim" and not bound_every:
        raise BadRequest(
            "training.best_by ('bits_per_dim') needs training.likelihood_every above 0"
        )
    names = tuple(metric_names(config).values()) if quality_every else ()
    if training.best_by.startswith(("fd_", "kid_")) and not names:
        raise BadRequest(
            f"training.best_by ({training.best_by!r}) needs training.quality_every above 0"
        )
    known = ("held_out_loss", "bits_per_dim", *names)
    check_choice("training.best_by", training.best_by, known)


def _check_sampling(config: Any) -> None:
    interval = config.sampling.guidance_interval
    if interval and not (len(interval) == 2 and interval[0] < interval[1]):
        raise BadRequest(
            f"sampling.guidance_interval {text(interval)} must be two numbers that rise, "
            "such as (0.3, 5.0)"
        )
    level, largest = config.sampling.aug_level, config.loss.aug_level
    if config.data.low_res and level > largest:
        raise BadRequest(
            f"sampling.aug_level ({level:g}) must be at most loss.aug_level ({largest:g}), "
            "the largest level that the network is trained with"
        )
    if config.sampling.steps > config.process.num_timesteps and not (
        config.sampling.timesteps
    ):
        raise BadRequest(
            f"sampling.steps ({config.sampling.steps}) must be at most "
            f"process.num_timesteps ({config.process.num_timesteps})"
        )
    steps = len(config.sampling.timesteps) or config.sampling.steps
    calls = steps * (1 + config.sampling.langevin_steps)
    if calls > _MAX_CALLS:
        raise BadRequest(
            f"sampling.langevin_steps ({config.sampling.langevin_steps}) after each of "
            f"{steps:,} steps makes {calls:,} calls of the network; "
            f"at most {_MAX_CALLS:,} are possible"
        )
    if config.sampling.timesteps:
        try:
            check_timesteps(config.sampling.timesteps, config.process.num_timesteps)
        except ValueError as error:
            raise BadRequest(f"sampling.timesteps: {error}") from error
    elif config.sampling.spacing == AUTO and not kind_of(config.data).has_levels:
        raise BadRequest(
            "sampling.spacing ('auto') chooses by the likelihood of images, but these are "
            f"{kind_of(config.data).name}; take another spacing"
        )
    elif config.sampling.spacing == "ddim_quadratic" and (
        config.sampling.sampler not in REPEATING
    ):
        raise BadRequest(
            "sampling.spacing ('ddim_quadratic') repeats timesteps, which sampler "
            f"{config.sampling.sampler} cannot; take {' or '.join(REPEATING)}, or another "
            "spacing"
        )


def _check_averages(ema: Any) -> None:
    count = len(ema.more_decays) + len(ema.stds)
    if count > _MAX_AVERAGES:
        raise BadRequest(
            f"ema.more_decays and ema.stds ({count:,} of them) must be at most "
            f"{_MAX_AVERAGES}: each is a whole network"
        )
    names = [float(x) for x in (ema.decay, *ema.more_decays)], [float(x) for x in ema.stds]
    for path, values in zip(("decay and ema.more_decays", "stds"), names, strict=True):
        if len(set(values)) < len(values):
            raise BadRequest(f"ema.{path} ({values}) must all be different")


def _check_loss(config: Any) -> None:
    process, loss = config.process, config.loss
    if bool(process.betas) != (process.schedule == "custom"):
        raise BadRequest(
            f"process.betas ({len(process.betas)} values) must be given with "
            f"process.schedule 'custom', and only then; it is {process.schedule!r}"
        )
    if process.betas and len(process.betas) != process.num_timesteps:
        raise BadRequest(
            f"process.betas has {len(process.betas)} values, and process.num_timesteps "
            f"is {process.num_timesteps}: there must be one for each timestep"
        )
    learned = process.variance == "learned"
    if learned and loss.kind == "prediction":
        raise BadRequest(
            "process.variance ('learned') is trained by the bound only; set loss.kind "
            "to hybrid or variational"
        )
    if loss.kind == "hybrid" and not learned:
        raise BadRequest(
            f"loss.kind ('hybrid') trains learned variances, and process.variance is "
            f"{process.variance!r}: set that to learned, or loss.kind to prediction"
        )
    if config.sampling.variance == "learned" and not learned:
        raise BadRequest(
            "sampling.variance ('learned') needs a network that has learned it, but "
            f"process.variance is {process.variance!r}; take a fixed one"
        )
    if loss.kind != "prediction" and not kind_of(config.data).has_levels:
        raise BadRequest(
            f"loss.kind ({loss.kind!r}) is the likelihood of 8-bit images, not of "
            f"{kind_of(config.data).name}; set it to prediction"
        )
    if loss.kind == "variational" and (loss.weighting, loss.norm) != ("simple", "l2"):
        raise BadRequest(
            f"loss.weighting ({loss.weighting!r}) and loss.norm ({loss.norm!r}) have no "
            "effect with loss.kind 'variational'; set them to simple and l2"
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
    mults = model.channel_mults
    if not 1 <= len(mults) <= _MAX_LEVELS:
        raise BadRequest(
            f"model.channel_mults {text(mults)} must hold one multiple for each of at "
            f"most {_MAX_LEVELS} levels"
        )
    factor = 2 ** (len(model.channel_mults) - 1)
    kind = kind_of(config.data)
    space = config.data.shape[kind.space]
    if any(n % factor for n in space):
        raise BadRequest(
            f"{kind.sizes_in_words(config.data)[0]} must be divisible by {factor}, because "
            f"model.channel_mults {model.channel_mults} has {len(model.channel_mults)} "
            "levels; resize, or take fewer levels"
        )
    of_levels = [space[0] >> i for i in range(len(model.channel_mults))]
    for resolution in model.attn_resolutions:
        if resolution not in of_levels:
            raise BadRequest(
                f"model.attn_resolutions {text(model.attn_resolutions)} must be among the "
                f"{kind.side} of the levels, {of_levels}; () is attention in the middle "
                "only"
            )
    for mult in model.channel_mults:
        width = model.base_channels * mult
        for path in ("num_groups", "num_heads"):
            if width % getattr(model, path):
                raise BadRequest(
                    f"model.{path} ({getattr(model, path)}) must divide every "
                    f"width, and one is {width} (base_channels * {mult})"
                )


def _sizes_of_arrays(data: Any, model: Any, widths: list[int]) -> list[int]:
    """Numbers in each level's features of one example, and in the attention over space."""
    space, levels = data.shape[kind_of(data).space], range(len(widths))
    frames = math.prod(data.shape[:-1]) // math.prod(space)
    positions = [math.prod(n >> i for n in space) for i in levels]
    attended = {i for i in levels if space[0] >> i in model.attn_resolutions}
    attended.add(levels[-1])  # The attention in the middle.
    return [
        *(frames * n * w for n, w in zip(positions, widths, strict=True)),
        *(frames * model.num_heads * positions[i] ** 2 for i in attended),
    ]


def _check_network_size(config: Any) -> None:
    """Refuse a network that no machine holds, or that takes hours to compile."""
    model = config.model
    if hasattr(model, "channel_mults"):
        widths = [model.base_channels * mult for mult in model.channel_mults]
        a_level = 2 * model.num_res_blocks + 1
        blocks = a_level * len(widths)
        parameters = a_level * sum(18 * width**2 for width in widths)
        largest = max(_sizes_of_arrays(config.data, model, widths))
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
            f"data.image_size, num_frames and sound_length give examples of the shape "
            f"{config.data.shape} and feature maps or attention of "
            f"{4 * largest / 2**30:,.0f} GiB for each, which no machine holds"
        )
