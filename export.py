"""Write the weights of a run to one file, for other programs or another run.

    python export.py --workdir runs/digits --out digits.safetensors
    python train.py --config configs/digits.py --init_from digits.safetensors

The name of the file must end in .safetensors or .npz; diffusion_jax/runs/weight_files.py
describes its contents.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

from absl import flags

from diffusion_jax.jobs import command_line
from diffusion_jax.runs import checkpoint_choice, weights
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; default the newest under runs/."
)
_OUT = flags.DEFINE_string(
    "out", None, "The file to write; default WEIGHTS_STEP.safetensors in the run's folder."
)
_WEIGHTS = flags.DEFINE_string("weights", "ema", weights.HELP)
_STEP = flags.DEFINE_string("step", checkpoint_choice.NEWEST, checkpoint_choice.HELP)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")


def main() -> None:
    kind = weights.check_kind("--weights", _WEIGHTS.value)
    wanted = checkpoint_choice.check_step("--step", _STEP.value)
    workdir = run_folder.named_or_newest(_WORKDIR.value)
    config = run_folder.read_config(workdir)
    step = checkpoint_choice.chosen_step(workdir, config, wanted)
    found = weights.load_from_run(workdir, config, kind, step=step)
    name = f"{found.kind.replace(':', '')}_{found.step:06d}.safetensors"
    out = files.expanded("--out", _OUT.value) if _OUT.value else workdir / name
    if run_folder.is_part(workdir, out):
        raise BadRequest(f"--out {out} belongs to the run; give another --out")
    weights.save_to_file(out, found, config, overwrite=_OVERWRITE.value)
    say(f"wrote {out}: the {found.kind} weights of {workdir} at step {found.step:,}")


if __name__ == "__main__":
    command_line.run(main)
