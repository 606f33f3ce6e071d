"""The mark of the first process of a run, which prints, writes and holds the locks.

A process alone is the first one.
"""

_is_here = True


def is_here() -> bool:
    """Return whether this is the first process."""
    return _is_here


def say_whether(is_first: bool) -> None:
    """Tell this process whether it is the first one."""
    global _is_here
    _is_here = is_first
