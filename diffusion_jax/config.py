"""The typed configuration of one experiment.

`configs/NAME.py` returns a Config; the command line overrides single fields
(`--config.optimizer.learning_rate=1e-4`). Overrides are plain attribute assignments, so
the dataclasses are not frozen, and `experiment.validation.check` is called once after
them. They have slots, so that assigning to a field that does not exist is an error.
"""

import dataclasses
import json
import reprlib
import typing
from collections.abc import Iterator
from typing import Any

from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.text import reason


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
    """What is made small: the equations are in `diffusion_jax.diffusion`."""

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
    """The moving averages of the weights. docs/training.md explains them."""

    decay: float = 0.9999  # The rate of the one that samples are drawn with.
    warmup: bool = False  # min(rate, (1 + step) / (10 + step)), for short runs.
    more_decays: tuple[float, ...] = ()  # Other rates to keep as well.
    # Power-function averages (EDM2), by their length as a share of the training so far,
    stds: tuple[float, ...] = (0.05, 0.1)
    snapshots: int = 50  # and how often a run saves them, to rebuild others; 0: never.


@dataclasses.dataclass(slots=True)
class TrainingConfig:
    """How long to train, and when to do what. Intervals are in steps; 0 is never."""

    num_steps: int = 800_000
    # Train steps in one call of the compiled program; 0: as many as take a second.
    steps_per_dispatch: int = 0
    log_every: int = 100
    eval_every: int = 1000  # Held-out loss.
    # The bound on the likelihood of as many images, and of each image so many timesteps.
    likelihood_every: int = 0
    likelihood_timesteps: int = 50
    checkpoint_every: int = 5000
    sample_every: int = 5000
    # Examples of the held-out loss, each at one t: good to three digits for a prediction
    # loss; for loss.kind=variational, to which few t give most, only to compare runs.
    num_held_out: int = 2048
    num_samples: int = 64  # In each sample grid.
    sample_steps: int = 50  # DDIM steps of the sample grids while training.
    keep_checkpoints: int = 2  # The newest ones; the best stays too,
    best_by: str = "held_out_loss"  # by this, or by bits_per_dim.
    # Updates that are not finite are skipped; after so many in a row training stops.
    max_skipped_in_a_row: int = 10


@dataclasses.dataclass(slots=True)
class SamplingConfig:
    """What `sample.py` does unless its flags say otherwise."""

    # ddpm, ddim, dpmpp_2m, dpmpp_3m, unipc, euler, heun, langevin
    sampler: str = "ddpm"
    steps: int = 1000  # S, the number of timesteps, 1 .. process.num_timesteps.
    # trailing, linspace, uniform, log_snr, karras, ddim_quadratic, auto (the best for the
    # checkpoint); "" is karras for euler and heun, and trailing for the others.
    spacing: str = ""
    timesteps: tuple[float, ...] = ()  # A list of one's own, instead of steps and spacing.
    eta: float = 0.0  # ddim, dpmpp_2m, dpmpp_3m: 0 (deterministic) .. 1 (as noisy as ddpm).
    churn: float = 0.0  # euler, heun: EDM's S_churn; 0 is deterministic.
    variance: str = ""  # ddpm: another one than the process says.
    langevin_steps: int = 0  # After each step of a sampler; of langevin, at each timestep.
    langevin_step_size: float = 0.05  # Over the variance of the noise at that timestep.
    threshold: str = "static"  # Of images' predicted x_0: static, dynamic, none.
    dynamic_percentile: float = 0.995  # Of absolute values, which dynamic leaves in range.
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


def to_sha256(config: Config) -> str:
    """By which two configs can be told apart."""
    return sha256([to_json(config)])


def from_json(text: str) -> Config:
    """A Config from `to_json`.

    Raises:
      BadRequest: if the text is not such a config.
    """
    try:
        config = _from_tree(Config, files.parse_json(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(f"{type(error).__name__}: {reason(error)}") from error
    check_types(config)
    return config


def _from_tree(kind: Any, tree: dict[str, Any]) -> Any:
    """Fields written before they existed get their default; sections must be there."""
    values = {}
    if not isinstance(tree, dict):
        raise TypeError(f"{kind.__name__} is not a section")
    unknown = tree.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
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
                raise BadRequest(f"{path} ({_text(value)}) must be a section of the config")
            check_types(value, f"{path}.")
        elif kind == tuple[float, ...]:
            if not isinstance(value, tuple) or any(
                type(v) not in (int, float) or not abs(v) < 1e300 for v in value
            ):
                raise BadRequest(
                    f"{path} ({_text(value)}) must be a tuple of Python numbers; of "
                    "an array that is tuple(array.tolist())"
                )
        elif kind == tuple[int, ...]:
            if not isinstance(value, tuple) or any(type(v) is not int for v in value):
                raise BadRequest(f"{path} ({_text(value)}) must hold whole numbers")
        elif kind is float:
            if type(value) not in (int, float) or not abs(value) < 1e300:
                raise BadRequest(f"{path} ({_text(value)}) must be a finite Python number")
        elif type(value) is not kind:
            raise BadRequest(f"{path} ({_text(value)}) must be of type {kind.__name__}")


def _text(value: object) -> str:
    """A value for a message, cut short where it is long."""
    return reprlib.repr(value)
