"""What each decision for speed is worth: a network's work with and without it, in turns.

    python benchmarks/decisions.py forward digits 64
    python benchmarks/decisions.py gradient cifar10 8

Each has a process of its own, for what is kept of memory is the whole process's.
record.py says where the figures go.
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent / "against"))

import flax.linen as nn
import jax
import jax.numpy as jnp
from record import ROOT, Figure, record
from worker import Worker, serve

from diffusion_jax.experiment import build
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.networks import blocks, winograd
from diffusion_jax.runtime import cpu

CHILD = "without"
KINDS = {"forward": "forward", "gradient": "loss and gradient"}
DECISIONS = {
    "memory": "memory given back",
    "library": "XLA's choice of library",
    "winograd": "direct convolutions",
    "norm": "Flax's GroupNorm",
}
TURN = 0.4  # Seconds, at least, of one at a time.
ROUNDS = 9


def work(without: list[str]) -> Callable[..., Any]:
    """For `serve`: a network's pass, or its gradient, without some of the decisions."""
    if "memory" not in without:
        cpu.keep_memory()
    if "winograd" in without:
        winograd.applies = lambda *_: False
    if "norm" in without:
        blocks.GroupNorm = lambda groups, dtype, name: nn.GroupNorm(
            groups, epsilon=1e-6, dtype=dtype, name=name
        )

    def prepare(kind: str, name: str, batch: int) -> Any:
        config = load_config(str(ROOT / "configs" / f"{name}.py"))
        init_fn, apply_fn = build.make_network(config)
        params = jax.jit(init_fn)(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (batch, *config.data.shape))
        t = jnp.arange(batch)

        def forward(params, x, t, key):
            return apply_fn(params, x, t)

        def loss(params, x, t, key):
            return jnp.square(apply_fn(params, x, t, train=True, key=key) - x).mean()

        arguments = (params, x, t, jax.random.key(2))
        options = {} if "library" in without else cpu.compiler_options()
        function = forward if kind == "forward" else jax.value_and_grad(loss)
        program = jax.jit(function, compiler_options=options)
        program = program.lower(*arguments).compile()
        return lambda: jax.block_until_ready(program(*arguments)), {}

    return prepare


def decisions(kind: str, name: str, batch: int) -> Iterator[Figure]:
    case = f"{KINDS[kind]} {name} {batch}"
    variants = {"as it is": [], **{words: [key] for key, words in DECISIONS.items()}}
    variants["none of these"] = list(DECISIONS)
    workers = {v: Worker("../decisions.py", CHILD, *parts) for v, parts in variants.items()}
    for worker in workers.values():
        worker.ask(do="prepare", kind=kind, name=name, batch=batch)
        once = worker.ask(do="time", repeats=2)["seconds"]
    repeats = max(1, round(TURN / once))
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in workers}
    for _ in range(ROUNDS):
        for variant, worker in workers.items():
            found[variant].append(worker.ask(do="time", repeats=repeats))
    for worker in workers.values():
        worker.close()
    mine = [said["seconds"] for said in found["as it is"]]
    yield f"{case}: as it is, seconds", statistics.median(mine), ""
    for variant, said in found.items():
        ratios = [b["seconds"] / a for a, b in zip(mine, said, strict=True)]
        if variant != "as it is":
            yield f"{case}: {variant}, time over that", statistics.median(ratios), ""
            yield f"{case}: {variant}, least", min(ratios), ""
            yield f"{case}: {variant}, most", max(ratios), ""
        faults = statistics.median(answer["faults"] for answer in said)
        yield f"{case}: {variant}, page faults", faults, ""
        yield f"{case}: {variant}, memory, GiB", said[-1]["memory"] / 2**30, ""


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        serve(work(sys.argv[2:]), lambda: None)
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("kind", choices=KINDS)
        parser.add_argument("name", choices=("digits", "cifar10"), help="whose network")
        parser.add_argument("batch", type=int)
        chosen = parser.parse_args()
        record(lambda: decisions(chosen.kind, chosen.name, chosen.batch))
