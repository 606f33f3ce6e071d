"""Train a diffusion model, or resume a run that was stopped.

    python train.py --config configs/digits.py
    python train.py --config configs/digits.py --config.optimizer.learning_rate=5e-4
    python train.py --config configs/digits.py --smoke
    python train.py --config configs/digits.py --rehearse v5e:2x2

Giving the same command again resumes the run. Ctrl-C and SIGTERM save before they stop
it. Any field of the config can be set as --config.SECTION.FIELD=VALUE; --config FILE
--help lists them.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

from absl import flags

from diffusion_jax.config import Config, to_json
from diffusion_jax.jobs import command_line, likelihood, report, sample
from diffusion_jax.runs import checkpoint_choice
from diffusion_jax.runs.weights import check_kind
from diffusion_jax.runtime import compilation_cache, devices, files, slices
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say
from diffusion_jax.training import rehearsal, smoke, train

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; default runs/NAME, with the name of the config."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Delete the run that is in the folder and start again."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check the config and the data, print the config and stop."
)
_SMOKE = flags.DEFINE_bool(
    "smoke",
    False,
    "Try everything on a small scale in runs/smoke/NAME, and print how long the whole run "
    "would take.",
)
_REHEARSE = flags.DEFINE_string(
    "rehearse",
    None,
    "Compile the train step and the sampler for chips that are not here, and print memory, "
    "FLOP, collectives and kernels: v5e:16x16, h100:8, h100:2x8, v4, ...",
)
_INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Start a new run from the weights of another run or exported file."
)
_INIT_WEIGHTS = flags.DEFINE_string(
    "init_weights",
    None,
    "Weights of the --init_from run to start from, as --weights of sample.py; default ema.",
)
_INIT_STEP = flags.DEFINE_string(
    "init_step",
    None,
    "Checkpoint of the --init_from run, as --step of sample.py; default newest.",
)
_CHANGE_RATE = flags.DEFINE_bool(
    "change_learning_rate", False, "Resume a run with another optimizer.learning_rate."
)
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "FIRST:LAST, train steps of which JAX's profiler writes a profile into the run folder, "
    "for TensorBoard.",
)
_WANDB = flags.DEFINE_string(
    "wandb", None, "Project of Weights & Biases that gets the metrics and pictures as well."
)
_CACHE = flags.DEFINE_string("compilation_cache", None, compilation_cache.HELP)

# Commands that --smoke tries besides the training, by their names.
_TRIED_OUT = {"sample.py": sample.try_out, "evaluate.py": likelihood.try_out}


def before_devices() -> None:
    if _REHEARSE.value:
        slices.use_no_devices()


def rehearse(config: Config) -> None:
    others = (_SMOKE, _DRY_RUN, _OVERWRITE, _INIT_FROM, _INIT_WEIGHTS, _INIT_STEP)
    for flag in (*others, _CHANGE_RATE, _WORKDIR, _CACHE, _PROFILE, _WANDB):
        if flag.value:
            raise BadRequest(f"--rehearse and --{flag.name}: give one of them")
    rehearsal.run(config, slices.parse("--rehearse", _REHEARSE.value))


def main(config: Config) -> None:
    if _REHEARSE.value:
        rehearse(config)
        return
    usual = smoke.default_workdir(config) if _SMOKE.value else f"runs/{config.name}"
    workdir = files.expanded("--workdir", _WORKDIR.value or str(usual))
    init_from = None
    if _INIT_FROM.value is not None:
        init_from = files.expanded("--init_from", _INIT_FROM.value)
    else:
        for flag in (_INIT_WEIGHTS, _INIT_STEP):
            if flag.value is not None:
                raise BadRequest(f"--{flag.name} {flag.value} needs --init_from")
    if _CHANGE_RATE.value and _OVERWRITE.value:
        raise BadRequest(
            "--change_learning_rate is for resuming a run, which --overwrite deletes: give "
            "one of them"
        )
    for flag in (_DRY_RUN, _OVERWRITE, _CHANGE_RATE, _PROFILE, _WANDB):
        if _SMOKE.value and flag.value:
            raise BadRequest(f"--smoke and --{flag.name}: give one of them")
    request = train.Request(
        overwrite=_OVERWRITE.value,
        init_from=init_from,
        init_weights=check_kind("--init_weights", _INIT_WEIGHTS.value or "ema"),
        init_step=checkpoint_choice.check_step(
            "--init_step", _INIT_STEP.value or checkpoint_choice.NEWEST
        ),
        change_learning_rate=_CHANGE_RATE.value,
        profile=_PROFILE.value,
        wandb=_WANDB.value,
        command=command_line.as_given("train"),
    )
    devices.say_devices()
    if _DRY_RUN.value:
        compilation_cache.check(_CACHE.value)
        start = train.prepare(config, workdir, None, request, dry_run=True)
        print(to_json(start.plan.config), end="", flush=True)
        return
    compilation_cache.use(_CACHE.value)
    if _SMOKE.value:
        smoke.run(config, workdir, request, _TRIED_OUT)
        return
    say(f"run: {workdir}")
    state = train.train(config, workdir, None, request)
    if int(state.step) >= config.training.num_steps:  # It was not stopped.
        report.write_after_training(workdir)


if __name__ == "__main__":
    command_line.run(main, takes_config=True, before_devices=before_devices)
