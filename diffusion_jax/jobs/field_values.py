"""Fields of `SamplingConfig` with values, as one flag lists them: "steps=10,20 eta=0,1"."""

from typing import Any

from diffusion_jax.config import SamplingConfig
from diffusion_jax.runtime.checks import nearest
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.fields import leaves_of


def parse(flag: str, text: str, known: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return the values of each field, as they are written.

    Args:
      flag: that lists them, for messages.
      text: "field=value,value field=value".
      known: fields that it can list.

    Raises:
      BadRequest: for a field that it cannot list, or a value that is none.
    """
    leaves = {leaf.path: leaf for leaf in leaves_of(SamplingConfig())}
    found: dict[str, list[Any]] = {}
    for part in text.split():
        field, equals, listed = part.partition("=")
        field = field.lstrip("-").replace("-", "_")
        if not equals:
            raise BadRequest(
                f'{flag} {part}: must be fields with values, such as "steps=10,20 eta=0,1"'
            )
        if field not in known:
            also = f"; give --{field} beside {flag}" if field in leaves else ""
            verb = "swept" if flag == "--sweep" else "given here"
            raise BadRequest(
                f"{flag}: {field!r} cannot be {verb}{also}; {nearest(field, known)}"
            )
        if field in found:
            raise BadRequest(f"{flag}: {field} is given twice")
        kind = leaves[field].kind
        found[field] = [_value(flag, field, kind, value) for value in listed.split(",")]
    if not found:
        raise BadRequest(f'{flag} is empty; give fields and values, such as "steps=10,20"')
    return found


def _value(flag: str, field: str, kind: type, text: str) -> Any:
    try:
        if not text:
            raise ValueError
        return kind(text)
    except ValueError as error:
        what = {int: "a whole number", float: "a number"}.get(kind, "a name")
        raise BadRequest(f"{flag} {field}={text}: must be {what}") from error
