"""Evaluate a trained run: its likelihood, in bits per dimension.

    python evaluate.py --likelihood
    python evaluate.py --workdir runs/digits --likelihood --num_timesteps_sampled 50
    python evaluate.py --likelihood --steps 20 --spacing auto
    python evaluate.py --likelihood --ode

Unless flags say otherwise, the run is the newest one under runs/, and the examples are
those that were held out of its training. Writes P.json, and for the bound also P.csv and
P.png, where P is --out or a name in the run's evaluations/.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

import pathlib
import warnings

from absl import flags

from diffusion_jax.diffusion.parameterization import VARIANCES
from diffusion_jax.diffusion.schedules import OddBetas
from diffusion_jax.jobs import command_line, likelihood, shards
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
_SPLIT = flags.DEFINE_string("split", "held_out", "Split to evaluate: held_out or train.")
_MAX_EXAMPLES = flags.DEFINE_integer(
    "max_examples", None, "Evaluate at most this many examples."
)
_SAMPLED = flags.DEFINE_integer(
    "num_timesteps_sampled",
    None,
    "Timesteps per image, for an estimate of the bound, 1 .. T; default all.",
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Evaluate the bound over this many timesteps, 2 .. T; default all."
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
    if not (_LIKELIHOOD.value or _ODE.value):
        raise BadRequest("nothing to evaluate; give --likelihood, or --ode, or both")
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
        split=_SPLIT.value,
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
    config = run_folder.read_config(workdir)
    warnings.simplefilter("ignore", OddBetas)  # train.py has already warned about these.
    request.step = checkpoint_choice.chosen_step(workdir, config, wanted)
    config.data.path = _DATA_PATH.value or config.data.path
    config.data.held_out = _DATA_HELD_OUT.value or config.data.held_out
    config.data.label_file = _DATA_LABEL_FILE.value or config.data.label_file
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
