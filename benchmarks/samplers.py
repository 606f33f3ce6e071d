"""What the chain costs beyond its network calls: time, memory, progress, compilation.

Ratios of neighbours in time, because the machine's drift is larger than what is measured.
"""

import dataclasses
import json
import os
import pathlib
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

from diffusion_jax.config import Config
from diffusion_jax.diffusion import guidance
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.jobs import sweep as sweeps
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runtime import cpu, devices
from diffusion_jax.samplers import methods
from diffusion_jax.samplers.chain import Samples, sample_chain
from diffusion_jax.samplers.timesteps import trailing_timesteps

KEY = jax.random.key(0)


def prepared(name: str) -> tuple[Config, Callable, dict, Callable]:
    """(config, model, parameters at the start, count -> DDPM table) of a config."""
    config = load_config(str(ROOT / "configs" / f"{name}.py"))
    config.data.channels = config.data.channels or 3
    init_fn, _ = build.make_network(config)
    model = build.make_model(config)

    def table(count: int):
        return methods.ddpm_table(model, trailing_timesteps(1000, count))

    return config, model, jax.jit(init_fn)(jax.random.key(0)), table


def ratio(one: Callable, other: Callable, rounds: int) -> float:
    """Median over the rounds of the time of one over that of the other."""
    seconds = {one: [], other: []}
    for function in (one, other):
        jax.block_until_ready(function())
    for i in range(rounds):
        for function in (one, other) if i % 2 else (other, one):
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[function].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    return statistics.median(ratios)


def over_forwards(name: str, batch: int, count: int, rounds: int) -> float:
    """The compiled chain over as many calls of the compiled network."""
    config, model, params, table = prepared(name)
    sampler = build_sampler.make_sampler(config, model, devices.make_mesh())
    forward = jax.jit(model.apply_fn, compiler_options=cpu.compiler_options())
    rows, samples = table(count), Samples(KEY, np.arange(batch))
    x, t = jnp.zeros((batch, *config.data.shape)), jnp.zeros(batch)
    return ratio(
        lambda: sampler(params, rows, samples, {}),
        lambda: [forward(params, x, t) for _ in range(count)],
        rounds,
    )


def overhead() -> Iterator[Figure]:
    """The digits network at batch 64, that of CIFAR-10 at batch 8."""
    yield (
        "chain over bare forwards, digits, batch 64, 100 steps",
        over_forwards("digits", 64, 100, 15),
        "<= 1.03",
    )
    yield (
        "chain over bare forwards, CIFAR-10 network, batch 8, 10 steps",
        over_forwards("cifar10", 8, 10, 9),
        "<= 1.01",
    )


def sweep() -> Iterator[Figure]:
    """Five settings by one program, as sample.py --sweep runs them, digits, batch 64."""
    for text, what in (
        ("steps=5,10,20,30,50", "numbers of steps"),
        ("steps=20 guidance=0,1,2,4,8", "scales of guidance"),
    ):
        over, traces = over_live_calls(text, 11)
        yield f"sweep of five {what} over its live network calls", over, "<= 1.1"
        yield f"traces of the network after the first of five {what}", traces, "== 0"


def over_live_calls(text: str, rounds: int) -> tuple[float, int]:
    """The settings of a sweep over as many calls of the compiled network; more traces."""
    config, model, params, _ = prepared("digits_conditional")
    traces: list[int] = []

    def apply_fn(params, x_t, *arguments, **options):
        traces.append(len(x_t))
        return model.apply_fn(params, x_t, *arguments, **options)

    traced = dataclasses.replace(model, apply_fn=apply_fn)
    settings = sweeps.parse(text, config, {"sampler": "ddim"})
    samplings = [setting.config.sampling for setting in settings]
    guided = [build_sampler.needs_base(sampling) for sampling in samplings]
    options = build_sampler.chain_options(config)
    if any(guided):
        limited = guidance.by_label(traced, config.data.num_classes, is_limited=True)
        options = options._replace(guidance=limited)
    tables = sweeps.tables_of(settings, traced)
    sampler = build_sampler.make_sampler(
        config, traced, devices.make_mesh(), options, on_progress=lambda _: None
    )
    batch = config.sampling.batch_size
    samples, label = Samples(KEY, np.arange(batch)), np.arange(batch) % 10
    conds = [
        {"label": label, "guidance": np.full(batch, sampling.guidance, np.float32)}
        for sampling in samplings
    ]

    def draw() -> list:
        return [
            sampler(params, table, samples, cond)[0]
            for table, cond in zip(tables, conds, strict=True)
        ]

    forward = jax.jit(model.apply_fn, compiler_options=cpu.compiler_options())
    inputs = {
        twice: (
            jnp.zeros((batch * (1 + twice), *config.data.shape)),
            jnp.zeros(batch * (1 + twice)),
            {"label": np.resize(label, batch * (1 + twice))},
        )
        for twice in (False, True)
    }
    calls = [
        inputs[twice]
        for table, twice in zip(tables, guided, strict=True)
        for _ in range(table.num_calls)
    ]
    jax.block_until_ready(sampler(params, tables[0].idle(), samples, conds[0]))
    first = len(traces)
    over = ratio(draw, lambda: [forward(params, *given) for given in calls], rounds)
    return over, len(traces) - first


def progress() -> Iterator[Figure]:
    """1,000 steps of the digits network, with and without a report every 1 %."""
    config, model, params, table = prepared("digits")
    mesh, rows = devices.make_mesh(), table(300)
    samples = Samples(KEY, np.arange(64))
    silent = build_sampler.make_sampler(config, model, mesh)
    told = build_sampler.make_sampler(config, model, mesh, on_progress=lambda _: None)
    yield (
        "progress on over off, digits, batch 64, 300 steps",
        ratio(
            lambda: told(params, rows, samples, {}),
            lambda: silent(params, rows, samples, {}),
            15,
        ),
        "<= 1.01",
    )


def memory() -> Iterator[Figure]:
    """Temporary memory of the compiled chain, digits network, batch 64."""
    config, model, params, table = prepared("digits")

    def temporaries(count: int) -> int:
        lowered = jax.jit(
            lambda params, rows, indices: sample_chain(
                model, params, rows, Samples(KEY, indices), config.data.shape
            )
        ).lower(params, table(count), jnp.arange(64))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(10), temporaries(1000)
    yield "temporary memory of 10 steps, MiB", short / 2**20, ""
    yield "temporary memory of 1,000 steps over that of 10", long / short, "== 1"


# Prints the seconds of .compile() alone, in a process of its own.
COMPILE = """
import json, sys, time
import jax, numpy as np
sys.path.insert(0, {benchmarks!r})
from samplers import prepared
from diffusion_jax.samplers.chain import Samples
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.runtime import compilation_cache, devices
config, model, params, table = prepared("digits")
compilation_cache.use({folder!r})
progress = (lambda _: None) if {progress} else None
sampler = build_sampler.make_sampler(
    config, model, devices.make_mesh(), on_progress=progress
)
rows, samples = table(1000), Samples(jax.random.key(0), np.arange(64))
if hasattr(sampler, "lower"):
    lowered = sampler.lower(params, rows, samples, {})
    start = time.perf_counter()
    lowered.compile()
    seconds = time.perf_counter() - start
else:  # Segments: all that is compiled, less the tracing, is in the events of jax.
    seconds = 0.0
    def add(name, duration, **_):
        global seconds
        seconds += duration if name.endswith("backend_compile_duration") else 0.0
    jax.monitoring.register_event_duration_secs_listener(add)
    rows = table(10)
    jax.block_until_ready(sampler(params, rows, samples, {}))
print(json.dumps(seconds))
"""


def cache() -> Iterator[Figure]:
    """The digits chain compiled by new processes: a new cache folder, then the same."""
    for progress, what in ((False, "the chain"), (True, "the chain with progress")):
        saved = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                code = COMPILE.format(
                    benchmarks=str(ROOT / "benchmarks"), folder=folder, progress=progress
                )
                environment = {
                    k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"
                }
                cold, warm = (
                    json.loads(
                        subprocess.run(
                            [sys.executable, "-c", code],
                            cwd=ROOT,
                            env=environment,
                            check=True,
                            capture_output=True,
                            text=True,
                        ).stdout.splitlines()[-1]
                    )
                    for _ in range(2)
                )
            saved.append(1 - warm / cold)
        yield (
            f"compilation saved by a warm cache, {what}",
            statistics.median(saved),
            ">= 0.8",
        )


def many() -> Iterator[Figure]:
    """50,000 samples through sample.py: the largest resident set over that of 500."""
    run = ROOT / "runs" / "swiss_roll"
    if not run.exists():
        print("no runs/swiss_roll here: the memory of 50,000 samples is not measured")
        return
    peaks = []
    for num in (500, 500, 50_000):  # The first one fills the compilation cache.
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "sample.py", f"--workdir={run}", f"--num={num}"]
            command += ["--batch_size=500", "--steps=10", f"--out={folder}/out"]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            peak = 0
            while process.poll() is None:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                found = [x for x in status.splitlines() if x.startswith("VmHWM")]
                peak = max(peak, int(found[0].split()[1])) if found else peak
                time.sleep(0.02)
            peaks.append(peak)
    yield "resident set of 50,000 samples over that of 500", peaks[2] / peaks[1], "<= 1.1"


if __name__ == "__main__":
    record(overhead, sweep, progress, memory, cache, many)
