"""Our side: the network, the train step and the samplers, as the commands run them."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from worker import serve

from diffusion_jax.config import DataConfig, from_json
from diffusion_jax.data import sources
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.data.pipeline import Loader, StepBatches
from diffusion_jax.diffusion import losses, timestep_sampling
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.variational_bound import bound_term
from diffusion_jax.evaluation.bound import Bound
from diffusion_jax.experiment import build
from diffusion_jax.experiment.build_sampler import make_sampler, make_table
from diffusion_jax.runtime import cpu, devices
from diffusion_jax.samplers import chain
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.train_state import init_state
from diffusion_jax.training.train_step import make_train_step, make_train_steps

CHECKED = 2  # Train steps that both sides take from the same weights.


def weights(config: Any) -> Any:
    """Random ones: a network as it starts, whose last layers are zeros, shows little."""
    init_fn, _ = build.make_network(config)
    shapes = jax.eval_shape(init_fn, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        normal = rng.standard_normal(leaf.shape)
        if path[-1].key == "scale":
            return np.float32(1 + 0.1 * normal)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return np.float32(normal / np.sqrt(fan_in))

    return jax.tree.map_with_path(draw, shapes)


def forward(config: Any, folder: pathlib.Path) -> Any:
    _, apply_fn = build.make_network(config)
    params = weights(config)
    rng = np.random.default_rng(1)
    x = np.float32(rng.standard_normal((config.data.batch_size, *config.data.shape)))
    t = rng.integers(0, 1000, config.data.batch_size)
    program = jax.jit(
        lambda params, x, t: apply_fn(params, x, t),
        compiler_options=cpu.compiler_options(),
    )
    program = program.lower(params, x, t).compile()
    arguments = jax.device_put((params, x, t))
    np.savez(folder / "inputs.npz", x=x, t=t)
    save(folder / "weights.npz", params)
    np.save(folder / "ours.npy", np.asarray(program(*arguments)))
    return lambda: program(*arguments).block_until_ready(), about(program)


def train(config: Any, folder: pathlib.Path, steps: int) -> Any:
    """Dispatches of `steps` train steps; first a few whose draws both sides share."""
    model = build.make_model(config)
    tx = make_optimizer(config.optimizer, config.training.num_steps)
    loss_fn = build.make_loss(config, model)
    step = make_train_step(config, loss_fn, model.process, tx, lambda key, x: x)
    plain_model = dataclasses.replace(config.model, dropout=0.0)
    plain = dataclasses.replace(config, model=plain_model)
    plain_loss = build.make_loss(plain, build.make_model(plain))
    plain_step = make_train_step(plain, plain_loss, model.process, tx, lambda key, x: x)
    params = weights(config)
    state = jax.jit(lambda params: init_state(lambda key: params, tx, config))(params)
    rng = np.random.default_rng(1)
    shape = (steps, config.data.batch_size, *config.data.shape)
    x0 = np.float32(rng.uniform(-1, 1, shape))
    draws: dict[str, list] = {"t": [], "noise": []}

    def spy(batch: Any, draw: Any, **_: Any) -> Any:
        draws["t"].append(np.asarray(draw.t))
        draws["noise"].append(np.asarray(draw.noise))
        return jnp.zeros(len(batch.x))

    for n in range(CHECKED):
        k_loss, _ = jax.random.split(jax.random.fold_in(state.key, n))
        losses.monte_carlo_loss(
            spy,
            model.process,
            k_loss,
            Batch(jnp.asarray(x0[n % steps])),
            draw_timesteps=timestep_sampling.uniform_timesteps,
        )
    asked = cpu.compiler_options()
    program = jax.jit(make_train_steps(step), donate_argnums=0, compiler_options=asked)
    state, batches = jax.device_put((state, Batch(x0)))
    state = jax.tree.map(jnp.copy, state)  # Donated: every array on its own.
    compiled = program.lower(state, batches, steps).compile()
    # That without dropout takes a few steps: quick to compile is all that it needs.
    asked = {**asked, "xla_backend_optimization_level": "0"}
    single = jax.jit(plain_step, compiler_options=asked)
    single = single.lower(state, Batch(batches.x[0])).compile()
    save(folder / "weights.npz", params)
    np.savez(
        folder / "inputs.npz",
        x0=x0,
        t=np.stack(draws["t"]),
        noise=np.stack(draws["noise"]),
        alphas_cumprod=model.process.alphas_cumprod,
    )
    found, checked = [], state
    for n in range(CHECKED):
        checked, metrics = single(checked, Batch(batches.x[n % steps]))
        found.append([float(metrics.loss), float(metrics.grad_norm)])
    np.save(folder / "ours.npy", np.array(found))
    held = [state]

    def run() -> None:
        held[0], said = compiled(held[0], batches, steps)
        said.metrics.loss.block_until_ready()

    return run, about(single)


def sample(config: Any, folder: pathlib.Path, sampler: str, steps: int) -> Any:
    model = build.make_model(config)
    sampling = dataclasses.replace(
        config.sampling, sampler=sampler, steps=steps, spacing="trailing"
    )
    config = dataclasses.replace(config, sampling=sampling)
    table = make_table(model, sampling)
    params = jax.device_put(weights(config))
    save(folder / "weights.npz", params)
    indices = np.arange(config.data.batch_size, dtype=np.int32)
    np.savez(folder / "inputs.npz", alphas_cumprod=model.process.alphas_cumprod)
    samples = chain.Samples(jax.random.key(0), indices)
    sampler_fn: Any = make_sampler(config, model, devices.make_mesh())
    program = sampler_fn.lower(params, table, samples, {}).compile()

    def run() -> Any:
        drawn = np.asarray(program(params, table, samples, {})[0])
        return PICTURES.from_network(drawn)

    shape = config.data.shape
    np.save(folder / "start.npy", np.asarray(chain._draw(samples, 0, shape)))
    if sampler == "ddim":  # The noise of the others is each side's own.
        np.save(folder / "ours.npy", run())
    return run, {}


def bound(config: Any, folder: pathlib.Path, steps: int) -> Any:
    """The variational bound of a batch, one t of each of `steps` strata."""
    model = build.make_model(config)
    params = jax.device_put(weights(config))
    batch, rng = config.data.batch_size, np.random.default_rng(1)
    shape = (batch, *config.data.shape)
    x0 = np.float32(rng.integers(0, 256, shape) / 127.5 - 1)
    t = np.int32(np.arange(batch) * model.process.num_timesteps // batch)
    noise = np.float32(rng.standard_normal(shape))
    once = jax.jit(lambda x0, *draw: bound_term(model, params, Batch(x0), Draw(*draw)).bits)
    save(folder / "weights.npz", params)
    alphas = model.process.alphas_cumprod
    np.savez(folder / "inputs.npz", x0=x0, t=t, noise=noise, alphas_cumprod=alphas)
    np.save(folder / "ours.npy", np.asarray(once(x0, t, noise)))
    evaluation = Bound(model, devices.make_mesh(), steps)
    return lambda: evaluation.terms(params, Batch(x0), np.arange(batch), batch), {}


IMAGES = 2000  # Of 32x32.
EPOCHS = 10  # A loader that reads ahead does so while it waits for its turn: a long one.
AHEAD = 10  # Batches that are asked for at a time, as a train step does.


def load(config: Any, folder: pathlib.Path, kind: str) -> Any:
    """Batches of a few epochs onto the device, from memory or from JPEG files."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (IMAGES, 4, 4, 3), np.uint8)
    images: Any = coarse.repeat(8, axis=1).repeat(8, axis=2)
    np.save(folder / "images.npy", images)
    workers = 0
    if kind == "files":
        files = folder / "files"
        files.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(files / f"{i:04}.jpg", quality=90)
        data = DataConfig(source="folder", path=str(files), image_size=(32,), channels=3)
        images, workers = sources.open_data_set(data).train, data.num_workers
    batch, as_float = config.data.batch_size, jax.jit(PICTURES.to_network)
    sharding = devices.split_batch(devices.make_mesh(), 1)
    split = sources.Split(images)
    held = [0, Loader(StepBatches(split, batch, 0, slice(0, batch)), 0, AHEAD, workers)]
    sums = np.float64(as_float(images[np.arange(64)])).sum((1, 2, 3))
    np.save(folder / "ours.npy", sums)

    def run() -> None:
        for _ in range(-(-IMAGES * EPOCHS // (batch * AHEAD))):
            held[0] += AHEAD
            batches = held[1].load(held[0] - AHEAD, AHEAD)
            as_float(devices.put_local(sharding, batches.x)).block_until_ready()

    return run, {}


def matmul(dtype: str) -> Any:
    x = jnp.ones((4096, 4096), dtype)
    program = jax.jit(jnp.dot)
    return lambda: program(x, x).block_until_ready(), {"amount": 2 * 4096**3}


def copy(dtype: str) -> Any:
    x = jnp.ones(2**26, "float32")
    program = jax.jit(jnp.negative)
    return lambda: program(x).block_until_ready(), {"amount": 2 * x.nbytes}


def save(path: pathlib.Path, params: Any) -> None:
    flat = {
        ".".join(k.key for k in keys): np.asarray(leaf)
        for keys, leaf in jax.tree.leaves_with_path(params)
    }
    np.savez(path, **flat)


def about(program: Any) -> dict[str, Any]:
    cost = program.cost_analysis()
    return {"flops": cost["flops"], "bytes": cost["bytes accessed"]}


def prepare(work: str, **options: Any) -> Any:
    """`config`, if there is one, as JSON; `folder` is for what both sides need."""
    if "config" in options:
        options["config"] = from_json(json.dumps(options["config"]))
        options["folder"] = pathlib.Path(options["folder"])
    return WORK[work](**options)


def memory() -> int | None:
    """The most that the GPU held, bytes; None without one."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else None


WORK = {f.__name__: f for f in (forward, train, sample, bound, load, matmul, copy)}

if __name__ == "__main__":
    cpu.keep_memory()  # As the commands do.
    serve(prepare, memory)
