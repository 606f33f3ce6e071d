"""The first import of a command: Ctrl-C, and settings that jax cannot read.

Importing and loading take seconds. Until there is something to save, Ctrl-C leaves at
once: Python's own exception may get lost, or end in a traceback, inside a library. And
jax refuses a setting of its environment variables with a traceback of its own.
"""

import os
import signal
import sys

from diffusion_jax.runtime.text import reason, shown

signal.signal(signal.SIGINT, lambda *_: os._exit(130))

try:
    import jax  # noqa: F401
except ValueError as refused:
    print(
        f"error: a variable of the environment: {shown(reason(refused))}", file=sys.stderr
    )
    sys.exit(2)
