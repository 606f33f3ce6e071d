"""Sample from a trained run.

    python sample.py --num 1024
    python sample.py --workdir runs/digits --num 64 --sampler ddim --steps 50 --show_chain

Takes the newest run under runs/ and what its config says about sampling, unless flags
say otherwise. Writes P.npz, P.png and P.json; P is --out, or lies in the run's samples/.
"""

import pathlib

from absl import flags

from diffusion_jax import command_line, generation, parallel, runs
from diffusion_jax.config import Config
from diffusion_jax.samplers.steps import SPACINGS
from diffusion_jax.samplers.tables import SAMPLERS
from diffusion_jax.training.weights import KINDS
from diffusion_jax.validation import BadRequest, check_choice

_WORKDIR = flags.DEFINE_string("workdir", None, "The run; the newest under runs/.")
_NUM = flags.DEFINE_integer("num", 64, "How many samples.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Decides every sample, with its index.", lower_bound=0, upper_bound=2**31 - 1
)
_OUT = flags.DEFINE_string("out", None, "Prefix P of the files, or a folder for them.")
_SAMPLER = flags.DEFINE_string("sampler", None, f"One of {', '.join(SAMPLERS)}.")
_STEPS = flags.DEFINE_integer("steps", None, "Network calls of a chain, 1 .. T.")
_SPACING = flags.DEFINE_string("spacing", None, f"One of {', '.join(SPACINGS)}.")
_ETA = flags.DEFINE_float("eta", None, "DDIM: 0 (deterministic) .. 1 (as DDPM).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Samples at a time.", lower_bound=1)
_WEIGHTS = flags.DEFINE_string("weights", "ema", "ema or raw.")
_SHOW_CHAIN = flags.DEFINE_bool("show_chain", False, "Also draw noise becoming samples.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files that exist.")


def main() -> None:
    if not 1 <= _NUM.value < 2**31:
        raise BadRequest(f"--num {_NUM.value} must be in 1 .. 2,147,483,647")
    check_choice("--weights", _WEIGHTS.value, KINDS)
    workdir = pathlib.Path(_WORKDIR.value or runs.newest_run(pathlib.Path("runs")))
    config = runs.read_config(workdir)
    _apply_flags(config)
    print(parallel.describe_devices())
    print(f"run: {workdir}; {config.sampling.sampler}, {config.sampling.steps:,} steps")
    generation.generate(
        workdir,
        config,
        num=_NUM.value,
        seed=_SEED.value,
        out=_prefix(workdir, config),
        weights=_WEIGHTS.value,
        show_chain=_SHOW_CHAIN.value,
        overwrite=_OVERWRITE.value,
    )


def _apply_flags(config: Config) -> None:
    """Puts the flags that were given into config.sampling."""
    sampling, num_timesteps = config.sampling, config.process.num_timesteps
    if _SAMPLER.value is not None:
        check_choice("--sampler", _SAMPLER.value, SAMPLERS)
        sampling.sampler = _SAMPLER.value
    if _SPACING.value is not None:
        check_choice("--spacing", _SPACING.value, SPACINGS)
        sampling.spacing = _SPACING.value
    if _STEPS.value is not None:
        if not 1 <= _STEPS.value <= num_timesteps:
            raise BadRequest(
                f"--steps {_STEPS.value} must be in 1 .. {num_timesteps}, the number "
                "of timesteps that the run was trained with"
            )
        sampling.steps = _STEPS.value
    if _ETA.value is not None:
        if not 0 <= _ETA.value <= 1:
            raise BadRequest(
                f"--eta {_ETA.value} must be in 0 (deterministic) .. 1 (as DDPM)"
            )
        if sampling.sampler != "ddim":
            raise BadRequest(f"--eta {_ETA.value} is for --sampler ddim only")
        sampling.eta = _ETA.value
    if _BATCH_SIZE.value is not None:
        sampling.batch_size = _BATCH_SIZE.value


def _prefix(workdir: pathlib.Path, config: Config) -> pathlib.Path:
    """Where the files go: a name by sampler, steps and seed unless --out is a prefix."""
    sampling = config.sampling
    name = f"{sampling.sampler}_{sampling.steps}"
    if sampling.sampler == "ddim" and sampling.eta:
        name += f"_eta{sampling.eta:g}"
    name += f"_seed{_SEED.value}"
    if _OUT.value is None:
        return runs.samples_path(workdir) / f"{name}_num{_NUM.value}"
    out = pathlib.Path(_OUT.value)
    if _OUT.value.endswith("/") or out.is_dir():
        return out / name
    return out.with_suffix("") if out.suffix in (".png", ".npz", ".json") else out


if __name__ == "__main__":
    command_line.run(main)
