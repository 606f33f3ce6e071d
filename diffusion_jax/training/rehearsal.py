"""Rehearsal of a run: its programs are compiled for a slice that is not there.

The train step and the sampler of a config are lowered by the functions that a run lowers
them by, for abstract devices, and compiled by the compiler of those devices. What the
compiled programs say (memory, kernels, collectives) is printed and saved; times are a
roofline estimate from the makers' figures, and not measured.
"""

import json
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.batch import AUG_LEVEL, LOW_RES, Batch
from diffusion_jax.experiment import build_sampler, validation
from diffusion_jax.experiment.setup import Plan, make_plan_of_shapes
from diffusion_jax.runtime import devices, files, flop, hlo, slices
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.slices import Slice
from diffusion_jax.runtime.text import say
from diffusion_jax.samplers.chain import Samples
from diffusion_jax.training.dispatch_size import most_steps
from diffusion_jax.training.first_state import abstract_state
from diffusion_jax.training.train_state import TrainState
from diffusion_jax.training.trainer import compiled as compiled_train_steps

FLAG = "--rehearse"
ASSUMPTIONS = (
    "an estimate, not a measurement: the longest of computing, memory and collectives, as "
    "if each ran at its peak and all at once; a real step takes longer",
    "FLOP are those of matrix products and convolutions, a multiply-add as two",
    "memory traffic counts each operand and each result of each kernel once and whole",
    "an all-reduce of n bytes over N chips sends 2 (N - 1) / N n bytes from each chip, at "
    "the bandwidth of its links to the slice (TPU: one per axis, two where the axis is a "
    "ring) or to the host (GPU), or of the host's network cards if that is less",
    "float32 is computed at JAX's default precision: one pass of bfloat16 on a TPU, TF32 "
    "on a GPU",
)


class Program(NamedTuple):
    """A program of a run, traced but not compiled yet.

    Attributes:
      traced: the program with its abstract arguments.
      batch_size: examples of a pass of its loop, over all devices.
      passes: passes of its loop that the traced program says: 1 where it says none.
      unit: what one pass is, in words.
    """

    traced: Any
    batch_size: int
    passes: int
    unit: str


def path_of(config: Config, slice_: Slice) -> pathlib.Path:
    """Return where the figures of a rehearsal are saved."""
    name = f"{config.name}_{slice_.name.replace(':', '_')}.json"
    return pathlib.Path("runs") / "rehearsals" / name


def run(config: Config, slice_: Slice) -> dict[str, Any]:
    """Rehearse a config on a slice; print the figures, save them and return them.

    Args:
      config: the experiment. Its files are neither needed nor read.
      slice_: the chips to compile for.

    Raises:
      BadRequest: before anything is compiled or written.
      OSError: naming what cannot be written.
    """
    # A program for devices that are not there cannot be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    validation.check(config)
    abstract = slices.abstract_devices(FLAG, slice_)
    with values_refused():
        mesh = devices.make_mesh(config.parallel.data, config.parallel.fsdp, abstract)
    plan = make_plan_of_shapes(config, slice_.num_chips, devices.platform_of(mesh))
    path = path_of(config, slice_)
    files.check_can_be_made(path.parent)
    state, dtype = abstract_state(plan), _dtype(config)
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    kind = abstract[0].device_kind
    say(f"rehearsal of {config.name} on {slice_.name}: {num_parameters:,} params, {dtype}")
    report: dict[str, Any] = {
        "config": config.name,
        "slice": slice_.name,
        "chips": slice_.num_chips,
        "device_kind": kind,
        "jax": jax.__version__,
        "num_parameters": num_parameters,
        "dtype": dtype,
    }
    for name, make in (("train_step", train_step), ("sampler", sampler)):
        what = name.replace("_", " ")
        say(f"compiling the {what} for {slice_.num_chips:,} x {kind}; this takes minutes")
        began = time.monotonic()
        figures = _figures(make(plan, mesh, state), slice_, dtype)
        figures["compile_seconds"] = round(time.monotonic() - began, 1)
        report[name] = figures
        _say_figures(what, figures)
    report["assumptions"] = [*ASSUMPTIONS, f"the chip's figures: {slice_.chip.source}"]
    for line in report["assumptions"]:
        say(f"assumed: {line}")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(report, indent=2) + "\n")
    say(f"saved in {path}")
    return report


def train_step(plan: Plan, mesh: jax.sharding.Mesh, state: TrainState) -> Program:
    """Return the train steps of a dispatch, the program that `trainer.Trainer` runs."""
    data = plan.config.data
    shape = (most_steps(plan.config), data.batch_size, *data.shape)
    cond = {
        name: jax.ShapeDtypeStruct((*shape[:2], *rows.shape[1:]), rows.dtype)
        for name, rows in plan.data.split("train").cond_forms(data.shape).items()
    }
    batches = Batch(jax.ShapeDtypeStruct(shape, kind_of(data).dtype), cond)
    steps: Any = compiled_train_steps(plan, mesh)
    traced = steps.trace(state, batches, 1)
    return Program(traced, data.batch_size, 1, "train step")


def sampler(plan: Plan, mesh: jax.sharding.Mesh, state: TrainState) -> Program:
    """Return the chain of the config's sampling, with the state's params.

    Its batch is `sampling.batch_size`, made larger until the devices divide it.
    """
    config = plan.config
    table = build_sampler.make_table(
        plan.model, build_sampler.before_choice(config.sampling)
    )
    sampler: Any = build_sampler.make_sampler(config, plan.model, mesh)
    count = mesh.devices.size
    size = -(-config.sampling.batch_size // count) * count
    indices = jax.ShapeDtypeStruct((size,), np.int32)
    samples = Samples(jax.eval_shape(lambda: jax.random.key(0)), indices)
    cond = {guidance.LABEL: indices} if config.data.labels else {}
    if config.data.low_res:
        shape = (size, *config.data.low_res_shape)
        cond[LOW_RES] = jax.ShapeDtypeStruct(shape, np.float32)
        cond[AUG_LEVEL] = jax.ShapeDtypeStruct((size,), np.float32)
    traced = sampler.trace(state.params, table, samples, cond)
    return Program(traced, size, table.num_rows, "network call")


def _dtype(config: Config) -> str:
    return getattr(config.model, "dtype", "float32")


def _figures(program: Program, slice_: Slice, dtype: str) -> dict[str, Any]:
    """Compile a program and return what it says; all figures are of one chip."""
    flops = flop.count(program.traced.jaxpr) / program.passes / slice_.num_chips
    done = program.traced.lower().compile()
    stats, reading = done.memory_analysis(), hlo.read(done.as_text())
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    memory["needed"] = sum(memory.values()) - 2 * memory["aliased"]
    memory["of_chip"] = int(slice_.chip.memory)
    return {
        "per": program.unit,
        "batch_size": program.batch_size,
        "batch_size_per_chip": program.batch_size // slice_.num_chips,
        "memory_bytes": memory,
        "flop": flops,
        "memory_traffic_bytes": reading.memory_bytes,
        "collectives": {k: c._asdict() for k, c in reading.collectives.items()},
        "kernels": reading.kernels,
        "roofline": roofline(flops, reading, slice_, dtype, program.batch_size),
    }


def roofline(
    flops: float, reading: hlo.Reading, slice_: Slice, dtype: str, batch_size: int
) -> dict[str, Any]:
    """Return a lower bound of the time of a pass, from the figures of the chip.

    With F FLOP of b examples per chip, n bytes in all-reduces over N chips, P the peak of
    the chip and W its bandwidth to the others,

        compute = F / P,    all-reduce = 2 (N - 1) / N n / W.

    The all-reduce does not grow with the batch, so compute hides it from

        b* = b all-reduce / compute

    examples per chip on, if all of the step's computing can run at the same time. It
    begins with the first gradients that are ready, so that the backward pass alone, two
    thirds of the step, needs 3/2 b*.

    Args:
      flops: of one pass on one chip.
      reading: of the program.
      slice_: the chips.
      dtype: that the network computes in.
      batch_size: of the pass, over all chips.
    """
    chip, count = slice_.chip, slice_.num_chips
    peak = chip.bf16_flops if dtype == "bfloat16" else chip.f32_flops
    seconds = {
        "compute_seconds": flops / peak,
        "memory_seconds": reading.memory_bytes / chip.memory_bandwidth,
        "collective_seconds": 0.0,
    }
    if count > 1:
        sent = sum(
            (2 if kind == "all-reduce" else 1) * (count - 1) / count * found.bytes
            for kind, found in reading.collectives.items()
        )
        seconds["collective_seconds"] = sent / slice_.allreduce_bandwidth
    longest = max(seconds, key=lambda name: seconds[name])
    found: dict[str, Any] = {
        **seconds,
        "seconds": seconds[longest],
        "bound_by": longest.removesuffix("_seconds"),
        "peak_flop_per_second": peak,
        "memory_bytes_per_second": chip.memory_bandwidth,
        "link_bytes_per_second": slice_.allreduce_bandwidth if count > 1 else None,
    }
    if seconds["collective_seconds"] and flops:
        ratio = seconds["collective_seconds"] / seconds["compute_seconds"]
        per_chip = math.ceil(ratio * batch_size / count)
        found["hidden_from_batch_size_per_chip"] = per_chip
        found["hidden_from_batch_size"] = per_chip * count
    return found


def _say_figures(what: str, figures: dict[str, Any]) -> None:
    memory, line = figures["memory_bytes"], figures["roofline"]
    say(
        f"{what}, compiled in {figures['compile_seconds']:.0f} s; on each chip, with a "
        f"batch of {figures['batch_size']:,} ({figures['batch_size_per_chip']:,} per chip):"
    )
    said = {name: _size(size) for name, size in memory.items()}
    fits = "" if memory["needed"] <= memory["of_chip"] else ", which is not enough"
    say(
        f"  memory       {said['needed']} of {said['of_chip']}{fits}: {said['arguments']} "
        f"of arguments, {said['temporaries']} of temporaries"
    )
    say(f"  FLOP         {figures['flop'] / 1e12:.3g} TFLOP per {figures['per']}")
    collectives = [
        f"{found['number']:,} {kind} of {_size(found['bytes'])} in all"
        for kind, found in figures["collectives"].items()
    ]
    say(f"  collectives  per {figures['per']}: {', '.join(collectives) or 'none'}")
    kernels = figures["kernels"]
    beside = ("scalar", "background copy")
    total = sum(count for kind, count in kernels.items() if kind not in beside)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in kernels.items())
    say(f"  kernels      per {figures['per']}: {total:,} ({kinds})")
    say(
        f"  at least     {1e3 * line['seconds']:.3g} ms by the roofline, bound by "
        f"{line['bound_by']}: compute {1e3 * line['compute_seconds']:.3g}, memory "
        f"{1e3 * line['memory_seconds']:.3g}, collectives "
        f"{1e3 * line['collective_seconds']:.3g} ms"
    )
    if "hidden_from_batch_size" in line:
        say(
            "  all-reduce   hidden behind computing from a batch of "
            f"{line['hidden_from_batch_size']:,} on "
            f"({line['hidden_from_batch_size_per_chip']:,} per chip), by the roofline"
        )


def _size(num_bytes: int) -> str:
    """Return "0.83 GiB", "12.3 MiB"."""
    unit, size = ("GiB", 2**30) if num_bytes >= 2**29 else ("MiB", 2**20)
    return f"{num_bytes / size:.3g} {unit}"
