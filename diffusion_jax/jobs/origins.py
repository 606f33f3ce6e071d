"""Origins of the chains of a request: noise, pictures, or latents.

One `Origin` is chosen from the flags and says all that differs: the timesteps and rows of
the chain, its start, its hook, what a result is, and what decides it.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig, SamplingConfig
from diffusion_jax.data import drawing
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.data.sources import DataSet
from diffusion_jax.diffusion.batch import LOW_RES
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import NoiseLevel
from diffusion_jax.experiment import build_sampler
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.samplers import chain, inpainting, methods
from diffusion_jax.samplers.chain import Start
from diffusion_jax.samplers.interpolation import slerp
from diffusion_jax.samplers.table import SamplerTable
from diffusion_jax.samplers.thresholding import Hook
from diffusion_jax.samplers.timesteps import AUTO

STRENGTH = 0.6
RESAMPLINGS, JUMP_LENGTH = 10, 10  # Of RePaint's experiments.
NUM_BETWEEN = 9
_HOLE = 128  # Level that is shown where a picture is not known.
_MOST_COLUMNS = 32  # Samples in a row of a picture.
_SHOWN_STD = 3  # Standard deviations of latents between grey and white in a picture.
Encoder = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Chains from pure noise; the others differ in what they override."""

    @property
    def is_noise(self) -> bool:
        """Return whether nothing was given to start from."""
        return True

    @property
    def name(self) -> str:
        """Return its part of a name for files, from "_" on; "" for noise."""
        return ""

    @property
    def inputs(self) -> list[pathlib.Path]:
        """Return the files and folders that were given, which no result may replace."""
        return []

    @property
    def about(self) -> dict[str, Any]:
        """Return what decides the samples, for their note."""
        return {}

    def sampling(self, sampling: SamplingConfig, model: Model) -> SamplingConfig:
        """Return the config of the chain, which decides its timesteps."""
        return sampling

    def table(self, model: Model, sampling: SamplingConfig) -> SamplerTable:
        """Return the rows of the chain."""
        return build_sampler.make_table(model, sampling)

    def hook(self, threshold: Hook | None) -> Hook | None:
        """Return the hook of the chain, which also does the threshold."""
        return threshold

    def cond(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the conditions that the hook of these samples gets."""
        return {}

    def start(self, table: SamplerTable, indices: np.ndarray) -> Start | None:
        """Return where the chains of these samples start."""
        return None

    def ready(
        self, encode: Encoder, table: SamplerTable, shape: tuple[int, ...]
    ) -> "Origin":
        """Return the origin whose chains can start, once what it needs is encoded.

        Args:
          encode: gives the latents of uint8 [N, H, W, C] as the samples of these indices
            [N], by the deterministic chain backwards.
          table: rows of the chain.
          shape: of one sample.
        """
        return self

    def stored(self, kind: Kind, x: np.ndarray) -> np.ndarray:
        """Return the ends of chains as a file has them."""
        return kind.from_network(x)

    def draw(self, kind: Kind, stored: np.ndarray, turns: int) -> Image.Image:
        """Return the picture of samples, of `stored`; `turns` as of `Kind.draw`."""
        return kind.draw(stored, turns=turns)


NOISE = Origin()


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Origin):
    """An origin that was given by a flag, with pictures, [n, ...] as files have them."""

    flag: str = ""
    path: str = ""
    pictures: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def is_noise(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return f"_{self.flag}_{_stem(self.path)}"

    @property
    def inputs(self) -> list[pathlib.Path]:
        return [pathlib.Path(self.path).expanduser()]

    @property
    def about(self) -> dict[str, Any]:
        digest = sha256([f"{self.pictures.shape}", self.pictures])
        return {self.flag: {"file": self.path, "sha256": digest, **self.options}}

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that decide the samples."""
        return {}

    def sampling(self, sampling: SamplingConfig, model: Model) -> SamplingConfig:
        if sampling.spacing == AUTO and not sampling.timesteps:
            raise BadRequest(
                f"--{self.flag} needs timesteps that are known; give --timesteps in place "
                "of --spacing auto, as it prints them"
            )
        return sampling

    def of(self, indices: np.ndarray) -> np.ndarray:
        """Return the picture of each sample."""
        return self.pictures[indices % len(self.pictures)]

    def x0(self, indices: np.ndarray) -> np.ndarray:
        """Return the picture of each sample as the network sees it."""
        return np.asarray(PICTURES.to_network(jnp.asarray(self.of(indices))))

    def draw(self, kind: Kind, stored: np.ndarray, turns: int) -> Image.Image:
        num = len(self.pictures)
        if num > 1:  # A row for each picture.
            turns, stored = num, stored[: num * _MOST_COLUMNS]
        given = kind.draw(self.shown(kind, np.arange(min(num, len(stored)))), 1)
        made = kind.draw(stored, turns=turns)
        return drawing.side_by_side({"given": given, self.made: made})

    @property
    def made(self) -> str:
        """Return the name of the results in a picture."""
        return "samples"

    def shown(self, kind: Kind, indices: np.ndarray) -> np.ndarray:
        """Return what was given for these samples, as a file has it."""
        return self.of(indices)


@dataclasses.dataclass(frozen=True, eq=False)
class FromImage(Given):
    """SDEdit (Meng et al. 2022, algorithm 1): from pictures with noise on them.

    Attributes:
      strength: share of the process that is gone back.
    """

    strength: float = STRENGTH

    @property
    def name(self) -> str:
        return f"{super().name}_strength{self.strength:g}"

    @property
    def options(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def sampling(self, sampling: SamplingConfig, model: Model) -> SamplingConfig:
        sampling = super().sampling(sampling, model)
        timesteps = build_sampler.make_timesteps(model.process, sampling)
        last = model.process.num_timesteps - 1
        kept = timesteps[timesteps <= self.strength * last]
        if not len(kept):
            raise BadRequest(
                f"--strength {self.strength:g}: none of the {len(timesteps)} timesteps is "
                f"at most {self.strength * last:g} (the lowest is {timesteps[-1]:g}); take "
                "more --steps, or a strength of at least "
                f"{math.ceil(timesteps[-1] / last * 1000) / 1000:g}"
            )
        return dataclasses.replace(sampling, timesteps=tuple(kept.tolist()))

    def table(self, model: Model, sampling: SamplingConfig) -> SamplerTable:
        return build_sampler.make_table(model, sampling, from_noise=False)

    def start(self, table: SamplerTable, indices: np.ndarray) -> Start:
        x0 = self.x0(indices)
        return inpainting.noised_start(x0, _first_level(table))


@dataclasses.dataclass(frozen=True, eq=False)
class Upscale(Given):
    """Pictures of low resolution, on which chains from pure noise are conditioned."""

    @property
    def is_noise(self) -> bool:
        return True

    def sampling(self, sampling: SamplingConfig, model: Model) -> SamplingConfig:
        return sampling

    def cond(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {LOW_RES: self.x0(indices)}

    def draw(self, kind: Kind, stored: np.ndarray, turns: int) -> Image.Image:
        if len(stored) > len(self.pictures):
            return super().draw(kind, stored, turns)
        given = kind.draw(self.shown(kind, np.arange(len(stored))), turns=turns)
        made = kind.draw(stored, turns=turns)
        return drawing.side_by_side({"given": given, self.made: made})


def held_out(config: DataConfig, data: DataSet, num: int) -> Origin:
    """Return what samples are drawn from where nothing is given.

    That is noise; for a run that refines images, also the low resolution of held-out
    examples, of which there are `num` at most.
    """
    if not config.low_res:
        return NOISE
    split = data.split("held_out")
    low_res = split[np.arange(min(num, len(split)))].cond[LOW_RES]
    return Upscale("upscale", "held-out examples", low_res)


@dataclasses.dataclass(frozen=True, eq=False)
class Inpaint(Given):
    """Pictures whose unknown part is painted again, with RePaint's resampling.

    Attributes:
      is_known: bool [H, W], the part that is kept.
      mask: the file that says so.
      resamplings, jump_length: of `methods.with_resampling`.
    """

    is_known: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    mask: str = ""
    resamplings: int = RESAMPLINGS
    jump_length: int = JUMP_LENGTH

    @property
    def name(self) -> str:
        parts = [super().name, _stem(self.mask)]
        if self.resamplings != RESAMPLINGS:
            parts.append(f"resamplings{self.resamplings}")
        if self.jump_length != JUMP_LENGTH:
            parts.append(f"jump{self.jump_length}")
        return "_".join(parts)

    @property
    def inputs(self) -> list[pathlib.Path]:
        return [*super().inputs, pathlib.Path(self.mask).expanduser()]

    @property
    def options(self) -> dict[str, Any]:
        return {
            "mask": {"file": self.mask, "sha256": sha256([self.is_known])},
            "resamplings": self.resamplings,
            "jump_length": self.jump_length,
        }

    def table(self, model: Model, sampling: SamplingConfig) -> SamplerTable:
        table = super().table(model, sampling)
        try:
            return methods.with_resampling(table, self.resamplings, self.jump_length)
        except ValueError as error:
            raise BadRequest(
                f"--inpaint with sampler {sampling.sampler}: {error}; take one of them, or "
                "--resamplings 1"
            ) from error

    def hook(self, threshold: Hook | None) -> Hook | None:
        return inpainting.keep_known(threshold)

    def cond(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        x0 = self.x0(indices)
        is_known = np.broadcast_to(self.is_known[..., None], (len(x0), *x0.shape[1:3], 1))
        return {inpainting.KNOWN: x0, inpainting.IS_KNOWN: is_known}

    def start(self, table: SamplerTable, indices: np.ndarray) -> Start:
        cond = self.cond(indices)
        return inpainting.noised_start(
            cond[inpainting.KNOWN], _first_level(table), cond[inpainting.IS_KNOWN]
        )

    def shown(self, kind: Kind, indices: np.ndarray) -> np.ndarray:
        hole = np.full_like(self.of(indices), _HOLE)
        return np.where(self.is_known[..., None], self.of(indices), hole)


def _check_adds_no_noise(flag: str, table: SamplerTable, sampling: SamplingConfig) -> None:
    if table.to_x.noise.any() or table.is_learned:
        raise BadRequest(
            f"--{flag} needs a chain without noise, and {sampling.sampler} adds some; take "
            f"--sampler {', '.join(methods.DETERMINISTIC)}, without --eta, --churn and "
            "--langevin_steps"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Encode(Given):
    """Pictures whose latents are the end of the deterministic chain backwards."""

    @property
    def made(self) -> str:
        return "latents"

    def table(self, model: Model, sampling: SamplingConfig) -> SamplerTable:
        _check_adds_no_noise(self.flag, super().table(model, sampling), sampling)
        return build_sampler.make_encoding_table(model, sampling)

    def start(self, table: SamplerTable, indices: np.ndarray) -> Start:
        return _known_start(self.x0(indices))

    def stored(self, kind: Kind, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32)

    def draw(self, kind: Kind, stored: np.ndarray, turns: int) -> Image.Image:
        return super().draw(kind, kind.from_network(stored / _SHOWN_STD), turns)


def encoding_of(pictures: np.ndarray) -> Origin:
    """Return the origin of chains that encode pictures, uint8 [N, H, W, C]."""
    return Encode("encode", "", pictures)


@dataclasses.dataclass(frozen=True, eq=False)
class Decode(Given):
    """Latents, in place of pictures, that the deterministic chain starts from."""

    def table(self, model: Model, sampling: SamplingConfig) -> SamplerTable:
        table = super().table(model, sampling)
        _check_adds_no_noise(self.flag, table, sampling)
        return table

    def start(self, table: SamplerTable, indices: np.ndarray) -> Start:
        return _known_start(self.of(indices))

    def draw(self, kind: Kind, stored: np.ndarray, turns: int) -> Image.Image:
        return kind.draw(stored, turns=turns)


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolate(Decode):
    """A row of latents on the arc between those of two pictures, or of two seeds.

    Attributes:
      seeds: the two seeds, or () for pictures.
      num: latents of the row, both ends included.
    """

    seeds: tuple[int, ...] = ()
    num: int = NUM_BETWEEN

    @property
    def name(self) -> str:
        ends = map(_stem, self.path.split(","))
        return "_".join(["_interpolate", *(["seeds"] if self.seeds else []), *ends])

    @property
    def inputs(self) -> list[pathlib.Path]:
        ends = () if self.seeds else self.path.split(",")
        return [pathlib.Path(end).expanduser() for end in ends]

    @property
    def about(self) -> dict[str, Any]:
        return {self.flag: {"seeds": self.seeds}} if self.seeds else super().about

    def ready(self, encode: Encoder, table: SamplerTable, shape: tuple[int, ...]) -> Origin:
        if self.seeds:
            ends = np.stack([_noise(seed, table, shape) for seed in self.seeds])
        else:
            ends = encode(self.pictures, np.array([0, self.num - 1]))
        shares = np.arange(self.num) / (self.num - 1)
        row = np.stack([slerp(ends[0], ends[1], share) for share in shares])
        return dataclasses.replace(self, pictures=row)

    def draw(self, kind: Kind, stored: np.ndarray, turns: int) -> Image.Image:
        return kind.draw(stored, min(self.num, _MOST_COLUMNS))


def _noise(seed: int, table: SamplerTable, shape: tuple[int, ...]) -> np.ndarray:
    """Return the initial noise of sample 0 of a seed."""
    samples = chain.Samples(jax.random.key(seed), jnp.zeros(1, jnp.int32))
    return np.asarray(chain.start_chain(table, samples, shape).x)[0]


def _known_start(x: np.ndarray) -> Start:
    return Start(jnp.asarray(x), jnp.zeros((len(x),) + (1,) * (x.ndim - 1), x.dtype))


def _first_level(table: SamplerTable) -> NoiseLevel:
    return NoiseLevel(*(column[0] for column in table.level))


def _stem(path: str) -> str:
    return re.sub(r"[^\w.-]", "-", pathlib.Path(path).absolute().stem)[:40]
