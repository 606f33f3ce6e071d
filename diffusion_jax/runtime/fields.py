"""Dataclass fields that describe themselves: help, range, choices, and what they need.

Checks, flags, `--help` and the table in the docs are made from these descriptions.
"""

import dataclasses
import reprlib
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from diffusion_jax.runtime.checks import check_choice
from diffusion_jax.runtime.errors import BadRequest


class Description(NamedTuple):
    """The description of a field.

    Attributes:
      help: a phrase or a sentence.
      range: the lowest and the highest value; None where there are no numbers to bound.
      choices: the values that it can have; () where it is free.
      only_with: another field, and its values with which this one has an effect; a single
        "" among them stands for any value that is not empty.
    """

    help: str
    range: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    only_with: tuple[str, tuple[Any, ...]] | None = None


def described(
    default: Any,
    help: str,
    *,
    range: tuple[float, float] | None = None,
    choices: Iterable[str] = (),
    only_with: tuple[str, tuple[Any, ...]] | None = None,
) -> Any:
    """Return a dataclass field with this default and description."""
    about = Description(help, range, tuple(choices), only_with)
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
                    f"{path} ({text(value)}) must be a tuple of Python numbers; of "
                    "an array that is tuple(array.tolist())"
                )
        elif kind == tuple[int, ...]:
            if not isinstance(value, tuple) or any(type(v) is not int for v in value):
                raise BadRequest(f"{path} ({text(value)}) must hold whole numbers")
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
            low, high = leaf.about.range
            if not low <= leaf.value <= high:
                raise BadRequest(f"{leaf.path} ({leaf.value}) must be in {low} .. {high}")
    for leaf in leaves:
        if leaf.about.choices:
            check_choice(leaf.path, leaf.value, leaf.about.choices)


def without_effect(config: Any) -> list[str]:
    """Return, in words, the fields that were changed and have no effect with the others."""
    leaves = {leaf.path: leaf for leaf in leaves_of(config)}
    said = []
    for leaf in leaves.values():
        if leaf.about.only_with is None or leaf.value == leaf.default:
            continue
        other, values = leaf.about.only_with
        if not _is_among(leaves[other].value, values):
            said.append(
                f"{leaf.path} ({text(leaf.value)}) has no effect: it is for {other} "
                f"{_in_words(values)}, and that is {text(leaves[other].value)}"
            )
    return said


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    return bool(value) if values == ("",) else value in values


def _in_words(values: tuple[Any, ...]) -> str:
    return "that is set" if values == ("",) else ", ".join(map(str, values))


def in_words(leaf: Leaf) -> str:
    """Return the help of a field with its range, choices, and what it is for."""
    about, said = leaf.about, leaf.about.help
    if about.choices:
        said += f" One of {', '.join(c or repr(c) for c in about.choices)}."
    if about.range is not None:
        low, high = about.range
        said += f" In {low:,} .. {high:,}."
    if about.only_with is not None:
        other, values = about.only_with
        said += f" Only with {other} {_in_words(values)}."
    return said


def text(value: object) -> str:
    """Return a value for a message, cut short where it is long."""
    return reprlib.repr(value)
