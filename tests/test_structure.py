"""The plan of the code: short signatures, short functions, few floors, tests apart."""

import ast
import functools

import pytest

from helpers import ROOT

PACKAGE = ROOT / "diffusion_jax"
SOURCES = {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")}
FUNCTIONS = [
    (path, node)
    for path, text in SOURCES.items()
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.FunctionDef)
]
SHORT_SIGNATURES = ("diffusion", "evaluation", "jobs", "runs", "samplers", "training")
# Functions that are longer than the others, each with its reason.
LONG = {
    "networks/unet.py": "the network from its input to its output, in the paper's order",
}
MOST_LINES = 50


def names_of(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [a.arg for a in every if a.arg not in ("self", "cls")]


@pytest.mark.parametrize("room", SHORT_SIGNATURES)
def test_no_signature_has_more_than_seven_arguments(room):
    long = {
        f"{path}:{node.name}": len(names_of(node))
        for path, node in FUNCTIONS
        if path.parts[0] == room and len(names_of(node)) > 7
    }
    assert long == {}


def test_no_function_is_longer_than_a_screen():
    """Bodies of functions have few lines, counted without the docstring."""
    long = {}
    for path, node in FUNCTIONS:
        body = node.body
        has_docstring = ast.get_docstring(node) is not None
        if len(body) > has_docstring:
            lines = body[-1].end_lineno - body[int(has_docstring)].lineno + 1
            if lines > MOST_LINES and str(path) not in LONG:
                long[f"{path}:{node.name}"] = lines
    assert long == {}


def imports_of(path):
    """Modules of the package that a module imports, as paths of their files."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[path])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion"):
            for alias in node.names:
                for name in (f"{node.module}.{alias.name}", node.module):
                    parts = name.split(".")[1:]
                    file = PACKAGE.joinpath(*parts).with_suffix(".py")
                    if parts and file.is_file():
                        found.add(file.relative_to(PACKAGE))
                        break
    return found


def room_of(path):
    return path.parts[0].removesuffix(".py")


ROOMS = {
    room: {
        room_of(other)
        for path in SOURCES
        if room_of(path) == room
        for other in imports_of(path)
        if room_of(other) != room
    }
    for room in map(room_of, SOURCES)
}


@functools.cache
def floors(room):
    return 1 + max(map(floors, ROOMS[room]), default=0)


def test_there_are_at_most_seven_floors():
    """Floors of the rooms by their imports; a circle would be a RecursionError."""
    assert max(map(floors, ROOMS)) <= 7
    assert ROOMS["runtime"] == set() == ROOMS["diffusion"] == ROOMS["networks"]
    assert floors("jobs") > floors("diffusion")


def test_the_package_has_no_more_rooms_than_a_stranger_can_remember():
    assert len(ROOMS.keys() - {"__init__", "__main__"}) <= 11


def test_no_test_file_is_imported_by_another():
    files = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    tests = {name for name in files if name.startswith("test_")}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom | ast.Import):
                module = getattr(node, "module", None)
                imported = {module, *(alias.name for alias in node.names)}
                assert not imported & tests, name
