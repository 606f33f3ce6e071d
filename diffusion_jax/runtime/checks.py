"""Small checks of what a user wrote."""

import contextlib
import difflib
from collections.abc import Iterator

from diffusion_jax.runtime.errors import BadRequest


@contextlib.contextmanager
def values_refused() -> Iterator[None]:
    """Turn a ValueError of the maths within this context into BadRequest."""
    try:
        yield
    except ValueError as error:
        raise BadRequest(str(error)) from error


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise BadRequest, with the nearest of `choices`, unless `value` is one of them."""
    if value not in choices:
        raise BadRequest(f"{name} ({value!r}) is unknown; {nearest(value, choices)}")


def nearest(value: str, choices: tuple[str, ...]) -> str:
    """Return "did you mean X?" where one is near, and the list of all where it is short."""
    close = difflib.get_close_matches(value[:99], choices, n=1, cutoff=0.7)
    listed = f"it can be {', '.join(c for c in choices if c)}"
    if not close:
        return listed
    return f"did you mean {close[0]}?" + (f" ({listed})" if len(choices) < 12 else "")
