"""Write the report of a run as one page, or compare runs side by side.

    python report.py --workdir runs/digits
    python report.py runs/a runs/b

The page needs no network and no other file. Without a name it is of the newest run
under runs/. Writes report.html in the run's folder, and of several runs comparison.html
beside the first one's folder, unless --out names another file.
"""

import diffusion_jax.runtime.start  # noqa: F401  # isort: skip

from collections.abc import Sequence

from absl import flags

from diffusion_jax.jobs import command_line, report
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime import files, slices
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; default the newest under runs/."
)
_OUT = flags.DEFINE_string("out", None, "The page to write, or a folder for it.")


def main(names: Sequence[str]) -> None:
    if names and _WORKDIR.value is not None:
        raise BadRequest(
            f"--workdir {_WORKDIR.value} and {names[0]}: name the runs in one way"
        )
    workdirs = [files.expanded("the run", name) for name in names]
    out = files.expanded("--out", _OUT.value) if _OUT.value else None
    path = report.write(workdirs or [run_folder.named_or_newest(_WORKDIR.value)], out)
    say("wrote", path)


if __name__ == "__main__":
    command_line.run(main, takes_names=True, before_devices=slices.use_no_devices)
