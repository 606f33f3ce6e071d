"""How fast examples come: from memory, streamed from files, and beside a train step.

The images are synthetic, because only their number and size matter here: a photograph
compresses better than the noise, so real files are read a little faster.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image
from record import ROOT, Figure, record

from diffusion_jax.config import Config, DataConfig
from diffusion_jax.data import sources
from diffusion_jax.data.pipeline import Loader, StepBatches
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runtime import devices
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training.train import prepared_trainer

RNG = np.random.default_rng(0)


def images(count: int, height: int, width: int) -> np.ndarray:
    """Smooth noise in colour; uint8 [count, height, width, 3]."""
    coarse = RNG.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def rate(source: sources.Source, batch_size: int, count: int, workers: int) -> float:
    """Images a second of a loader, put on the device: the median of five looks."""
    mesh = devices.make_mesh()
    sharding = devices.split_batch(mesh, 1)
    batches = StepBatches(sources.Split(source), batch_size, 0, slice(0, batch_size))
    rates = []
    with Loader(batches, 0, count, workers) as loader:
        step = 0
        for _ in range(6):  # The first one starts the workers and empties their buffers.
            start, calls = time.perf_counter(), 8
            for _ in range(calls):
                batch = loader.load(step, count)
                jax.block_until_ready(devices.put_local(sharding, batch.x))
                step += count
            rates.append(calls * count * batch_size / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def in_memory() -> Iterator[Figure]:
    """50,000 images of 32x32 in memory, batch 128, ten steps a dispatch."""
    name = "data: CIFAR-10 sized images/s from memory"
    yield name, rate(images(50_000, 32, 32), 128, 10, 0), ">= 50000"


def streaming() -> Iterator[Figure]:
    """JPEG files of 128x96 to 64x64, batch 64, by number of worker processes."""
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(images(1000, 96, 128)):
            Image.fromarray(image).save(pathlib.Path(folder, f"{i:04}.jpg"), quality=90)
        config = DataConfig(source="folder", path=folder, image_size=(64,), channels=3)
        source = sources.open_data_set(config).train
        for workers in (0, 1, 2, 4):
            name = f"data: JPEG 128x96 to 64x64 images/s, {workers} workers"
            yield name, rate(source, 64, 4, workers), ""


def share(config: Config, data: sources.DataSet | None = None) -> float:
    """Of a run's time after compiling, the part that its loop spends on loading."""
    config.training.eval_every = config.training.sample_every = 0
    config.training.checkpoint_every = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with Checkpoints(folder, writing=True) as checkpoints:
            trainer = prepared_trainer(make_plan(config, data), folder, checkpoints, Stop())
            load, program = trainer._load, trainer.train_steps
            loading, began, spent = 0.0, 0.0, 0.0

            def timed(*arguments):
                nonlocal loading
                start = time.perf_counter()
                batches = jax.block_until_ready(load(*arguments))
                loading += time.perf_counter() - start
                return batches

            def first(state, batches, count):
                nonlocal began, loading
                result = jax.block_until_ready(program(state, batches, count))
                began, loading = time.perf_counter(), 0.0
                trainer.train_steps = program
                return result

            trainer._load, trainer.train_steps = timed, first
            jax.block_until_ready(trainer.run())
            spent = time.perf_counter() - began
    return loading / spent


def waiting() -> Iterator[Figure]:
    """What loading costs the loop: more than the device ever waits, since they overlap."""
    config = load_config(str(ROOT / "configs" / "digits.py"))
    config.training.num_steps = 500
    yield "data: loading, share of a digits run", share(config), "<= 0.01"
    config = load_config(str(ROOT / "configs" / "cifar10.py"))
    config.training.num_steps, config.training.steps_per_dispatch = 4, 1
    config.data.batch_size = 16
    data = sources.arrays(images(50_000, 32, 32), images(100, 32, 32))
    name = "data: loading, share of a CIFAR-10 run, batch 16"
    yield name, share(config, data), "<= 0.01"


if __name__ == "__main__":
    record(in_memory, streaming, waiting)
