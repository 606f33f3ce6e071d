"""Train a diffusion model, or go on with a run that was stopped.

    python train.py --config configs/digits.py
    python train.py --config configs/digits.py --config.optimizer.learning_rate=5e-4

The same command again resumes the run. Ctrl-C and SIGTERM save first. Any field of the
config can be given as --config.SECTION.FIELD=VALUE; diffusion_jax/config.py lists them.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

import pathlib

from absl import flags

from diffusion_jax import command_line, compilation_cache, parallel
from diffusion_jax.config import Config, to_json
from diffusion_jax.runtime.text import say
from diffusion_jax.training import checkpoint_choice, loop
from diffusion_jax.training.plan import load_data, make_plan
from diffusion_jax.training.weights import check_kind

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; runs/NAME of the config unless given."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Delete the run that is in the folder and start anew."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check the config and the data, print the config and stop."
)
_INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Start a new run from the weights of a run, or of an exported file."
)
_INIT_WEIGHTS = flags.DEFINE_string(
    "init_weights", "ema", "Of that run; as --weights of sample.py."
)
_INIT_STEP = flags.DEFINE_string(
    "init_step", checkpoint_choice.NEWEST, f"Of that run; {checkpoint_choice.HELP}"
)
_CHANGE_RATE = flags.DEFINE_bool(
    "change_learning_rate", False, "Go on with another optimizer.learning_rate than before."
)
_CACHE = flags.DEFINE_string("compilation_cache", None, compilation_cache.HELP)


def main(config: Config) -> None:
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.name}").expanduser()
    parallel.say_devices()
    if _DRY_RUN.value:
        plan = load_data(make_plan(config, prepare=False))
        print(to_json(plan.config), end="")
        return
    init_weights = check_kind("--init_weights", _INIT_WEIGHTS.value)
    init_step = checkpoint_choice.check_step("--init_step", _INIT_STEP.value)
    compilation_cache.use(_CACHE.value)
    say(f"run: {workdir}")
    loop.train(
        config,
        workdir,
        overwrite=_OVERWRITE.value,
        init_from=pathlib.Path(_INIT_FROM.value).expanduser() if _INIT_FROM.value else None,
        init_weights=init_weights,
        init_step=init_step,
        change_learning_rate=_CHANGE_RATE.value,
    )


if __name__ == "__main__":
    command_line.run(main, takes_config=True)
