"""Many names in one line: the first few, and a file that has all of them."""

import collections
import contextlib
import os
import tempfile
from collections.abc import Sequence

from diffusion_jax.runtime.text import shown

_MAX_NAMED = 5


def named(lines: Sequence[str]) -> str:
    """Return the first few of many lines, how many more there are, and a file of all.

    The file is a new one in the system's temporary folder, and only where not all lines
    are named.
    """
    said = "; ".join(map(shown, lines[:_MAX_NAMED]))
    if len(lines) <= _MAX_NAMED:
        return said
    said += f" and {len(lines) - _MAX_NAMED:,} more"
    with contextlib.suppress(OSError):  # A full disk is told of by what needs it.
        handle, path = tempfile.mkstemp(prefix="diffusion_jax_files_", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{shown(line)}\n" for line in lines)
        said += f" (all of them: {shown(path)})"
    return said


def by_suffix(names: Sequence[str]) -> str:
    """Return the number of names with each suffix: "3 .heic, 1 .txt"."""
    counts = collections.Counter(
        os.path.splitext(name)[1].lower() or "without a suffix" for name in names
    )
    kinds = [f"{count:,} {suffix}" for suffix, count in counts.most_common()]
    more = [f"{len(kinds) - _MAX_NAMED:,} other kinds"] if len(kinds) > _MAX_NAMED else []
    return shown(", ".join([*kinds[:_MAX_NAMED], *more]))
