"""The typed configuration of one experiment, and the checks of what a user wrote in it.

`configs/NAME.py` returns a Config; the command line overrides single fields
(`--config.optimizer.learning_rate=1e-4`). Overrides are plain attribute assignments, so
the dataclasses are not frozen, and `Config.validate()` is called once after them. They
have slots, so that assigning to a field that does not exist is an error.
"""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterator
from typing import Any

from diffusion_jax.losses import NORMS
from diffusion_jax.predictions import PREDICTION_TYPES, VARIANCES
from diffusion_jax.samplers.steps import SPACINGS
from diffusion_jax.samplers.tables import SAMPLERS
from diffusion_jax.schedules import SCHEDULES
from diffusion_jax.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_jax.weightings import WEIGHTINGS


class BadRequest(Exception):
    """What the user asked for cannot be done; str() is one line that says why."""


@dataclasses.dataclass(slots=True)
class DataConfig:
    """Which examples, and how many at a time. docs/data.md explains each source."""

    # digits, swiss_roll, two_moons, eight_gaussians, folder (or a zip), npz, tfds:NAME
    source: str = "digits"
    path: str = ""  # Of the folder, .zip or .npz; for tfds: its data_dir, if not its own.
    image_size: tuple[int, ...] = (8,)  # (size,) or (height, width); () for points.
    channels: int = 1  # Image channels, or coordinates of a point; 0: as the data has.
    resize: str = "crop"  # To another shape: crop its middle, or squash.
    unreadable: str = "refuse"  # Images that cannot be read: refuse, skip.
    split: str = "train"  # tfds: what to train on, such as train or train[:90%].
    # tfds: a split; folder, npz: another path. "": the set's own, else a fraction.
    held_out: str = ""
    held_out_fraction: float = 0.02  # Of the examples, always the same ones.
    batch_size: int = 64  # Of one step, over all devices.
    random_flip: bool = False  # Mirror each training image with probability 1/2.
    memory_gib: float = 2.0  # Images that need more are read again for each batch,
    num_workers: int = 2  # by so many processes; 0: by threads of this one.

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (H, W, C), or (D,) for points."""
        size = self.image_size * 2 if len(self.image_size) == 1 else self.image_size
        return (*size, self.channels)


@dataclasses.dataclass(slots=True)
class UNetConfig:
    """The fields of `diffusion_jax.networks.UNet`, which explains them."""

    base_channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.1
    num_groups: int = 32
    scale_shift_norm: bool = False
    dtype: str = "float32"


@dataclasses.dataclass(slots=True)
class MLPConfig:
    """The fields of `diffusion_jax.networks.MLP`, which explains them."""

    width: int = 128
    num_blocks: int = 3
    dtype: str = "float32"


@dataclasses.dataclass(slots=True)
class ProcessConfig:
    """The noise process, and what the network says of its reverse."""

    # linear, cosine, quadratic, constant, sigmoid, jsd, or custom: the betas given here
    schedule: str = "linear"
    num_timesteps: int = 1000
    beta_start: float = 1e-4  # Of linear, quadratic and sigmoid.
    beta_end: float = 0.02  # Of those, and all along of constant.
    betas: tuple[float, ...] = ()  # Of custom: one for each timestep.
    log_snr_shift: float = 0.0  # Added to log SNR; 2 ln(64 / size) for larger pictures.
    zero_terminal_snr: bool = False  # Rescaled to end in pure noise; not with eps.
    prediction: str = "eps"  # eps, x0, v
    # Of the reverse step: fixed_small, fixed_large, learned (the network has twice the
    # channels, and the loss is of kind hybrid or variational).
    variance: str = "fixed_small"


@dataclasses.dataclass(slots=True)
class LossConfig:
    """What is made small: `diffusion_jax.losses` and `weightings` have the equations."""

    kind: str = "prediction"  # prediction, hybrid, variational
    norm: str = "l2"  # l2, l1, huber
    huber_delta: float = 1.0  # Where huber turns from squares to absolute values.
    # simple, snr, truncated_snr, min_snr, p2, sigmoid, variational, score_matching
    weighting: str = "simple"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    sigmoid_bias: float = 0.0
    variational_scale: float = 0.001  # Of the bound's part in the hybrid loss.
    timesteps: str = "uniform"  # uniform, stratified, loss_second_moment


@dataclasses.dataclass(slots=True)
class OptimizerConfig:
    """The optimiser and its learning rate over time."""

    name: str = "adam"  # adam, adamw
    learning_rate: float = 2e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # adamw only.
    warmup_steps: int = 5000  # Linear from 0.
    decay: str = "constant"  # After the warm-up: constant, cosine, inverse_sqrt
    grad_clip: float = 1.0  # Global norm; 0 is off.


@dataclasses.dataclass(slots=True)
class EMAConfig:
    """The moving average of the weights, which is what samples are drawn with."""

    decay: float = 0.9999
    warmup: bool = False  # min(decay, (1 + step) / (10 + step)), for short runs.


@dataclasses.dataclass(slots=True)
class TrainingConfig:
    """How long to train, and when to do what. Intervals are in steps; 0 is never."""

    num_steps: int = 800_000
    steps_per_dispatch: int = 10  # Train steps in one call of the compiled program.
    log_every: int = 100
    eval_every: int = 1000  # Held-out loss.
    checkpoint_every: int = 5000
    sample_every: int = 5000
    num_held_out: int = 2048  # Examples of the held-out loss: its third digit is good.
    num_samples: int = 64  # In each sample grid.
    sample_steps: int = 50  # DDIM steps of the sample grids while training.
    keep_checkpoints: int = 2  # The newest ones; the best by held-out loss stays too.


@dataclasses.dataclass(slots=True)
class SamplingConfig:
    """What `sample.py` does unless its flags say otherwise."""

    sampler: str = "ddpm"  # ddpm, ddim
    steps: int = 1000
    spacing: str = "trailing"  # trailing, linspace
    eta: float = 0.0  # ddim only.
    variance: str = ""  # ddpm only: another one than the process says.
    clip_x0: bool = True
    batch_size: int = 64


@dataclasses.dataclass(slots=True)
class Config:
    """One experiment."""

    name: str = "experiment"  # The run's folder is runs/NAME.
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: UNetConfig | MLPConfig = dataclasses.field(default_factory=UNetConfig)
    process: ProcessConfig = dataclasses.field(default_factory=ProcessConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema: EMAConfig = dataclasses.field(default_factory=EMAConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    def validate(self) -> None:
        """Checks every field that can be checked without data or devices.

        Raises:
          BadRequest: naming the field, its value and what it can be.
        """
        check_types(self)
        if not re.fullmatch(r"[\w.-]*\w", self.name):
            raise BadRequest(
                f"name ({self.name!r}) names the run's folder: letters, digits, _ . -"
            )
        for path, (low, high) in _RANGES.items():
            value = _get(self, path)
            if value is not None and not low <= value <= high:
                raise BadRequest(f"{path} ({value}) must be in {low} .. {high}")
        for name in ("beta_start", "beta_end"):
            beta = getattr(self.process, name)
            if not 0 < beta < 1:
                raise BadRequest(
                    f"process.{name} ({beta}) must be between 0 and 1, both excluded"
                )
        self._validate_loss()
        if self.optimizer.learning_rate == 0:
            raise BadRequest("optimizer.learning_rate (0.0) must be above 0")
        if self.ema.decay >= 1:
            raise BadRequest(
                f"ema.decay ({self.ema.decay}) must be below 1; DDPM uses 0.9999"
            )
        for path, choices in _CHOICES.items():
            value = _get(self, path)
            if value is not None:
                check_choice(path, value, choices)
        if len(self.data.image_size) > 2 or any(n < 1 for n in self.data.image_size):
            raise BadRequest(
                f"data.image_size {self.data.image_size} must be (size,) or "
                "(height, width), or () for points"
            )
        if self.sampling.steps > self.process.num_timesteps:
            raise BadRequest(
                f"sampling.steps ({self.sampling.steps}) must be at most "
                f"process.num_timesteps ({self.process.num_timesteps})"
            )
        if self.data.random_flip and not self.data.image_size:
            raise BadRequest("data.random_flip (True) is for images, not for points")
        if isinstance(self.model, UNetConfig):
            self._validate_unet(self.model)
        elif self.data.image_size:
            raise BadRequest(
                f"data.image_size {self.data.image_size} is that of an image, but the "
                "config's model is an MLP, for points: it needs a UNetConfig"
            )

    def _validate_loss(self) -> None:
        process, loss = self.process, self.loss
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
        if self.sampling.variance == "learned" and not learned:
            raise BadRequest(
                f"sampling.variance ('learned') needs a network that has learned it; "
                f"process.variance is {process.variance!r}"
            )
        if loss.kind != "prediction" and not self.data.image_size:
            raise BadRequest(
                f"loss.kind ({loss.kind!r}) is the likelihood of 8-bit images, not of "
                "points"
            )
        if loss.kind == "variational" and (loss.weighting, loss.norm) != ("simple", "l2"):
            raise BadRequest(
                f"loss.weighting ({loss.weighting!r}) and loss.norm ({loss.norm!r}) are of "
                "the prediction's error, which loss.kind 'variational' does not use"
            )
        if loss.weighting == "variational" and learned:
            raise BadRequest(
                "loss.weighting ('variational') is the bound of fixed variances; for "
                "learned ones set loss.kind to variational"
            )

    def _validate_unet(self, model: UNetConfig) -> None:
        if not self.data.image_size:
            raise BadRequest(
                "data.image_size () is that of points, but the config's model is a "
                "U-Net: it needs an MLPConfig"
            )
        if not model.channel_mults or min(model.channel_mults) < 1:
            raise BadRequest(
                f"model.channel_mults {model.channel_mults} must hold one width of at "
                "least 1 for each level"
            )
        factor = 2 ** (len(model.channel_mults) - 1)
        if any(n % factor for n in self.data.image_size):
            raise BadRequest(
                f"data.image_size {self.data.image_size} must divide by {factor}, "
                f"because model.channel_mults {model.channel_mults} has "
                f"{len(model.channel_mults)} levels; resize, or take fewer levels"
            )
        heights = [self.data.image_size[0] >> i for i in range(len(model.channel_mults))]
        for resolution in model.attn_resolutions:
            if resolution not in heights:
                raise BadRequest(
                    f"model.attn_resolutions {model.attn_resolutions} must be among the "
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
    "process.log_snr_shift": (-30, 30),
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
    "ema.decay": (0, 1),
    "training.num_steps": (1, 2**31 - 1),
    "training.steps_per_dispatch": (1, 10**4),
    "training.log_every": (1, 2**31 - 1),
    "training.eval_every": (0, 2**31 - 1),
    "training.checkpoint_every": (0, 2**31 - 1),
    "training.sample_every": (0, 2**31 - 1),
    "training.num_held_out": (1, 2**31 - 1),
    "training.num_samples": (1, 2**16),
    "training.sample_steps": (1, 2**31 - 1),
    "training.keep_checkpoints": (1, 10**6),
    "sampling.steps": (1, 2**31 - 1),
    "sampling.eta": (0, 1),
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
    "loss.weighting": WEIGHTINGS,
    "loss.timesteps": TIMESTEP_SAMPLERS,
    "optimizer.name": ("adam", "adamw"),
    "optimizer.decay": ("constant", "cosine", "inverse_sqrt"),
    "sampling.sampler": SAMPLERS,
    "sampling.spacing": SPACINGS,
    "sampling.variance": ("", *VARIANCES),
}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises BadRequest, with the nearest of `choices`, unless `value` is one of them."""
    if value not in choices:
        raise BadRequest(f"{name} ({value!r}) is unknown; {nearest(value, choices)}")


def nearest(value: str, choices: tuple[str, ...]) -> str:
    """ "did you mean X?" where one is near, and the list of all where it is short."""
    close = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
    listed = f"it can be {', '.join(choices)}"
    if not close:
        return listed
    return f"did you mean {close[0]}?" + (f" ({listed})" if len(choices) < 12 else "")


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a config as ("section.field", value)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def to_json(config: Config) -> str:
    """The config as JSON; `from_json` reads it back."""
    tree = dataclasses.asdict(config)
    tree["model"] = {"kind": type(config.model).__name__, **tree["model"]}
    return json.dumps(tree, indent=2) + "\n"


def from_json(text: str) -> Config:
    """A Config from `to_json`.

    Raises:
      BadRequest: if the text is not such a config.
    """
    try:
        config = _from_tree(Config, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(f"{type(error).__name__}: {error}") from error
    check_types(config)
    return config


def _from_tree(kind: Any, tree: dict[str, Any]) -> Any:
    """Fields written before they existed get their default; sections must be there."""
    values = {}
    for field in dataclasses.fields(kind):
        if field.name == "model":
            section = dict(tree["model"])
            kinds = {"UNetConfig": UNetConfig, "MLPConfig": MLPConfig}
            values["model"] = _from_tree(kinds[section.pop("kind")], section)
        elif dataclasses.is_dataclass(field.type):
            values[field.name] = _from_tree(field.type, tree[field.name])
        elif field.name in tree:
            value = tree[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def check_types(config: Any, prefix: str = "") -> None:
    """A config file can assign anything; so can a tuple on the command line.

    Raises:
      BadRequest: naming a field whose value is not of its type.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        value, path = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(kind) or name == "model":
            if type(value) not in (typing.get_args(kind) or (kind,)):
                raise BadRequest(f"{path} ({value!r}) must be a section of the config")
            check_types(value, f"{path}.")
        elif kind == tuple[float, ...]:
            if not isinstance(value, tuple) or any(
                type(v) not in (int, float) for v in value
            ):
                raise BadRequest(f"{path} ({value!r}) must hold numbers")
        elif kind == tuple[int, ...]:
            if not isinstance(value, tuple) or any(type(v) is not int for v in value):
                raise BadRequest(f"{path} ({value!r}) must hold whole numbers")
        elif kind is float:
            if type(value) not in (int, float) or not abs(value) < 1e300:
                raise BadRequest(f"{path} ({value!r}) must be a finite Python number")
        elif type(value) is not kind:
            raise BadRequest(f"{path} ({value!r}) must be of type {kind.__name__}")


def _get(config: Any, path: str) -> Any:
    """The value at "section.field"; None where this model has no such field."""
    for part in path.split("."):
        config = getattr(config, part, None)
    return config
