"""What each decision for speed is worth: loss and gradient with and without it, in turns.

    python benchmarks/decisions.py [cifar10 8 | digits 64]

Also the page faults of a step: `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` before the command
shows what huge pages are worth. record.py says where the figures go.
"""

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

from diffusion_jax import experiment
from diffusion_jax.command_line import load_config
from diffusion_jax.networks import blocks, winograd

NAME, BATCH = sys.argv[1:] or ("cifar10", "8")
ROUNDS = 5
DIRECT = mock.patch.object(winograd, "applies", lambda *_: False)
FLAX = mock.patch.object(
    blocks,
    "GroupNorm",
    lambda groups, dtype, name: nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, name=name),
)


def compiled() -> Callable[[], object]:
    """Loss and gradient, with what is patched at the moment."""
    config = load_config(str(ROOT / "configs" / f"{NAME}.py"))
    init_fn, apply_fn = experiment.make_network(config)
    params = jax.jit(init_fn)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (int(BATCH), *config.data.shape))
    t = jnp.arange(int(BATCH))

    def loss(params, x, t, key):
        return jnp.square(apply_fn(params, x, t, train=True, key=key) - x).mean()

    arguments = (params, x, t, jax.random.key(2))
    program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def decisions() -> Iterator[Figure]:
    case = f"loss and gradient {NAME} {BATCH}"
    programs = {"as it is": compiled()}
    with DIRECT:
        programs["direct convolutions"] = compiled()
    with FLAX:
        programs["Flax's GroupNorm"] = compiled()
    with DIRECT, FLAX:
        programs["neither"] = compiled()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS + 1):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    base = seconds.pop("as it is")[1:]
    yield f"{case}: seconds", statistics.median(base), ""
    for name, values in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(base, values[1:], strict=True))
        yield f"{case}: {name} over that", ratio, ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    programs["as it is"]()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    yield f"{case}: page faults", faults, ""


if __name__ == "__main__":
    record(decisions)
