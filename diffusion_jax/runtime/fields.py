"""Dataclass fields that describe themselves: help, range, choices, and what they need.

Checks, flags, `--help` and the table in the docs are made from these descriptions.
"""

import dataclasses
import math
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from diffusion_jax.runtime.checks import check_choice
from diffusion_jax.runtime.errors import BadRequest

# Conditions on another field: that it is, or is not, anything except 0, "" and ().
SET, NOT_SET = "set", "not set"


class Description(NamedTuple):
    """The description of a field.

    Attributes:
      help: a phrase or a sentence.
      range: the lowest and the highest value, of a tuple those of each element; None
        where there are no numbers to bound.
      excluded: the ends of the range that do not belong to it.
      choices: the values that it can have, "" for none; () where it is free.
      only_with: other fields, and for each its values ("tfds:*" for all that begin with
        "tfds:"), or SET, or NOT_SET; this field has an effect with one of them or more,
        if that one has an effect itself. None where it always has.
    """

    help: str
    range: tuple[float, float] | None = None
    excluded: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    only_with: Mapping[str, tuple[Any, ...] | str] | None = None


def described(
    default: Any,
    help: str,
    *,
    range: tuple[float, float] | None = None,
    excluded: tuple[float, ...] = (),
    choices: Iterable[str] = (),
    only_with: Mapping[str, tuple[Any, ...] | str] | None = None,
) -> Any:
    """Return a dataclass field with this default and description."""
    about = Description(help, range, excluded, tuple(choices), only_with)
    return dataclasses.field(default=default, metadata={"description": about})


class Leaf(NamedTuple):
    """One field of a config.

    Attributes:
      path: "section.field".
      value: of this config.
      default: of its class.
      kind: its type.
      about: its description.
    """

    path: str
    value: Any
    default: Any
    kind: Any
    about: Description


def leaves_of(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Return every leaf of a config, section after section."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from leaves_of(value, f"{path}.")
        else:
            about = field.metadata["description"]
            yield Leaf(path, value, field.default, field.type, about)


def check_types(config: Any, prefix: str = "") -> None:
    """Check that every value is of its field's type; a config file can assign anything.

    Raises:
      BadRequest: naming a field whose value is not of its type.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        value, path = getattr(config, name), prefix + name
        kinds = typing.get_args(kind) or (kind,)
        if all(map(dataclasses.is_dataclass, kinds)):
            if type(value) not in kinds:
                raise BadRequest(f"{path} ({text(value)}) must be a section of the config")
            check_types(value, f"{path}.")
        elif kind == tuple[float, ...]:
            if not isinstance(value, tuple) or any(
                type(v) not in (int, float) or not abs(v) < 1e300 for v in value
            ):
                raise BadRequest(
                    f"{path} ({text(value)}) must be a tuple of Python numbers; for "
                    "an array give tuple(array.tolist())"
                )
        elif kind == tuple[int, ...]:
            if not isinstance(value, tuple) or any(type(v) is not int for v in value):
                raise BadRequest(f"{path} ({text(value)}) must be a tuple of whole numbers")
        elif kind is float:
            if type(value) not in (int, float) or not abs(value) < 1e300:
                raise BadRequest(f"{path} ({text(value)}) must be a finite Python number")
        elif type(value) is not kind:
            raise BadRequest(f"{path} ({text(value)}) must be of type {kind.__name__}")


def check_values(config: Any) -> None:
    """Check ranges and choices.

    Raises:
      BadRequest: naming a field, its value and what it can be.
    """
    leaves = list(leaves_of(config))
    for leaf in leaves:
        if leaf.about.range is not None:
            _check_range(leaf)
    for leaf in leaves:
        if leaf.about.choices:
            check_choice(leaf.path, leaf.value, leaf.about.choices)


def _check_range(leaf: Leaf) -> None:
    low, high = leaf.about.range or (-math.inf, math.inf)
    values = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
    for value in values:
        if not low <= value <= high or value in leaf.about.excluded:
            said = f"{low} .. {high}{_excluded_in_words(leaf.about)}"
            raise BadRequest(f"{leaf.path} ({value}) must be in {said}")


def _excluded_in_words(about: Description) -> str:
    if len(about.excluded) == 2:
        return ", both excluded"
    return "".join(f", {end} excluded" for end in about.excluded)


def without_effect(config: Any) -> list[str]:
    """Return, in words, the fields that were changed and have no effect with the others."""
    leaves = {leaf.path: leaf for leaf in leaves_of(config)}
    said = []
    for leaf in leaves.values():
        why = None if leaf.value == leaf.default else _why_idle(leaf, leaves)
        if why is not None:
            said.append(f"{leaf.path} ({text(leaf.value)}) has no effect: {why}")
    return said


def _why_idle(leaf: Leaf, leaves: Mapping[str, Leaf]) -> str | None:
    """Return, in words, why a field has no effect with the others; None if it has one."""
    only_with = leaf.about.only_with
    if only_with is None:
        return None
    others = {other: leaves[other] for other in only_with}
    met = [x for name, x in others.items() if _is_met(x.value, only_with[name])]
    if met:
        reasons = [_why_idle(other, leaves) for other in met]
        return None if None in reasons else reasons[0]
    found = ", ".join(f"{name} is {text(x.value)}" for name, x in others.items())
    return f"it is for {_only_with_in_words(only_with)}, and {found}"


def _is_met(value: Any, wanted: tuple[Any, ...] | str) -> bool:
    if isinstance(wanted, str):
        return bool(value) == (wanted == SET)
    begins = [w.removesuffix("*") for w in wanted if isinstance(w, str) and w.endswith("*")]
    return value in wanted or any(str(value).startswith(b) for b in begins)


def _only_with_in_words(only_with: Mapping[str, tuple[Any, ...] | str]) -> str:
    return " or ".join(
        f"{other} {wanted if isinstance(wanted, str) else ', '.join(map(str, wanted))}"
        for other, wanted in only_with.items()
    )


def in_words(leaf: Leaf) -> str:
    """Return the help of a field with its range, choices, and what it is for."""
    about, said = leaf.about, leaf.about.help
    if about.choices:
        said += f" One of {', '.join(filter(None, about.choices))}."
    if about.range is not None:
        low, high = about.range
        each = "Each in" if isinstance(leaf.default, tuple) else "In"
        said += f" {each} {low:,} .. {high:,}{_excluded_in_words(about)}."
    if about.only_with is not None:
        said += f" Only with {_only_with_in_words(about.only_with)}."
    return said


def text(value: object) -> str:
    """Return a value for a message, cut short where it is long."""
    return reprlib.repr(value)
