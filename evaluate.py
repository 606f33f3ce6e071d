"""Evaluate a trained run: its likelihood in bits per dimension, or its samples' quality.

    python evaluate.py --quality
    python evaluate.py --quality --num 5000 --sampler ddim --steps 50 --seeds 3
    python evaluate.py --quality --samples a.npz --reference b.npz
    python evaluate.py --likelihood
    python evaluate.py --workdir runs/digits --likelihood --num_timesteps_sampled 50
    python evaluate.py --likelihood --steps 20 --spacing auto
    python evaluate.py --likelihood --ode

Unless flags say otherwise, the run is the newest one under runs/. The likelihood is that of
examples that were held out of its training; samples are compared with those that it was
trained on. Writes P.json, for the bound also P.csv and P.png, and for the quality also
P.png, where P is --out or a name in the run's evaluations/.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

import dataclasses
import pathlib
import warnings

from absl import flags

from diffusion_jax.config import Config, SamplingConfig
from diffusion_jax.diffusion.parameterization import VARIANCES
from diffusion_jax.diffusion.schedules import OddBetas
from diffusion_jax.jobs import (
    command_line,
    feature_choice,
    labels,
    likelihood,
    quality_flags,
    sample,
    shards,
    sweep,
)
from diffusion_jax.jobs.resumable import prefix
from diffusion_jax.runs import checkpoint_choice
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.weights import HELP as WEIGHTS_HELP
from diffusion_jax.runs.weights import check_kind
from diffusion_jax.runtime import compilation_cache, devices
from diffusion_jax.runtime.checks import check_choice
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say
from diffusion_jax.samplers.timesteps import AUTO, SPACINGS

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; default the newest under runs/."
)
_LIKELIHOOD = flags.DEFINE_bool(
    "likelihood", False, "Evaluate the variational bound on the likelihood."
)
_ODE = flags.DEFINE_bool(
    "ode", False, "Evaluate the likelihood under the probability-flow ODE."
)
_WEIGHTS = flags.DEFINE_string("weights", "ema", WEIGHTS_HELP)
_STEP = flags.DEFINE_string("step", checkpoint_choice.NEWEST, checkpoint_choice.HELP)
_DATA_PATH = flags.DEFINE_string(
    "data_path", None, "New place of the run's data.path, if the data were moved."
)
_DATA_HELD_OUT = flags.DEFINE_string(
    "data_held_out", None, "New place of the run's data.held_out, if the data were moved."
)
_DATA_LABEL_FILE = flags.DEFINE_string(
    "data_label_file", None, "New place of the run's data.label_file, if it was moved."
)
_QUALITY = flags.DEFINE_bool(
    "quality",
    False,
    "Compare samples with the data: FD, KID, precision, recall and others.",
)
_OF_QUALITY = {
    name: define(name, None, helps[name])
    for define, helps in (
        (
            flags.DEFINE_string,
            {
                "features": feature_choice.HELP,
                "inception": feature_choice.INCEPTION_HELP,
                "samples": quality_flags.HELP["samples"],
                "reference": quality_flags.HELP["reference"],
                "sweep": sweep.HELP,
                "label": labels.HELP,
            },
        ),
        (flags.DEFINE_integer, {n: quality_flags.HELP[n] for n in ("num", "seeds")}),
    )
    for name in helps
}
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "Split to evaluate, held_out or train; default train for --quality, else held_out.",
)
_MAX_EXAMPLES = flags.DEFINE_integer(
    "max_examples",
    None,
    "Evaluate at most this many examples; with --quality, of the reference.",
)
_SAMPLED = flags.DEFINE_integer(
    "num_timesteps_sampled",
    None,
    "Timesteps per image, for an estimate of the bound, 1 .. T; default all.",
)
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Evaluate the bound over this many timesteps, 2 .. T, default all; with --quality, "
    "timesteps of the samples.",
)
_SPACING = flags.DEFINE_string(
    "spacing",
    None,
    f"Spacing of the timesteps of --steps: {', '.join((*SPACINGS, AUTO))}.",
)
_ODE_STEPS = flags.DEFINE_integer(
    "ode_steps",
    None,
    "Steps of the ODE, each with four calls of the network; default 50.",
    lower_bound=1,
    upper_bound=100_000,
)
_VARIANCE = flags.DEFINE_string(
    "variance",
    None,
    f"Variance of the reverse steps, if not the run's: {', '.join(VARIANCES)}.",
)
# Each stands for the field of this name in config.sampling; three are of the bound, too.
_SAMPLING = {
    "steps": _STEPS,
    "spacing": _SPACING,
    "variance": _VARIANCE,
    **command_line.define_field_flags(
        SamplingConfig(),
        [
            field.name
            for field in dataclasses.fields(SamplingConfig)
            if field.name not in ("steps", "spacing", "variance")
        ],
    ),
}
_OF_THE_BOUND = (_STEPS, _SPACING, _SAMPLED, _VARIANCE)
# On the digits, beside 50 steps: 20 are 0.1 % off, 10 1.6 %, 3 36 % too low, 1 900,000 %.
_FEW_ODE_STEPS = 20
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of timesteps and noise.", lower_bound=0, upper_bound=2**31 - 1
)
_OUT = flags.DEFINE_string("out", None, "Prefix P of the files, or a folder for them.")
_SHARD = flags.DEFINE_string("shard", None, shards.SHARD_HELP)
_MERGE = flags.DEFINE_bool("merge", False, shards.MERGE_HELP)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files that exist.")
_CACHE = flags.DEFINE_string("compilation_cache", None, compilation_cache.HELP)


def main() -> None:
    if not _QUALITY.value:
        of_the_bound = {flag.name for flag in _OF_THE_BOUND}
        for flag in (*_OF_QUALITY.values(), *_SAMPLING.values()):
            if flag.name not in of_the_bound and flag.value is not None:
                raise BadRequest(f"--{flag.name} {flag.value} needs --quality")
        _evaluate_likelihood()
        return
    for flag in (_LIKELIHOOD, _ODE, _SAMPLED, _ODE_STEPS):
        if flag.value:
            raise BadRequest(f"--quality and --{flag.name}: give one of them")
    _evaluate_quality()


def _evaluate_quality() -> None:
    own = {name: flag.value for name, flag in _OF_QUALITY.items()}
    given = quality_flags.Given(
        own,
        {name: flag.value for name, flag in _SAMPLING.items() if flag.value is not None},
        sample.Request(
            num=own["num"] or quality_flags.NUM,
            seed=_SEED.value,
            weights=check_kind("--weights", _WEIGHTS.value),
            shard=shards.parse(_SHARD.value, merge=_MERGE.value),
            merge=_MERGE.value,
        ),
        checkpoint_choice.check_step("--step", _STEP.value),
        _SPLIT.value,
        _at_least_one("max_examples", _MAX_EXAMPLES.value),
        _OUT.value,
    )
    if _SPLIT.value is not None:
        check_choice("--split", _SPLIT.value, likelihood.SPLITS)
    workdir, config = None, None
    if _WORKDIR.value is not None or not (own["samples"] and own["reference"]):
        workdir = run_folder.named_or_newest(_WORKDIR.value)
        config = _moved(run_folder.read_config(workdir))
        warnings.simplefilter("ignore", OddBetas)
    devices.say_devices()
    compilation_cache.use(_CACHE.value)
    if workdir is not None:
        say(f"run: {workdir}")
    quality_flags.evaluate(given, workdir, config, _OVERWRITE.value)


def _moved(config: Config) -> Config:
    """Return the config with the new places of data that were moved."""
    config.data.path = _DATA_PATH.value or config.data.path
    config.data.held_out = _DATA_HELD_OUT.value or config.data.held_out
    config.data.label_file = _DATA_LABEL_FILE.value or config.data.label_file
    return config


def _evaluate_likelihood() -> None:
    if not (_LIKELIHOOD.value or _ODE.value):
        raise BadRequest(
            "nothing to evaluate; give --likelihood, --ode or both, or --quality"
        )
    if _LIKELIHOOD.value and _ODE.value and _OUT.value is not None:
        raise BadRequest(
            f"--out {_OUT.value} is for one evaluation: give --likelihood or --ode alone"
        )
    if _SPACING.value is not None and _STEPS.value is None:
        raise BadRequest(f"--spacing {_SPACING.value} needs --steps")
    for wanted, flag in ((_ODE, _ODE_STEPS), *((_LIKELIHOOD, f) for f in _OF_THE_BOUND)):
        if flag.value is not None and not wanted.value:
            raise BadRequest(f"--{flag.name} {flag.value} needs --{wanted.name}")
    if _ODE_STEPS.value is not None and _ODE_STEPS.value < _FEW_ODE_STEPS:
        warnings.warn(
            f"--ode_steps {_ODE_STEPS.value}: fewer than {_FEW_ODE_STEPS} give a wrong "
            "figure, which may be too low; take more",
            stacklevel=2,
        )
    request = likelihood.Request(
        split=_SPLIT.value or "held_out",
        max_examples=_at_least_one("max_examples", _MAX_EXAMPLES.value),
        num_timesteps_sampled=_at_least_one("num_timesteps_sampled", _SAMPLED.value),
        steps=_at_least_one("steps", _STEPS.value),
        spacing=_SPACING.value or "trailing",
        ode_steps=_ODE_STEPS.value or likelihood.Request.ode_steps,
        weights=check_kind("--weights", _WEIGHTS.value),
        seed=_SEED.value,
        shard=shards.parse(_SHARD.value, merge=_MERGE.value),
        merge=_MERGE.value,
    )
    wanted = checkpoint_choice.check_step("--step", _STEP.value)
    check_choice("--split", request.split, likelihood.SPLITS)
    check_choice("--spacing", request.spacing, (*SPACINGS, AUTO))
    workdir = run_folder.named_or_newest(_WORKDIR.value)
    config = _moved(run_folder.read_config(workdir))
    warnings.simplefilter("ignore", OddBetas)  # train.py has already warned about these.
    request.step = checkpoint_choice.chosen_step(workdir, config, wanted)
    learned = config.process.variance == "learned"
    if _VARIANCE.value is not None:
        check_choice("--variance", _VARIANCE.value, VARIANCES)
        if (_VARIANCE.value == "learned") != learned:
            raise BadRequest(
                f"--variance {_VARIANCE.value}: the network of {workdir} "
                f"{'has learned' if learned else 'has not learned'} its variances; leave "
                "the flag out"
            )
        config.process.variance = _VARIANCE.value
    devices.say_devices()
    compilation_cache.use(_CACHE.value)
    say(f"run: {workdir}")
    jobs = likelihood.prepare(
        workdir,
        config,
        request,
        bound=_prefix(workdir, "likelihood", request) if _LIKELIHOOD.value else None,
        flow=_prefix(workdir, "ode", request) if _ODE.value else None,
        overwrite=_OVERWRITE.value,
    )
    for job in jobs:  # All were checked before the first one begins.
        job()


def _at_least_one(name: str, value: int | None) -> int:
    if value is not None and value < 1:
        raise BadRequest(f"--{name} {value} must be at least 1")
    return value or 0


def _prefix(workdir: pathlib.Path, name: str, request: likelihood.Request) -> pathlib.Path:
    parts = [name, request.split]
    if request.weights != "ema":
        parts.append(request.weights.replace(":", ""))
    if request.step is not None:
        parts.append(f"step{request.step}")
    if name == "ode" and request.ode_steps != likelihood.Request.ode_steps:
        parts.append(f"steps{request.ode_steps}")
    if name == "likelihood" and request.steps:
        parts += [f"steps{request.steps}", request.spacing]
    if name == "likelihood" and request.num_timesteps_sampled:
        parts.append(f"t{request.num_timesteps_sampled}")
    if request.max_examples:
        parts.append(f"num{request.max_examples}")
    if _VARIANCE.value is not None:
        parts.append(_VARIANCE.value)
    if request.seed:
        parts.append(f"seed{request.seed}")
    if _OUT.value is not None:
        return prefix(_OUT.value, "_".join(parts))
    return run_folder.evaluations_path(workdir) / "_".join(parts)


if __name__ == "__main__":
    command_line.run(main)
