"""The typed configuration of one experiment.

`configs/NAME.py` returns a Config; the command line overrides single fields
(`--config.optimizer.learning_rate=1e-4`). Overrides are plain attribute assignments, so
the dataclasses are not frozen, and `experiment.validation.check` is called once after
them. They have slots, so that assigning to a field that does not exist is an error.

Each field is described once, here: its checks, its flags, `--help` and docs/config.md
(`make docs-config`) are made from that.
"""

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from diffusion_jax.diffusion.loss_weighting import WEIGHTINGS
from diffusion_jax.diffusion.losses import NORMS
from diffusion_jax.diffusion.parameterization import PREDICTION_TYPES, VARIANCES
from diffusion_jax.diffusion.schedules import SCHEDULES, schedules_with
from diffusion_jax.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import (
    NOT_SET,
    SET,
    check_types,
    described,
    in_words,
    leaves_of,
)
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.text import reason, say
from diffusion_jax.samplers.methods import METHODS, SPACINGS_OF, methods_with
from diffusion_jax.samplers.thresholding import THRESHOLDS
from diffusion_jax.samplers.timesteps import AUTO, SPACINGS

_STEPS = (0, 2**31 - 1)  # Range of an interval in train steps.
_EPOCHS = (0, 10**6)
_SIZES = (1, 2**14)  # Range of numbers of a U-Net's levels: no machine holds larger ones.
_DTYPES = ("float32", "bfloat16")
MIN_STD, MAX_STD = 0.015, 0.25  # Range of averages that snapshots can rebuild well.
MAX_CLASSES = 2**20


_OF_FILES = {"data.source": ("folder", "tfds:*")}
_NEWER_SECTIONS = ("parallel",)  # The configs of runs of version 0.1 lack them.


@dataclasses.dataclass(slots=True)
class DataConfig:
    """Examples, and how many at a time. docs/data.md explains each source."""

    source: str = described(
        "digits",
        "digits, moving_digits, chirps, swiss_roll, two_moons, eight_gaussians, folder (or "
        "zip), npz, tfds:NAME.",
    )
    path: str = described(
        "", "Path of the folder, .zip or .npz; for tfds its data_dir, if not the usual one."
    )
    origin: str = described(
        "",
        "Where the examples can be had, in words: part of the message if data.path is "
        "needed and empty.",
        only_with={"data.source": ("folder", "npz")},
    )
    image_size: tuple[int, ...] = described(
        (8,), "Size of an image, (size,) or (height, width); () for points."
    )
    channels: int = described(
        1,
        "Channels of an image or sound, or coordinates of a point; 0: as many as the data "
        "has.",
        range=(0, 4096),
    )
    low_res: tuple[int, ...] = described(
        (),
        "Size of the low-resolution image that the network refines, (size,) or (height, "
        "width); (): none.",
        range=_SIZES,
        only_with={"data.image_size": SET},
    )
    reduced_from: tuple[int, ...] = described(
        (),
        "Size that images are made to fit before they are reduced to image_size, as "
        "low_res is made; (): image_size.",
        range=_SIZES,
        only_with={"data.source": ("folder", "npz", "tfds:*")},
    )
    num_frames: int = described(
        0, "Frames of a clip of image_size; 0: no clips.", range=(0, 2**12)
    )
    sound_length: int = described(
        0, "Values of a sound per channel; 0: no sounds.", range=(0, 2**24)
    )
    sample_rate: int = described(
        16000,
        "Values of a sound per second and channel, in Hz.",
        range=(1, 768_000),
        only_with={"data.sound_length": SET},
    )
    gain: float = described(
        0.0,
        "Factor of sounds before the network; 0: the one that makes the loudest value 1.",
        range=(0, 10**6),
        only_with={"data.sound_length": SET},
    )
    resize: str = described(
        "crop",
        "How an image of another shape is made to fit: crop its middle, squash it, or pad "
        "it with black.",
        choices=("crop", "squash", "pad"),
        only_with={"data.source": ("folder", "npz", "tfds:*")},
    )
    unreadable: str = described(
        "refuse",
        "What to do with images that cannot be read.",
        choices=("refuse", "skip"),
        only_with=_OF_FILES,
    )
    split: str = described(
        "train",
        "Split of a tfds set to train on, such as train or train[:90%].",
        only_with={"data.source": ("tfds:*",)},
    )
    held_out: str = described(
        "",
        "Held-out examples: a split (tfds) or another path (folder, npz); if empty, the "
        "set's own, or a fraction of the examples.",
        only_with={"data.source": ("folder", "npz", "tfds:*")},
    )
    held_out_fraction: float = described(
        0.02,
        "Fraction of the examples to hold out, always the same ones.",
        range=(0.0001, 0.5),
        only_with={"data.held_out": NOT_SET},
    )
    labels: bool = described(False, "Condition the network on the class of each example.")
    num_classes: int = described(
        0,
        "Number of classes; 0: as many as the data has.",
        range=(0, MAX_CLASSES),
        only_with={"data.labels": SET},
    )
    label_file: str = described(
        "",
        "A CSV of file,label for source folder, in place of the classes of sub-folders; "
        "file is relative to data.path.",
        only_with={"data.labels": SET},
    )
    batch_size: int = described(
        64, "Examples per train step, over all devices.", range=(1, 2**20)
    )
    random_flip: bool = described(False, "Mirror each training image with probability 1/2.")
    memory_gib: float = described(
        2.0,
        "GiB of memory for decoded images; a set that needs more is read for each batch.",
        range=(0, 2**20),
        only_with=_OF_FILES,
    )
    num_workers: int = described(
        2,
        "Processes that read images for each batch; 0: threads of this process.",
        range=(0, 256),
        only_with=_OF_FILES,
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (H, W, C), (F, H, W, C), (L, C), or (D,) for points."""
        if self.sound_length:
            return (self.sound_length, self.channels)
        size = self.image_size * 2 if len(self.image_size) == 1 else self.image_size
        frames = (self.num_frames,) if self.num_frames else ()
        return (*frames, *size, self.channels)

    @property
    def low_res_shape(self) -> tuple[int, ...]:
        """Shape of the low-resolution image of an example, (h, w, C)."""
        size = self.low_res * 2 if len(self.low_res) == 1 else self.low_res
        return (*size, self.channels)


@dataclasses.dataclass(slots=True)
class UNetConfig:
    """The fields of `diffusion_jax.networks.UNet`, which explains them."""

    base_channels: int = described(
        128, "Number of channels that channel_mults multiply.", range=(4, 2**14)
    )
    channel_mults: tuple[int, ...] = described(
        (1, 2, 2, 2), "Channels of each level, as multiples of base_channels.", range=_SIZES
    )
    num_res_blocks: int = described(2, "Residual blocks of each level.", range=(1, 100))
    attn_resolutions: tuple[int, ...] = described(
        (16,),
        "Heights of the levels with attention; of sounds, their lengths.",
        range=_SIZES,
    )
    num_heads: int = described(1, "Heads of the attention.", range=(1, 2**14))
    dropout: float = described(0.1, "Rate of the dropout.", range=(0, 0.99))
    num_groups: int = described(32, "Groups of the normalisation.", range=(1, 2**14))
    scale_shift_norm: bool = described(
        False, "Let the time scale and shift the normalised features."
    )
    dtype: str = described("float32", "Type of the computations.", choices=_DTYPES)
    remat: bool = described(
        False, "Compute each block again in the backward pass, to save memory."
    )


@dataclasses.dataclass(slots=True)
class MLPConfig:
    """The fields of `diffusion_jax.networks.MLP`, which explains them."""

    width: int = described(128, "Width of the layers.", range=(4, 2**16))
    num_blocks: int = described(3, "Residual blocks.", range=(0, 1000))
    dtype: str = described("float32", "Type of the computations.", choices=_DTYPES)


# Schedules that leave some signal in x_T.
_ENDS_IN_SIGNAL = tuple(name for name in (*SCHEDULES, "custom") if name != "jsd")


@dataclasses.dataclass(slots=True)
class ProcessConfig:
    """The noise process, and what the network predicts of its reverse."""

    schedule: str = described(
        "linear", "Schedule of the betas.", choices=(*SCHEDULES, "custom")
    )
    num_timesteps: int = described(
        1000, "T, the number of timesteps of the noise process.", range=(2, 10**6)
    )
    beta_start: float = described(
        1e-4,
        "The first beta.",
        range=(0, 1),
        excluded=(0, 1),
        only_with={"process.schedule": schedules_with("beta_start")},
    )
    beta_end: float = described(
        0.02,
        "The last beta; with schedule constant, every beta.",
        range=(0, 1),
        excluded=(0, 1),
        only_with={"process.schedule": schedules_with("beta_end")},
    )
    betas: tuple[float, ...] = described(
        (), "The betas, one per timestep.", only_with={"process.schedule": ("custom",)}
    )
    log_snr_shift: float = described(
        0.0,
        "Number added to log SNR; 2 ln(64 / size) for images larger than 64x64.",
        range=(-10, 10),
    )
    zero_terminal_snr: bool = described(
        False,
        "Rescale the betas to end in pure noise; not with prediction eps.",
        only_with={"process.schedule": _ENDS_IN_SIGNAL},
    )
    prediction: str = described(
        "eps", "What the network predicts.", choices=PREDICTION_TYPES
    )
    variance: str = described(
        "fixed_small",
        "Variance of the reverse step; with learned the network has twice the output "
        "channels, and loss.kind must be hybrid or variational.",
        choices=VARIANCES,
    )


_OF_PREDICTION = {"loss.kind": ("prediction", "hybrid")}


@dataclasses.dataclass(slots=True)
class LossConfig:
    """The training loss: the equations are in `diffusion_jax.diffusion`."""

    kind: str = described(
        "prediction",
        "Loss: the error of the prediction, the variational bound, or both (hybrid).",
        choices=("prediction", "hybrid", "variational"),
    )
    norm: str = described(
        "l2", "Norm of the prediction's error.", choices=NORMS, only_with=_OF_PREDICTION
    )
    huber_delta: float = described(
        1.0,
        "Error at which huber turns from squares to absolute values.",
        range=(1e-6, 10**6),
        only_with={"loss.norm": ("huber",)},
    )
    weighting: str = described(
        "simple", "Loss weight of each t.", choices=WEIGHTINGS, only_with=_OF_PREDICTION
    )
    min_snr_gamma: float = described(
        5.0,
        "gamma of min(SNR, gamma).",
        range=(1e-6, 10**12),
        only_with={"loss.weighting": ("min_snr",)},
    )
    p2_gamma: float = described(
        1.0,
        "gamma of SNR / (k + SNR)^gamma.",
        range=(0, 100),
        only_with={"loss.weighting": ("p2",)},
    )
    p2_k: float = described(
        1.0,
        "k of SNR / (k + SNR)^gamma.",
        range=(1e-6, 10**12),
        only_with={"loss.p2_gamma": SET},
    )
    sigmoid_bias: float = described(
        0.0,
        "bias of sigmoid(bias - log SNR).",
        range=(-30, 30),
        only_with={"loss.weighting": ("sigmoid",)},
    )
    variational_scale: float = described(
        0.001,
        "Factor of the variational bound in the hybrid loss.",
        range=(0, 10**6),
        only_with={"loss.kind": ("hybrid",)},
    )
    timesteps: str = described(
        "uniform", "How the t of a batch are drawn.", choices=TIMESTEP_SAMPLERS
    )
    label_dropout: float = described(
        0.1,
        "Probability that an example is learned without its label, as guidance needs.",
        range=(0, 1),
        only_with={"data.labels": SET},
    )
    aug_level: float = described(
        0.5,
        "Largest level of the noise in the low-resolution image, drawn per example; 0: no "
        "noise.",
        range=(0, 1),
        only_with={"data.low_res": SET},
    )
    focus: float = described(
        0.0,
        "Probability that a clip is learned as single images, whose attention over time "
        "is kept to each frame.",
        range=(0, 1),
        only_with={"data.num_frames": SET},
    )


@dataclasses.dataclass(slots=True)
class OptimizerConfig:
    """The optimiser and its learning rate over time."""

    name: str = described("adam", "The optimiser.", choices=("adam", "adamw"))
    learning_rate: float = described(
        2e-4, "Peak of the learning rate.", range=(0, 1), excluded=(0,)
    )
    b1: float = described(0.9, "Decay of the first moment.", range=(0, 0.9999999))
    b2: float = described(0.999, "Decay of the second moment.", range=(0, 0.9999999))
    eps: float = described(
        1e-8, "Number added to the root of the second moment.", range=(0, 1), excluded=(0,)
    )
    weight_decay: float = described(
        0.0,
        "Decoupled weight decay.",
        range=(0, 1),
        only_with={"optimizer.name": ("adamw",)},
    )
    warmup_steps: int = described(
        5000, "Train steps of the warm-up, linear from 0.", range=_STEPS
    )
    decay: str = described(
        "constant",
        "Decay of the learning rate after the warm-up.",
        choices=("constant", "cosine", "inverse_sqrt"),
    )
    grad_clip: float = described(
        1.0, "Largest global norm of the gradient; 0 is off.", range=(0, 10**9)
    )
    accumulate: int = described(
        1,
        "Parts that a batch is taken in, one after another, for the same update with less "
        "memory; must divide data.batch_size.",
        range=(1, 2**20),
    )


@dataclasses.dataclass(slots=True)
class EMAConfig:
    """The moving averages of the parameters. docs/training.md explains them."""

    decay: float = described(
        0.9999,
        "Rate of the average that samples are drawn with.",
        range=(0, 1),
        excluded=(1,),
    )
    warmup: bool = described(
        False, "Limit the rates to (1 + step) / (10 + step), for short runs."
    )
    more_decays: tuple[float, ...] = described(
        (), "Rates of further averages to keep.", range=(0, 1), excluded=(1,)
    )
    stds: tuple[float, ...] = described(
        (0.05, 0.1),
        "Lengths of power-function averages (EDM2), as shares of the training so far.",
        range=(MIN_STD, MAX_STD),
    )
    snapshots: int = described(
        50,
        "Snapshots of the averages of stds per run, to rebuild other lengths; 0: none.",
        range=(0, 10**4),
        only_with={"ema.stds": SET},
    )


# An interval in epochs sets the one in train steps.
_OF_GRIDS = {"training.sample_every": SET}
_OF_QUALITY = {"training.quality_every": SET}


def _epochs(name: str) -> Any:
    said = f"{name}, in epochs; if not 0, it counts, and not the one in train steps."
    return described(0.0, said, range=_EPOCHS)


@dataclasses.dataclass(slots=True)
class TrainingConfig:
    """Length and intervals of the training. Intervals are in train steps; 0 is never.

    What is in epochs is turned into train steps, and is then 0, when a run starts.
    """

    num_steps: int = described(800_000, "Number of train steps.", range=(1, 2**31 - 1))
    epochs: float = _epochs("Length of the training")
    steps_per_dispatch: int = described(
        0,
        "Train steps per dispatch of the compiled program; 0: as many as take a second.",
        range=(0, 10**4),
    )
    log_every: int = described(100, "Interval of log lines.", range=(1, 2**31 - 1))
    eval_every: int = described(1000, "Interval of the held-out loss.", range=_STEPS)
    eval_every_epochs: float = _epochs("Interval of the held-out loss")
    likelihood_every: int = described(
        0, "Interval of the bound on the likelihood of held-out images.", range=_STEPS
    )
    likelihood_every_epochs: float = _epochs("Interval of that bound")
    likelihood_timesteps: int = described(
        50,
        "Timesteps per image of the bound of likelihood_every.",
        range=(1, 2**31 - 1),
        only_with={"training.likelihood_every": SET},
    )
    checkpoint_every: int = described(5000, "Interval of checkpoints.", range=_STEPS)
    checkpoint_every_epochs: float = _epochs("Interval of checkpoints")
    sample_every: int = described(5000, "Interval of sample grids.", range=_STEPS)
    sample_every_epochs: float = _epochs("Interval of sample grids")
    num_held_out: int = described(
        2048,
        "Held-out examples to evaluate. The held-out loss takes one t for each: enough for "
        "three digits of a prediction loss, but with loss.kind variational, where few t "
        "contribute most, only for comparing runs.",
        range=(1, 2**31 - 1),
        only_with={"training.eval_every": SET, "training.likelihood_every": SET},
    )
    num_samples: int = described(
        64,
        "Samples per grid; fewer if the grids of a run would take more than a tenth of "
        "its network calls.",
        range=(1, 2**16),
        only_with=_OF_GRIDS,
    )
    sample_steps: int = described(
        50,
        "DDIM steps of each sample grid, and of the samples of quality_every.",
        range=(1, 2**31 - 1),
        only_with=_OF_GRIDS | _OF_QUALITY,
    )
    keep_strips: bool = described(
        False,
        "Keep the strip of the chain of each sample grid, as samples/step_N_chain.png.",
        only_with=_OF_GRIDS,
    )
    quality_every: int = described(
        0, "Interval of the quality of samples: FD and KID.", range=_STEPS
    )
    quality_every_epochs: float = _epochs("Interval of the quality of samples")
    quality_samples: int = described(
        1000,
        "Samples of quality_every: more than its network has features.",
        range=(4, 10**6),
        only_with=_OF_QUALITY,
    )
    quality_features: str = described(
        "",
        "Network of quality_every: pcaN for N principal components, efficientnet-lite0, or "
        "'' for one that suits the images.",
        only_with=_OF_QUALITY,
    )
    keep_checkpoints: int = described(
        2, "Number of newest checkpoints to keep, besides the best one.", range=(1, 10**6)
    )
    best_by: str = described(
        "held_out_loss",
        "Figure that is lowest for the best checkpoint: held_out_loss, bits_per_dim, or "
        "one of quality_every, such as fd_pca20_n1000.",
    )
    max_skipped_in_a_row: int = described(
        10,
        "Updates that are not finite are skipped; after this many in a row training stops.",
        range=(1, 2**31 - 1),
    )


_NO_LIST = {"sampling.timesteps": NOT_SET}


@dataclasses.dataclass(slots=True)
class ParallelConfig:
    """How the devices share the work of training. docs/scaling.md explains it."""

    data: int = described(
        0,
        "Devices along the axis data, which have the same state; 0: all that fsdp leaves.",
        range=(0, 2**20),
    )
    fsdp: int = described(
        1,
        "Devices along the axis fsdp, over which parameters, optimiser and averages are "
        "split.",
        range=(1, 2**20),
    )


@dataclasses.dataclass(slots=True)
class SamplingConfig:
    """The defaults of the flags of `sample.py`, each of which has the name of its field."""

    sampler: str = described("ddpm", "The sampler.", choices=METHODS)
    steps: int = described(
        1000,
        "S, the number of timesteps, 1 .. T.",
        range=(1, 2**31 - 1),
        only_with=_NO_LIST,
    )
    spacing: str = described(
        "",
        "Spacing of the timesteps; auto: the best for the checkpoint; default karras for "
        f"{' and '.join(SPACINGS_OF)}, trailing for the others.",
        choices=("", *SPACINGS, AUTO),
        only_with=_NO_LIST,
    )
    timesteps: tuple[float, ...] = described(
        (), "Falling list of timesteps such as 999,500,20.5, instead of steps and spacing."
    )
    eta: float = described(
        0.0,
        "Noise of the sampler, from 0 (deterministic) to 1 (as noisy as ddpm).",
        range=(0, 1),
        only_with={"sampling.sampler": methods_with("eta")},
    )
    churn: float = described(
        0.0,
        "Noise of the sampler, S_churn of EDM; 0 is deterministic.",
        range=(0, 10**6),
        only_with={"sampling.sampler": methods_with("churn")},
    )
    variance: str = described(
        "",
        "Variance of the reverse step, if not process.variance.",
        choices=("", *VARIANCES),
        only_with={"sampling.sampler": methods_with("variance")},
    )
    langevin_steps: int = described(
        0,
        "Langevin steps after each step of the sampler; with sampler langevin, at each "
        "timestep.",
        range=(0, 10**4),
    )
    langevin_step_size: float = described(
        0.05,
        "Size of a Langevin step, as a share of the noise variance at its timestep.",
        range=(1e-6, 1),
        only_with={"sampling.sampler": ("langevin",), "sampling.langevin_steps": SET},
    )
    threshold: str = described(
        "static",
        "How the predicted x_0 of images and sounds is kept in range.",
        choices=THRESHOLDS,
        only_with={"data.image_size": SET, "data.sound_length": SET},
    )
    dynamic_percentile: float = described(
        0.995,
        "Share of the values of x_0 that threshold dynamic does not clip.",
        range=(0, 1),
        only_with={"sampling.threshold": ("dynamic",)},
    )
    aug_level: float = described(
        0.1,
        "Level of the noise in the low-resolution image, from 0 (none) to loss.aug_level.",
        range=(0, 1),
        only_with={"data.low_res": SET},
    )
    guidance: float = described(
        1.0,
        "Scale s of guidance, D_u + s (D_c - D_u): 0 without labels, 1 with them, more "
        "towards them.",
        range=(0, 1000),
        only_with={"data.labels": SET},
    )
    guidance_interval: tuple[float, ...] = described(
        (),
        "LOW,HIGH: guide only where LOW < sigma / alpha <= HIGH.",
        range=(0, 10**6),
        only_with={"data.labels": SET},
    )
    guidance_rescale: float = described(
        0.0,
        "phi: how far the guided x_0 gets the standard deviation of D_c, against "
        "saturation.",
        range=(0, 1),
        only_with={"data.labels": SET},
    )
    apg_parallel: float = described(
        1.0,
        "eta of projected guidance (APG): share of D_c - D_u along D_c that is kept.",
        range=(0, 1),
        only_with={"data.labels": SET},
    )
    apg_momentum: float = described(
        0.0,
        "beta of projected guidance: D_c - D_u gets this many times that of the step "
        "before.",
        range=(-1, 1),
        excluded=(-1, 1),
        only_with={"data.labels": SET},
    )
    apg_max_norm: float = described(
        0.0,
        "r of projected guidance: largest norm of D_c - D_u; 0 for none.",
        range=(0, 10**6),
        only_with={"data.labels": SET},
    )
    cfg_plus_plus: bool = described(
        False,
        "CFG++: D_u says which noise is in x; guidance then is lambda, 0 .. 1.",
        only_with={"data.labels": SET},
    )
    batch_size: int = described(64, "Samples to draw at a time.", range=(1, 2**20))


@dataclasses.dataclass(slots=True)
class Config:
    """One experiment."""

    name: str = described("experiment", "The run's folder is runs/NAME.")
    seed: int = described(0, "Decides every random draw.", range=(0, 2**31 - 1))
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: UNetConfig | MLPConfig = dataclasses.field(default_factory=UNetConfig)
    process: ProcessConfig = dataclasses.field(default_factory=ProcessConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema: EMAConfig = dataclasses.field(default_factory=EMAConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)


def fields_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Return every leaf of a config as ("section.field", value)."""
    for leaf in leaves_of(config):
        yield leaf.path, leaf.value


def to_json(config: Config) -> str:
    """Return the config as JSON; `from_json` reads it back."""
    tree = dataclasses.asdict(config)
    tree["model"] = {"kind": type(config.model).__name__, **tree["model"]}
    return json.dumps(tree, indent=2) + "\n"


def to_sha256(config: Config) -> str:
    """Return the hash by which two configs can be told apart."""
    return sha256([to_json(config)])


def hashes_of(config: Config) -> dict[str, str]:
    """Return the hashes of a config and of its noise process, by their names in results."""
    process = json.dumps(dataclasses.asdict(config.process))
    return {"config_sha256": to_sha256(config), "process_sha256": sha256([process])}


def from_json(text: str) -> Config:
    """Return the Config of `to_json`.

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
    """Build a dataclass from a tree; missing fields get defaults, sections must exist."""
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
            is_newer = field.name in _NEWER_SECTIONS and field.name not in tree
            values[field.name] = _from_tree(
                field.type, {} if is_newer else tree[field.name]
            )
        elif field.name in tree:
            value = tree[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def help_text(config: Config) -> str:
    """Return the flag, value, default and help of each field of a config."""
    lines = []
    for leaf in leaves_of(config):
        default = f" (default {_shown(leaf.default)})" if leaf.value != leaf.default else ""
        lines += [
            f"  --config.{leaf.path}={_shown(leaf.value)}{default}",
            textwrap.indent(textwrap.fill(in_words(leaf), 80), " " * 6),
        ]
    return "\n".join(lines)


def page() -> str:
    """Return docs/config.md: a table of every field."""
    lines = [
        "# Every field of a config",
        "",
        "Made by `make docs-config`. A field is set in a config file, or on the command",
        "line as `--config.SECTION.FIELD=VALUE`.",
        "",
        "| field | default | |",
        "| --- | --- | --- |",
    ]
    for model in (UNetConfig(), MLPConfig()):
        kind = type(model).__name__
        for leaf in leaves_of(Config(model=model)):
            is_model = leaf.path.startswith("model.")
            if is_model or kind == "UNetConfig":
                name = f"`{leaf.path}`" + (f" ({kind})" if is_model else "")
                said = in_words(leaf).replace("|", "\\|")
                lines.append(f"| {name} | `{_shown(leaf.default)}` | {said} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, tuple) or value == "" else str(value)


if __name__ == "__main__":
    for line in page().splitlines():
        say(line)
