"""`diffusion-jax train|sample|evaluate|export|report ...`, wherever it is installed.

Each command is the script of its name at the top of the project, with the same flags.
"""

import runpy
import sys

from diffusion_jax.runtime import text
from diffusion_jax.runtime.checks import check_choice
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.files import project_file

COMMANDS = ("train", "sample", "evaluate", "export", "report")
_USAGE = f"""\
diffusion-jax {{{"|".join(COMMANDS)}}} ...

    diffusion-jax train --config digits
    diffusion-jax sample --num 64

--help after a command lists its flags. --config takes the name of a config of the
package or the path of a file."""


def main() -> None:
    """Run the command that the first argument names."""
    name, *rest = sys.argv[1:] or [""]
    if name.lstrip("-") in ("", "h", "help"):
        print(_USAGE, file=sys.stdout if name else sys.stderr)
        sys.exit(0 if name else 2)
    try:
        check_choice("command", name, COMMANDS)
    except BadRequest as error:
        print(f"error: {text.shown(error)}", file=sys.stderr)
        sys.exit(2)
    script = str(project_file(f"{name}.py"))
    sys.argv = [script, *rest]
    text.form_of_commands = "diffusion-jax {}"
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
