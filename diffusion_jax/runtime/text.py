"""Text that comes from outside (names of files, messages of libraries), made safe to print.

Everything that the package prints is one line of `say`, or passes `shown`: a file name
cannot move the cursor, change the title of a terminal, or forge a line of its own.
"""

import contextlib
import datetime
import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator

from diffusion_jax.runtime import first_process

# Characters that change the direction of what follows.
_DIRECTIONS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_CONTROLS = frozenset(("Cc", "Cs", "Zl", "Zp"))


# How a command is started; `diffusion-jax` has another form.
form_of_commands = "python {}.py"


def command(name: str) -> str:
    """Return how the user starts a command, such as "python sample.py"."""
    return form_of_commands.format(name)


def _is_harmless(character: str) -> bool:
    return unicodedata.category(character) not in _CONTROLS and character not in _DIRECTIONS


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def shown(text: object) -> str:
    r"""Return `text` as one line of printable characters; others as \n, \x1b, \udcff."""
    return "".join(c if _is_harmless(c) else _escaped(c) for c in str(text))


def say(*parts: object) -> None:
    """Print one line, as of `shown`: the parts with a space between them.

    Of several processes the first one alone prints.
    """
    if not first_process.is_here():
        return
    with going_on():
        print(shown(" ".join(map(str, parts))), flush=True)


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Go on in silence if nothing can be printed within this context, or any more.

    A terminal that was closed, a reader that has left and a full disk below a log are
    no reason to lose a run.
    """
    try:
        yield
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def reason(error: BaseException) -> str:
    """Return what an error says, on one line; the name of its type if that is nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def quoted(argument: object) -> str:
    """Return an argument of a command as a shell reads it, on one line."""
    text = str(argument)
    if all(map(_is_harmless, text)):
        return shlex.quote(text)
    if any("\ud800" <= c <= "\udfff" for c in text):  # Bytes that are no UTF-8.
        pieces = (f"\\x{b:02x}" if b > 126 or b < 32 else chr(b) for b in _bytes(text))
    else:
        pieces = (c if _is_harmless(c) else _escaped(c) for c in _backslashed(text))
    return "$'" + "".join(pieces) + "'"


def _backslashed(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _bytes(text: str) -> bytes:
    return _backslashed(text).encode("utf-8", "surrogateescape")


def utc_now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
