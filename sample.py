"""Sample from a trained run.

    python sample.py --num 1024
    python sample.py --workdir runs/digits --num 64 --sampler dpmpp_2m --steps 20
    python sample.py --num 64 --sampler ddim --sweep "steps=10,20,50 eta=0,1"

Unless flags say otherwise, the run is the newest one under runs/, and its config decides
how to sample. Writes P.npz, P.png and P.json, where P is --out or a name in the run's
samples/. With --sweep there is a folder of such files, a sheet and a table.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

import dataclasses
import pathlib
import re
import warnings
from typing import Any

from absl import flags

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.diffusion.schedules import OddBetas
from diffusion_jax.experiment import build_sampler as samplings
from diffusion_jax.jobs import (
    cascade,
    command_line,
    guiding,
    labels,
    origin_flags,
    sample,
    shards,
    sweep,
)
from diffusion_jax.jobs.origins import Origin
from diffusion_jax.jobs.resumable import prefix
from diffusion_jax.runs import checkpoint_choice
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import class_names
from diffusion_jax.runs.weights import HELP as WEIGHTS_HELP
from diffusion_jax.runs.weights import check_kind
from diffusion_jax.runtime import compilation_cache, devices, files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say
from diffusion_jax.samplers.timesteps import AUTO

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; default the newest under runs/."
)
_NUM = flags.DEFINE_integer(
    "num",
    None,
    "Number of samples; default 64, of --interpolate 9, of --encode and --decode all.",
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Seed; each sample depends on it and on the sample's index alone.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
_OUT = flags.DEFINE_string("out", None, "Prefix P of the files, or a folder for them.")
_WEIGHTS = flags.DEFINE_string("weights", "ema", WEIGHTS_HELP)
_STEP = flags.DEFINE_string("step", checkpoint_choice.NEWEST, checkpoint_choice.HELP)
_DATA_PATH = flags.DEFINE_string(
    "data_path", None, "New place of the run's data.path, for --spacing auto."
)
_DATA_HELD_OUT = flags.DEFINE_string(
    "data_held_out", None, "New place of the run's data.held_out, for --spacing auto."
)
_DATA_LABEL_FILE = flags.DEFINE_string(
    "data_label_file", None, "New place of the run's data.label_file, for --spacing auto."
)
_LABEL = flags.DEFINE_string("label", None, labels.HELP)
_GUIDE = flags.DEFINE_string("guide", None, guiding.GUIDE_HELP)
_GUIDE_STEP = flags.DEFINE_string(
    "guide_step", checkpoint_choice.NEWEST, guiding.GUIDE_STEP_HELP
)
_PRIOR = flags.DEFINE_string("prior", None, guiding.PRIOR_HELP)
_PRIOR_SCALE = flags.DEFINE_float("prior_scale", None, guiding.PRIOR_SCALE_HELP)
_ORIGIN = {
    name: define(name, None, origin_flags.HELP[name])
    for define, names in (
        (
            flags.DEFINE_string,
            (
                "from_image",
                "upscale",
                "inpaint",
                "mask",
                "encode",
                "decode",
                "interpolate",
            ),
        ),
        (flags.DEFINE_float, ("strength",)),
        (flags.DEFINE_integer, ("resamplings", "jump_length")),
    )
    for name in names
}
_CASCADE = flags.DEFINE_string("cascade", None, cascade.HELP)
_SWEEP = flags.DEFINE_string("sweep", None, sweep.HELP)
_SHOW_CHAIN = flags.DEFINE_bool("show_chain", False, "Also draw how noise becomes samples.")
_SHARD = flags.DEFINE_string("shard", None, shards.SHARD_HELP)
_MERGE = flags.DEFINE_bool("merge", False, shards.MERGE_HELP)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files that exist.")
_CACHE = flags.DEFINE_string("compilation_cache", None, compilation_cache.HELP)


# Each stands for the field of this name in config.sampling.
_SAMPLING = command_line.define_field_flags(
    SamplingConfig(), [field.name for field in dataclasses.fields(SamplingConfig)]
)


def main() -> None:
    if _NUM.value is not None and not 1 <= _NUM.value < 2**31:
        raise BadRequest(f"--num {_NUM.value} must be in 1 .. 2,147,483,647")
    weights = check_kind("--weights", _WEIGHTS.value)
    wanted = checkpoint_choice.check_step("--step", _STEP.value)
    shard = shards.parse(_SHARD.value, merge=_MERGE.value)
    warnings.simplefilter("ignore", OddBetas)  # train.py has already warned about these.
    given = {name: flag.value for name, flag in _SAMPLING.items() if flag.value is not None}
    if _CASCADE.value is not None:
        _draw_cascade(given, weights, wanted)
        return
    workdir = run_folder.named_or_newest(_WORKDIR.value)
    config = run_folder.read_config(workdir)
    settings = _settings(config, given)
    if settings:
        config = settings[0].config
    else:
        samplings.change(config, given)
    moved = _DATA_PATH.value or _DATA_HELD_OUT.value or _DATA_LABEL_FILE.value
    if moved and config.sampling.spacing != AUTO:
        raise BadRequest(
            f"--data_path, --data_held_out and --data_label_file ({moved}) are for "
            "--spacing auto"
        )
    config.data.path = _DATA_PATH.value or config.data.path
    config.data.held_out = _DATA_HELD_OUT.value or config.data.held_out
    config.data.label_file = _DATA_LABEL_FILE.value or config.data.label_file
    for setting in settings:
        with setting.named():
            _guide(setting.config)
    guide = _guide(config)
    prior = _prior()
    names = class_names(workdir) if config.data.labels else []
    label = labels.parse(_LABEL.value, config, names)
    origin, num = origin_flags.choose(
        {name: flag.value for name, flag in _ORIGIN.items()}, config, _NUM.value
    )
    _check_has_class(config, origin, label)
    step = checkpoint_choice.chosen_step(workdir, config, wanted)
    devices.say_devices()
    compilation_cache.use(_CACHE.value)
    say(f"run: {workdir}")
    request = sample.Request(
        num=num,
        seed=_SEED.value,
        weights=weights,
        step=step,
        show_chain=_SHOW_CHAIN.value,
        shard=shard,
        merge=_MERGE.value,
        label=label,
        guide=guide,
        prior=prior,
        origin=origin,
    )
    if settings:
        out = _prefix(workdir, sweep.folder_name(settings, given), request)
        sweep.draw(workdir, settings, request, out=out, overwrite=_OVERWRITE.value)
        return
    name = f"{samplings.short_name(config.sampling)}{request.origin.name}"
    sample.generate(
        workdir,
        config,
        request,
        out=_prefix(workdir, name, request),
        overwrite=_OVERWRITE.value,
    )


def _draw_cascade(given: dict[str, Any], weights: str, step: str) -> None:
    """Draw the stages of --cascade, with the flags given that are fields of sampling."""
    for flag in (
        *(_WORKDIR, _SWEEP, _SHARD, _MERGE, _GUIDE, _PRIOR, *_ORIGIN.values()),
        *(_DATA_PATH, _DATA_HELD_OUT, _DATA_LABEL_FILE),
    ):
        if flag.value not in (None, False):
            raise BadRequest(f"--{flag.name} and --cascade: give one of them")
    stages = cascade.parse(_CASCADE.value, given, step)
    first, last = stages[0], stages[-1]
    names = class_names(first.workdir) if first.config.data.labels else []
    request = sample.Request(
        num=origin_flags.NUM if _NUM.value is None else _NUM.value,
        seed=_SEED.value,
        weights=weights,
        show_chain=_SHOW_CHAIN.value,
        label=labels.parse(_LABEL.value, first.config, names),
    )
    devices.say_devices()
    compilation_cache.use(_CACHE.value)
    name = f"cascade_{samplings.short_name(last.config.sampling)}"
    out = _prefix(last.workdir, name, request)
    cascade.draw(stages, request, out=out, overwrite=_OVERWRITE.value)


def _settings(config: Config, given: dict[str, Any]) -> list[sweep.Setting]:
    """Return the settings of --sweep, and none without it."""
    if _SWEEP.value is None:
        return []
    for flag in (_SHOW_CHAIN, _SHARD, _MERGE, *_ORIGIN.values()):
        if flag.value not in (None, False) and flag.name != "upscale":
            raise BadRequest(f"--{flag.name} and --sweep: give one of them")
    return sweep.parse(_SWEEP.value, config, given)


def _guide(config: Config) -> guiding.Guide | None:
    """Return the run of --guide; without it the run itself must have labels to guide by."""
    step = checkpoint_choice.check_step("--guide_step", _GUIDE_STEP.value)
    if _GUIDE.value is None:
        if step != checkpoint_choice.NEWEST:
            raise BadRequest(f"--guide_step {_GUIDE_STEP.value} needs --guide")
        labels.check_guidance(config)
        return None
    if not samplings.needs_base(config.sampling):
        raise BadRequest(
            f"--guide {_GUIDE.value} needs --guidance other than 0 and 1, such as 2"
        )
    workdir = files.expanded("--guide", _GUIDE.value)
    other = run_folder.read_config(workdir)
    chosen = checkpoint_choice.chosen_step(workdir, other, step, "--guide_step")
    return guiding.Guide(workdir, chosen)


def _prior() -> guiding.PriorFile | None:
    scale = _PRIOR_SCALE.value
    if _PRIOR.value is None:
        if scale is not None:
            raise BadRequest(f"--prior_scale {scale:g} needs --prior")
        return None
    scale = 1.0 if scale is None else scale
    if not abs(scale) < 1e6:
        raise BadRequest(f"--prior_scale {scale:g} must be a number below 1,000,000")
    return guiding.PriorFile(files.expanded("--prior", _PRIOR.value), scale)


def _check_has_class(config: Config, origin: Origin, label: tuple[int, ...]) -> None:
    """Refuse a class without guidance by it, and guidance where there is no class."""
    is_alone = not (_SWEEP.value or samplings.needs_base(config.sampling))
    if is_alone:
        labels.check_not_dropped(_LABEL.value, config)
    guided = samplings.needs_base(config.sampling) and _GUIDE.value is None
    if guided and not (label or origin.is_noise):
        raise BadRequest(
            f"--guidance {config.sampling.guidance:g}: there is no class to guide to; give "
            "--label, or --guidance 1"
        )


def _prefix(workdir: pathlib.Path, name: str, request: sample.Request) -> pathlib.Path:
    """Return the prefix of the files: in the run unless --out is a folder or a prefix.

    With --sweep they go into a folder, which --out names.
    """
    weights, step = request.weights, request.step
    name += f"_seed{_SEED.value}"
    if _LABEL.value is not None:
        name += "_label_" + re.sub(r"[^\w,-]", "-", _LABEL.value)[:40]
    for flag in (_GUIDE, _PRIOR):
        if flag.value is not None:
            name += f"_{flag.name}_{pathlib.Path(flag.value).stem}"
    if request.prior is not None and request.prior.scale != 1:
        name += f"_scale{request.prior.scale:g}"
    if request.guide is not None and request.guide.step is not None:
        name += f"_of_step{request.guide.step}"
    name += "" if weights == "ema" else f"_{weights.replace(':', '')}"
    name += "" if step is None else f"_step{step}"
    if _OUT.value is None:
        return run_folder.samples_path(workdir) / f"{name}_num{request.num}"
    if _SWEEP.value is not None:
        return files.expanded("--out", _OUT.value)
    return prefix(_OUT.value, name)


if __name__ == "__main__":
    command_line.run(main)
