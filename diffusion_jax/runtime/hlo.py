"""Reading of compiled programs: kernels, collectives and bytes of one pass of their loop.

A program is read as the text of its optimised HLO (`jax.stages.Compiled.as_text`), in
which a kernel is an instruction that is launched on its own: a fusion, a call of a
library, a copy, a collective. All figures are of one device, and of one pass of the
longest loop of the entry computation: a train step, or a row of a sampler's table. Inner
loops count as often as they run, where the compiler knows that, and otherwise once.
"""

import collections
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that name or group values; the work of a "-done" is that of its "-start".
_FREE = frozenset(
    "add-dependency after-all bitcast constant get-tuple-element opt-barrier parameter "
    "partition-id replica-id tuple".split()
)
_FREE_CALLS = frozenset(("AllocateBuffer", "ConcatBitcast"))  # Of a TPU's custom calls.
_COPIES = frozenset("copy transpose slice dynamic-slice concatenate pad".split())
_CALLS = frozenset(("call", "async-start", "conditional"))
_HEADER = re.compile(r"(?:ENTRY )?%?([^ (]+) \(.*\{$")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ON_CHIP = "S(1)"  # In a layout: the array lies in a TPU's vector memory.


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without the %.
      type: of its result, with layouts.
      opcode: such as "fusion".
      operands: names of the instructions that it reads.
      attributes: the rest of the line.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        found = []
        for one, several in _CALLED.findall(self.attributes):
            found += [one] if one else _NAME.findall(several)
        return found


class Collectives(NamedTuple):
    """Collectives of one kind in one pass of the loop.

    Attributes:
      number: how many.
      bytes: of the arrays that they combine, whole, on each device.
    """

    number: int
    bytes: int


class Reading(NamedTuple):
    """The work of one device in one pass of a program's loop.

    Attributes:
      kernels: how many, by kind. "scalar" are single operations on one number, which a
        TPU's scalar unit does; "background copy" are those between the two memories of a
        TPU, beside its other work.
      collectives: by their kind.
      memory_bytes: read and written by the kernels in the device's memory, each operand
        and each result once and whole: more than is moved where a kernel reads a part.
    """

    kernels: dict[str, int]
    collectives: dict[str, Collectives]
    memory_bytes: int


def read(text: str) -> Reading:
    """Return what one pass of the longest loop of a program does.

    Args:
      text: of a compiled program. One without a loop is read as a whole.
    """
    program = _parse(text)
    kernels: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    moved: collections.Counter[str] = collections.Counter()
    memory = 0
    for instruction, times, types in _launched(program, _longest_loop(program)):
        kernels[_kind(instruction, program)] += times
        memory += times * _memory_bytes(instruction, types)
        for inner, inner_types in _collectives_of(instruction, types, program):
            kind = inner.opcode.removesuffix("-start")
            counts[kind] += times
            moved[kind] += times * _moved_bytes(inner, inner_types)
    return Reading(
        dict(kernels.most_common()),
        {kind: Collectives(counts[kind], moved[kind]) for kind in counts},
        memory,
    )


def array_bytes(type_: str, *, in_memory: bool = False) -> int:
    """Return the bytes of the arrays of an HLO type, a tuple's added up.

    Args:
      type_: such as "(f32[8,3]{1,0}, bf16[2]{0})".
      in_memory: only arrays in the device's memory, not those in its vector memory.
    """
    total = 0
    for dtype, shape, layout in _ARRAY.findall(type_):
        if in_memory and _ON_CHIP in layout:
            continue
        bits = re.search(r"\d+", dtype)
        size = max(1, int(bits[0]) // 8) if bits else dtype == "pred"
        for length in filter(None, shape.split(",")):
            size *= int(length)
        total += size
    return total


class _Program(NamedTuple):
    entry: str
    computations: dict[str, list[Instruction]]

    def reachable(self, name: str) -> Iterator[Instruction]:
        """Give the instructions of a computation and of those that it calls."""
        for instruction in self.computations.get(name, ()):
            yield instruction
            for called in instruction.called:
                yield from self.reachable(called)


def _parse(text: str) -> _Program:
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", list[Instruction]()
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header:
                lines = computations.setdefault(header[1], [])
                entry = header[1] if line.startswith("ENTRY") else entry
        elif " = " in line:
            lines.append(_instruction(line))
    return _Program(entry, computations)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    operands = tuple(_NAME.findall(rest[:end]))
    return Instruction(name.lstrip("%"), type_, opcode, operands, rest[end:])


def _closing(text: str) -> int:
    """Return the index after the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    return len(text)


def _longest_loop(program: _Program) -> str:
    """Return the body of the loop of the entry that has the most instructions."""
    loops = [
        instruction
        for instruction in program.computations.get(program.entry, ())
        if instruction.opcode == "while"
    ]
    bodies = [_body(loop) for loop in loops]
    if not bodies:
        return program.entry
    return max(bodies, key=lambda name: sum(1 for _ in program.reachable(name)))


def _body(loop: Instruction) -> str:
    found = re.search(r"body=%?([\w.-]+)", loop.attributes)
    return found[1] if found else ""


Types = dict[str, str]


def _launched(
    program: _Program, name: str, times: int = 1
) -> Iterator[tuple[Instruction, int, Types]]:
    """Give the kernels of a computation, how often each is launched, and types by name."""
    lines = program.computations.get(name, [])
    types = {line.name: line.type for line in lines}
    for line in lines:
        target = _TARGET.search(line.attributes)
        if (
            line.opcode in _FREE
            or line.opcode.endswith("-done")
            or (target and target[1] in _FREE_CALLS)
        ):
            continue
        if line.opcode == "while":
            trips = _TRIPS.search(line.attributes)
            count = times * (int(trips[1]) if trips else 1)
            yield from _launched(program, _body(line), count)
        elif line.opcode == "conditional":
            branches = [list(_launched(program, b, times)) for b in line.called]
            yield from max(branches, key=len, default=[])
        elif line.opcode in _CALLS:
            for called in line.called:
                yield from _launched(program, called, times)
        else:
            yield line, times, types


def _kind(line: Instruction, program: _Program) -> str:
    opcode = line.opcode.removesuffix("-start")
    if opcode in COLLECTIVES:
        return "collective"
    if line.opcode in _COPIES:
        return "copy"
    if line.opcode in ("copy-start", "slice-start"):
        return "background copy"
    opcodes = {opcode}
    target = _TARGET.search(line.attributes)
    if opcode == "custom-call" and target:
        name = target[1].lower()
        if "conv" in name:
            return "convolution"
        if "gemm" in name or "matmul" in name:
            return "matrix product"
        return f"call of {target[1]}"
    if opcode == "fusion":
        opcodes = {
            inner.opcode for name in line.called for inner in program.reachable(name)
        }
    if opcodes & {*COLLECTIVES, *(f"{name}-start" for name in COLLECTIVES)}:
        return "collective"
    for inner, kind in (
        ("convolution", "convolution"),
        ("dot", "matrix product"),
        ("reduce", "reduction"),
        ("reduce-window", "reduction"),
    ):
        if inner in opcodes:
            return kind
    is_scalar = "[]" in line.type and opcode != "fusion"
    return "scalar" if is_scalar else "elementwise"


def _collectives_of(
    line: Instruction, types: Types, program: _Program
) -> Iterator[tuple[Instruction, Types]]:
    """Give the collectives of a kernel: itself, or those in its fusion."""
    if line.opcode.removesuffix("-start") in COLLECTIVES:
        yield line, types
    elif line.opcode == "fusion":
        for name in line.called:
            inner = program.computations.get(name, [])
            inner_types = {one.name: one.type for one in inner}
            for one in inner:
                if one.opcode.removesuffix("-start") in COLLECTIVES:
                    yield one, inner_types


def _operand_bytes(names: Iterable[str], types: Types, *, in_memory: bool = False) -> int:
    return sum(array_bytes(types.get(n, ""), in_memory=in_memory) for n in names)


def _moved_bytes(line: Instruction, types: Types) -> int:
    """Return the bytes of the whole arrays of a collective."""
    operands = _operand_bytes(line.operands, types)
    results = array_bytes(line.type)
    if line.opcode in ("all-gather-start", "collective-permute-start"):
        results -= operands  # Their result names the operands as well.
    return max(operands, results)


def _memory_bytes(line: Instruction, types: Types) -> int:
    if line.opcode == "copy-start":  # Its result names where it reads and where it writes.
        return array_bytes(line.type, in_memory=True)
    read_bytes = _operand_bytes(line.operands, types, in_memory=True)
    return read_bytes + array_bytes(line.type, in_memory=True)
