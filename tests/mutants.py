"""Changes by one percent in the formulas of the package: do the tests see each of them?

A mutant is one copy of a module in which one number, one operand of a sum, a difference or
a power, one argument that is computed, or one returned value or table column is
multiplied by 1.01 (a 0 becomes 0.01). Operands of one product change it alike, so one of
them stands for all. `python tests/mutants.py [module ...]` lists those that survive.

A change that no test can see is excused by a comment above its statement, or above its
line: "# Unseen: why" for all that is changed there, "# Unseen (0): why" for what becomes of
the 0 alone, and "# Unseen (n[:, None] ...): why" for what begins like that.
"""

import ast
import concurrent.futures
import copy
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion_jax"
SECONDS = 30  # Time that the tests of one mutant may take.
# Each module, and the test files whose deterministic tests must kill its mutants.
MODULES = {
    "diffusion/schedules": "schedules",
    "diffusion/forward_process": "forward_process",
    "diffusion/model": "model",
    "diffusion/noise_level": "noise_level",
    "diffusion/parameterization": "parameterization",
    "diffusion/variational_bound": "variational_bound",
    "diffusion/loss_weighting": "loss_weighting",
    "diffusion/timestep_sampling": "timestep_sampling",
    "diffusion/losses": "losses",
    "diffusion/oracle": "oracle",
    "diffusion/guidance": "guidance",
    "diffusion/conditioning_augmentation": "conditioning_augmentation",
    "diffusion/focus": "focus",
    "samplers/noise_levels": "methods noise_levels",
    "samplers/table": "methods",
    "samplers/timesteps": "timesteps",
    "samplers/methods": "methods",
    "samplers/thresholding": "thresholding",
    "samplers/inpainting": "inpainting",
    "samplers/interpolation": "inpainting",
    "data/chirps": "sounds",
    "data/embedded": "moving_digits",
    "data/low_res": "low_res",
    "runs/ema": "ema",
    "evaluation/optimal_timesteps": "optimal_timesteps",
    "evaluation/moments": "moments",
    "evaluation/frechet_distance": "frechet_distance",
    "evaluation/kernel_distance": "kernel_distance",
    "evaluation/inception_score": "inception_score",
    "evaluation/precision_recall": "precision_recall",
    "evaluation/nearest": "nearest",
    "evaluation/reference_losses": "reference_losses",
}


Path = list[tuple[str, int | None]]


class Mutant(NamedTuple):
    """One change: in which function and line, where in the module's tree, and of what."""

    module: str
    function: str
    line: int
    before: str
    tree: ast.Module
    path: Path

    @property
    def name(self) -> str:
        return f"{self.module}.{self.function}: {self.before}, times 1.01"

    def source(self) -> str:
        """Return the module's source with the change."""
        tree = copy.deepcopy(self.tree)
        parent, field, index = _follow(tree, self.path)
        old = getattr(parent, field)
        if index is None:
            setattr(parent, field, _scaled(old))
        else:
            old[index] = _scaled(old[index])
        return ast.unparse(ast.fix_missing_locations(tree))


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for function, path in _places(tree):
        parent, field, index = _follow(tree, path)
        old = getattr(parent, field)
        node = old if index is None else old[index]
        yield Mutant(module, function, node.lineno, ast.unparse(node), tree, path)


class Excuse(NamedTuple):
    """A comment "# Unseen": the lines of its statement, and what it is about."""

    comment: int
    first: int
    last: int
    about: str

    def covers(self, mutant: Mutant) -> bool:
        """Return whether a mutant is excused."""
        if not self.first <= mutant.line <= self.last:
            return False
        if self.about.endswith("..."):
            return mutant.before.startswith(self.about.removesuffix("...").strip())
        return self.about in ("", mutant.before)


def excuses_of(module: str) -> list[Excuse]:
    """Return what the comments of a module excuse."""
    source = (PACKAGE / f"{module}.py").read_text()
    statements = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt)]
    found = []
    for number, line in enumerate(source.splitlines(), 1):
        match = re.match(r"\s*# Unseen(?: \((.+)\))?: ", line)
        if match:
            here = [s for s in statements if s.lineno == number + 1]
            last = _end(here[0]) if here else number + 1  # Inside a statement.
            found.append(Excuse(number, number + 1, last, match[1] or ""))
    return found


def _end(statement: ast.stmt) -> int:
    """The last line of a statement, without the block that belongs to it."""
    body = getattr(statement, "body", None)
    return body[0].lineno - 1 if body else statement.end_lineno or statement.lineno


def _scaled(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant):
        return ast.Constant(node.value * 1.01 if node.value else 0.01)
    return ast.BinOp(node, ast.Mult(), ast.Constant(1.01))


def _places(tree: ast.Module) -> Iterator[tuple[str, Path]]:
    """(function, path to the node) of all that is to be scaled."""

    def visit(node: ast.AST, path: Path, function: str) -> Iterator[tuple[str, Path]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = node.name if function == "module" else f"{function}.{node.name}"
        for field, value in ast.iter_fields(node):
            if _is_skipped(node, field):
                continue
            many = isinstance(value, list)
            for i, child in enumerate(value if many else [value]):
                if not isinstance(child, ast.AST):
                    continue
                step: Path = [*path, (field, i if many else None)]
                if isinstance(child, ast.expr) and _is_target(node, field, child):
                    yield function, step
                yield from visit(child, step, function)

    yield from visit(tree, [], "module")


def _is_skipped(node: ast.AST, field: str) -> bool:
    """Return whether a field computes no number: tests, errors, indices, shapes, names."""
    if isinstance(node, ast.If | ast.IfExp | ast.While) and field == "test":
        return True
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.AnnAssign | ast.arg):
        return True
    if isinstance(node, ast.Subscript) and field == "slice":
        return True
    if isinstance(node, ast.FunctionDef) and field in ("decorator_list", "returns"):
        return True
    if isinstance(node, ast.keyword):
        return node.arg is None or node.arg in _NOT_NUMBERS
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).split(".")[-1]
        return name in ("warn", "reshape", "range", "enumerate", "zip", "isinstance", "sum")
    return False


_NOT_NUMBERS = (
    "axis clip cond dtype fill_value key learned mode norm out_axes prediction repeats "
    "stacklevel train variance"
).split()


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _is_true_or_false(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitAnd | ast.BitOr)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Compare) or ast.unparse(node).startswith("bool(")


_COMPUTED = ast.Call | ast.Name | ast.Attribute | ast.BinOp | ast.UnaryOp


def _is_target(parent: ast.AST, field: str, child: ast.expr) -> bool:
    if _is_number(child):
        return True
    if _is_true_or_false(child) or ast.unparse(child).startswith(("np.zeros", "jnp.zeros")):
        return False
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add | ast.Sub | ast.Pow):
        return True
    if isinstance(parent, ast.Return):
        return not isinstance(child, ast.Tuple)
    if isinstance(parent, ast.Tuple) and isinstance(parent.ctx, ast.Load):
        return isinstance(child, _COMPUTED)
    if isinstance(parent, ast.keyword):
        return isinstance(child, _COMPUTED)
    if isinstance(parent, ast.Call) and field == "args":
        return isinstance(child, ast.BinOp)
    return isinstance(parent, ast.Assign) and isinstance(child, ast.BinOp)


def _follow(tree: ast.AST, path: Path) -> tuple[ast.AST, str, int | None]:
    node = tree
    for field, index in path[:-1]:
        value = getattr(node, field)
        node = value if index is None else value[index]
    return node, *path[-1]


def survivors(mutants: list[Mutant], workers: int = 2) -> list[Mutant]:
    """Mutants that the tests of their module do not kill, in at most SECONDS each."""
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        folder = pathlib.Path(name)
        environment = {
            **os.environ,
            # What a mutant leaves as it was is not compiled again.
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        places = [folder / str(i) for i in range(workers)]
        for place in places:
            shutil.copytree(PACKAGE, place / "diffusion_jax")
        for module in {m.module for m in mutants}:
            assert _passes(module, places[0], environment, 600), f"{module} as it is fails"

        def run(place: pathlib.Path, share: list[Mutant]) -> list[Mutant]:
            left = []
            for mutant in share:
                file = place / "diffusion_jax" / f"{mutant.module}.py"
                original = file.read_text()
                file.write_text(mutant.source())
                if _passes(mutant.module, place, environment, SECONDS):
                    left.append(mutant)
                file.write_text(original)
            return left

        shares = [mutants[i::workers] for i in range(workers)]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(run, places, shares))
    return sorted((m for share in found for m in share), key=lambda m: (m.module, m.line))


def _passes(
    module: str, place: pathlib.Path, environment: dict[str, str], seconds: int
) -> bool:
    """Return whether the tests on the copy in `place` pass, or have not ended in time."""
    room = module.split("/")[0]
    folder = ROOT / "tests" / room
    tests = [str(folder / f"test_{name}.py") for name in MODULES[module].split()]
    options = ["-x", "-q", "-m", "not statistical and not slow", "-p", "no:cacheprovider"]
    # Started in `place`, so that its copy of the package is the one that is imported.
    command = [sys.executable, "-m", "pytest", *options, "-c", str(ROOT / "pyproject.toml")]
    try:
        result = subprocess.run(
            [*command, *tests],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return True
    return result.returncode == 0


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(MODULES)
    every = [
        mutant
        for module in chosen
        for mutant in mutants_of(module)
        if not any(excuse.covers(mutant) for excuse in excuses_of(module))
    ]
    start = time.monotonic()
    print(f"{len(every)} mutants of {', '.join(chosen)}")
    for mutant in survivors(every):
        print(f"{PACKAGE / mutant.module}.py:{mutant.line} {mutant.name}")
    print(f"{time.monotonic() - start:.0f} s")
