"""The speed and size that this project promises, measured: `make bench`.

What is compared is timed in turns in one process, so that what else the machine does
falls on both sides; each figure is a median. record.py says where they go.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from record import ROOT, Figure, record

from diffusion_jax.diffusion import losses
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.experiment import build
from diffusion_jax.experiment.build_sampler import make_sampler
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runtime import devices
from diffusion_jax.samplers.chain import Samples
from diffusion_jax.samplers.methods import ddim_table
from diffusion_jax.samplers.timesteps import trailing_timesteps

CONFIG = str(ROOT / "configs" / "digits.py")


def in_turns(functions: list[Callable], rounds: int) -> list[float]:
    """Median seconds of each function, all run once a round; the first round warms up."""
    rows = []
    for _ in range(rounds + 1):
        row = []
        for function in functions:
            start = time.perf_counter()
            jax.block_until_ready(function())
            row.append(time.perf_counter() - start)
        rows.append(row)
    return [statistics.median(column) for column in zip(*rows[1:], strict=True)]


def loss() -> Iterator[Figure]:
    """The digits network at batch 64: its loss and gradient over the network's alone.

    The loss draws t and noise, makes x_t, and compares; alone, the network's output is
    added up. Ratios of neighbours in time, because the difference is smaller than the
    machine's drift.
    """
    config = load_config(CONFIG)
    init_fn, apply_fn = build.make_network(config)
    model = build.make_model(config)
    params = jax.jit(init_fn)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (64, *config.data.shape))
    arguments = (params, x, jnp.arange(64), jax.random.key(0))

    def bare(params, x, t, key):
        return apply_fn(params, x, t, train=True).sum()

    def whole(params, x, t, key):
        return losses.simple_loss(model, params, key, Batch(x))

    seconds = {}
    programs = {f: jax.jit(jax.value_and_grad(f)) for f in (bare, whole)}
    for f, program in programs.items():
        jax.block_until_ready(program(*arguments))
        seconds[f] = []
    for _ in range(150):
        for f, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[f].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[whole], seconds[bare], strict=True)]
    yield (
        "loss: over the bare network, forward and backward",
        (statistics.median(ratios)),
        "<= 1.02",
    )


def sampling() -> Iterator[Figure]:
    """64 digits by DDIM in 50 steps; samplers.py compares chains with bare forwards."""
    config = load_config(CONFIG)
    init_fn, apply_fn = build.make_network(config)
    model = build.make_model(config)
    params = jax.jit(init_fn)(jax.random.key(0))
    sampler = make_sampler(config, model, devices.make_mesh())
    table = ddim_table(model, trailing_timesteps(config.process.num_timesteps, 50))
    samples = Samples(jax.random.key(0), np.arange(64))
    (seconds,) = in_turns([lambda: sampler(params, table, samples, {})], rounds=9)
    yield "sample: 64 digits, DDIM 50 steps, seconds", seconds, "<= 5"


def importing() -> Iterator[Figure]:
    """What `import diffusion_jax` costs beyond `import jax`, in new processes."""

    def process(module: str) -> Callable:
        command = [sys.executable, "-c", f"import {module}"]
        return lambda: subprocess.run(command, cwd=ROOT, check=True).returncode

    jax_alone, both = in_turns([process("jax"), process("diffusion_jax")], rounds=5)
    yield "import: seconds beyond import jax", both - jax_alone, "<= 1"


def memory() -> Iterator[Figure]:
    """The largest resident set of the demo's two commands; 100 steps are enough for it."""
    with tempfile.TemporaryDirectory() as name:
        workdir = f"--workdir={name}/run"
        fewer = ["--config.training.num_steps=100", "--config.training.sample_every=50"]
        train = [sys.executable, "train.py", f"--config={CONFIG}", workdir, *fewer]
        sample = [sys.executable, "sample.py", workdir, "--num=64", "--show_chain"]
        for command in (train, sample):
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if sys.platform == "darwin":
        kib /= 1024
    yield "memory: resident set of the demo, GiB", kib / 2**20, "<= 2"


if __name__ == "__main__":
    record(memory, importing, sampling, loss)
