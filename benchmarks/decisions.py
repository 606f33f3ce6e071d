"""What each decision for speed is worth: loss and gradient with and without it, in turns.

    python benchmarks/decisions.py [cifar10 8 | digits 64]

Also the page faults of a step. record.py says where the figures go.
"""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from record import ROOT, Figure, record

from diffusion_jax import cpu, experiment
from diffusion_jax.command_line import load_config
from diffusion_jax.networks import blocks, winograd

NAME, BATCH = sys.argv[1:] or ("cifar10", "8")
ROUNDS = 9
DIRECT = mock.patch.object(winograd, "applies", lambda *_: False)
FLAX = mock.patch.object(
    blocks,
    "GroupNorm",
    lambda groups, dtype, name: nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, name=name),
)


def compiled(options: dict[str, str]) -> Callable[[], object]:
    """Loss and gradient, with what is patched at the moment."""
    config = load_config(str(ROOT / "configs" / f"{NAME}.py"))
    init_fn, apply_fn = experiment.make_network(config)
    params = jax.jit(init_fn)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (int(BATCH), *config.data.shape))
    t = jnp.arange(int(BATCH))

    def loss(params, x, t, key):
        return jnp.square(apply_fn(params, x, t, train=True, key=key) - x).mean()

    arguments = (params, x, t, jax.random.key(2))
    program = jax.jit(jax.value_and_grad(loss), compiler_options=options)
    program = program.lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def memory(kept: bool) -> None:
    """As the commands have it, or as it is without `cpu.keep_memory`."""
    if kept:
        cpu.keep_memory()
    else:
        malloc = ctypes.CDLL(None)
        malloc.mallopt(cpu._MMAP_MAX, 65536)
        malloc.mallopt(cpu._TRIM_THRESHOLD, 128 * 1024)


def measured(run: Callable[[], object], kept: bool) -> tuple[float, int]:
    """Seconds and page faults of a second run."""
    memory(kept)
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def decisions() -> Iterator[Figure]:
    case = f"loss and gradient {NAME} {BATCH}"
    options = cpu.compiler_options()
    base = compiled(options)
    programs = {"as it is": (base, True), "memory given back": (base, False)}
    programs["XLA's choice of library"] = (compiled({}), True)
    with DIRECT:
        programs["direct convolutions"] = (compiled(options), True)
    with FLAX:
        programs["Flax's GroupNorm"] = (compiled(options), True)
    with DIRECT, FLAX:
        programs["none of these"] = (compiled({}), False)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            found[name].append(measured(*program))
    mine = [seconds for seconds, _ in found["as it is"]]
    yield f"{case}: seconds", statistics.median(mine), ""
    for name, values in found.items():
        times = [seconds for seconds, _ in values]
        ratio = statistics.median(b / a for a, b in zip(mine, times, strict=True))
        if name != "as it is":
            yield f"{case}: {name} over that", ratio, ""
        yield f"{case}: {name}, page faults", statistics.median(n for _, n in values), ""


if __name__ == "__main__":
    cpu.keep_memory()  # As the commands do; before record() starts JAX.
    record(decisions)
