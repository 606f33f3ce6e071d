"""The origin of a request, of `origins.py`, from the flags of a command line."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.data.kinds import PICTURES, kind_of
from diffusion_jax.data.npz import read_arrays
from diffusion_jax.data.own_pictures import read_mask, read_pictures
from diffusion_jax.jobs.origins import (
    JUMP_LENGTH,
    NOISE,
    NUM_BETWEEN,
    RESAMPLINGS,
    STRENGTH,
    Decode,
    Encode,
    FromImage,
    Given,
    Inpaint,
    Interpolate,
    Origin,
    Upscale,
)
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest

NUM = 64  # Samples, where neither --num nor the origin says how many.
_MOST_RESAMPLINGS = 10**4
HELP = {
    "from_image": "Image, folder or zip of images, or .npz: begin at these pictures with "
    "noise on them (SDEdit), picture i mod n for sample i.",
    "strength": "Share of the noise process that --from_image goes back, 0 .. 1; default "
    f"{STRENGTH}.",
    "upscale": "Pictures, as of --from_image, of low resolution: the run, which was "
    "trained with data.low_res, refines them.",
    "inpaint": "Pictures, as of --from_image, of which the part that --mask shows is "
    "painted again.",
    "mask": "Image: what is white is painted by --inpaint, what is black is kept.",
    "resamplings": "How often --inpaint runs each stretch of rows, so that what is painted "
    f"fits what is kept (RePaint); default {RESAMPLINGS}.",
    "jump_length": "Rows of each stretch that --inpaint runs again; default "
    f"{JUMP_LENGTH}.",
    "encode": "Pictures, as of --from_image, whose latents are written: the deterministic "
    "chain backwards.",
    "decode": "An .npz of --encode: the deterministic chain from its latents to pictures.",
    "interpolate": "A,B: two image files or two seeds; --num pictures from one to the "
    "other.",
}
_NEEDS = {
    "strength": "from_image",
    "mask": "inpaint",
    "resamplings": "inpaint",
    "jump_length": "inpaint",
}


def choose(given: Mapping[str, Any], config: Config, num: int | None) -> tuple[Origin, int]:
    """Return the origin that flags ask for, and the number of samples.

    Args:
      given: values of the flags in `HELP`; None for those not given.
      config: of the run.
      num: of --num, or None.

    Raises:
      BadRequest: for flags that exclude each other, or files that cannot be used.
    """
    given = {flag: value for flag, value in given.items() if value is not None}
    chosen = [flag for flag in _CHOICES if flag in given]
    if len(chosen) > 1:
        raise BadRequest(f"--{chosen[0]} and --{chosen[1]}: give one of them")
    for option, flag in _NEEDS.items():
        if option in given and flag not in given:
            raise BadRequest(f"--{option} {given[option]} needs --{flag}")
    if not chosen:
        return NOISE, NUM if num is None else num
    kind = kind_of(config.data)
    if kind is not PICTURES:
        raise BadRequest(
            f"--{chosen[0]} is for {PICTURES.name}, and the run's examples are {kind.name}"
        )
    return _CHOICES[chosen[0]](given, config, num)


def _from_image(
    given: Mapping[str, Any], config: Config, num: int | None
) -> tuple[Origin, int]:
    strength = given.get("strength", STRENGTH)
    if not 0 <= strength <= 1:
        raise BadRequest(f"--strength {strength:g} must be in 0 .. 1")
    num, path = NUM if num is None else num, given["from_image"]
    found = read_pictures(path, "--from_image", config.data, num)
    return FromImage("from_image", path, found.pixels, strength), num


def _upscale(
    given: Mapping[str, Any], config: Config, num: int | None
) -> tuple[Origin, int]:
    path, data = given["upscale"], config.data
    if not data.low_res:
        raise BadRequest(
            f"--upscale {path}: the run was trained without data.low_res; take one that "
            "was, such as of configs/mnist8to32.py"
        )
    low = dataclasses.replace(
        data, image_size=data.low_res, low_res=(), reduced_from=data.image_size
    )
    found = read_pictures(path, "--upscale", low, NUM if num is None else num)
    num = len(found.pixels) if num is None else num
    return Upscale("upscale", path, found.pixels), num


def _inpaint(
    given: Mapping[str, Any], config: Config, num: int | None
) -> tuple[Origin, int]:
    path = given["inpaint"]
    if "mask" not in given:
        raise BadRequest(f"--inpaint {path} needs --mask, an image that is white there")
    numbers = [
        given.get("resamplings", RESAMPLINGS),
        given.get("jump_length", JUMP_LENGTH),
    ]
    for flag, number in zip(("resamplings", "jump_length"), numbers, strict=True):
        if not 1 <= number <= _MOST_RESAMPLINGS:
            raise BadRequest(f"--{flag} {number} must be in 1 .. {_MOST_RESAMPLINGS:,}")
    num = NUM if num is None else num
    found = read_pictures(path, "--inpaint", config.data, num)
    is_known = read_mask(given["mask"], "--mask", config.data, found.sizes)
    origin = Inpaint("inpaint", path, found.pixels, is_known, given["mask"], *numbers)
    return origin, num


def _encode(
    given: Mapping[str, Any], config: Config, num: int | None
) -> tuple[Origin, int]:
    path = given["encode"]
    found = read_pictures(path, "--encode", config.data, num or 2**31)
    origin = Encode("encode", path, found.pixels)
    return origin, _checked_num(num, origin, "pictures")


def _decode(
    given: Mapping[str, Any], config: Config, num: int | None
) -> tuple[Origin, int]:
    path = given["decode"]
    where, shape = f"--decode ({path!r})", list(config.data.shape)
    file = pathlib.Path(path).expanduser()
    if file.is_dir() or file.suffix != ".npz":
        raise BadRequest(f"{where} must be an .npz that --encode has written")
    latents = read_arrays(path, "--decode", config.data)[0]
    if latents.dtype != np.float32 or list(latents.shape[1:]) != shape or not len(latents):
        form = ", ".join(map(str, shape))
        raise BadRequest(
            f"{where}: arr_0 is {latents.dtype} {list(latents.shape)}, but must be the "
            f"latents that --encode writes, float32 [N, {form}]"
        )
    if not np.isfinite(latents).all():
        raise BadRequest(f"{where}: arr_0 has values that are not finite")
    _warn_of_other_chain(file, config.sampling)
    origin = Decode("decode", path, latents[:num])
    return origin, _checked_num(num, origin, "latents")


def _warn_of_other_chain(file: pathlib.Path, sampling: SamplingConfig) -> None:
    """Warn where the note beside latents says that another chain has led to them."""
    try:
        note = files.parse_json(files.read_note(file.with_suffix(".json")))
    except (OSError, ValueError):
        return
    note = note if isinstance(note, dict) else {}
    for name in ("sampler", "steps", "spacing", "threshold"):
        here = getattr(sampling, name)
        if note.get(name, here) != here:
            warnings.warn(
                f"--decode {file}: its latents were encoded with {name} {note[name]!r}, "
                f"and are decoded with {here!r}",
                stacklevel=2,
            )


def _checked_num(num: int | None, origin: Given, what: str) -> int:
    there = len(origin.pictures)
    if num is not None and num > there:
        raise BadRequest(
            f"--num {num}: --{origin.flag} {origin.path} has {there} {what}; leave --num "
            "out"
        )
    return there


def _interpolate(
    given: Mapping[str, Any], config: Config, num: int | None
) -> tuple[Origin, int]:
    text = given["interpolate"]
    num = NUM_BETWEEN if num is None else num
    ends = text.split(",")
    if len(ends) != 2 or not all(ends):
        raise BadRequest(
            f"--interpolate {text} must be two image files or two seeds, such as "
            "a.png,b.png or 3,7"
        )
    if num < 2:
        raise BadRequest(f"--num {num}: --interpolate needs 2 or more, for its two ends")
    if all(end.isdecimal() for end in ends):
        seeds = tuple(map(int, ends))
        if max(seeds) >= 2**31:
            raise BadRequest(f"--interpolate {text}: seeds must be in 0 .. 2,147,483,647")
        return Interpolate("interpolate", text, seeds=seeds, num=num), num
    found = [read_pictures(end, "--interpolate", config.data, 2).pixels for end in ends]
    for end, pixels in zip(ends, found, strict=True):
        if len(pixels) > 1:
            raise BadRequest(f"--interpolate {end} must be one image, and has more")
    return Interpolate("interpolate", text, np.concatenate(found), num=num), num


_Choice = Callable[[Mapping[str, Any], Config, int | None], tuple[Origin, int]]
_CHOICES: dict[str, _Choice] = {
    "from_image": _from_image,
    "upscale": _upscale,
    "inpaint": _inpaint,
    "encode": _encode,
    "decode": _decode,
    "interpolate": _interpolate,
}
