"""Our side: the network, the train step and the samplers, as the commands run them."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from worker import serve

from diffusion_jax import experiment, losses, parallel, timestep_sampling
from diffusion_jax.config import from_json
from diffusion_jax.data.transforms import to_examples
from diffusion_jax.samplers import chain
from diffusion_jax.sampling import make_sampler, make_table
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import init_state
from diffusion_jax.training.step import make_train_step, make_train_steps

CHECKED = 4  # Train steps that both sides take from the same weights.


def weights(config: Any) -> Any:
    """Random ones: a network as it starts, whose last layers are zeros, shows little."""
    init_fn, _ = experiment.make_network(config)
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
    _, apply_fn = experiment.make_network(config)
    params = weights(config)
    rng = np.random.default_rng(1)
    x = np.float32(rng.standard_normal((config.data.batch_size, *config.data.shape)))
    t = rng.integers(0, 1000, config.data.batch_size)
    program = jax.jit(lambda params, x, t: apply_fn(params, x, t)).lower(params, x, t)
    program = program.compile()
    arguments = jax.device_put((params, x, t))
    np.savez(folder / "inputs.npz", x=x, t=t)
    save(folder / "weights.npz", params)
    np.save(folder / "ours.npy", np.asarray(program(*arguments)))
    return lambda: program(*arguments).block_until_ready(), about(program)


def train(config: Any, folder: pathlib.Path, steps: int) -> Any:
    """Dispatches of `steps` train steps; first a few whose draws both sides share."""
    schedule = experiment.make_schedule(config.process)
    init_fn, apply_fn = experiment.make_network(config)
    tx = make_optimizer(config.optimizer, config.training.num_steps)
    loss_fn = experiment.make_loss(config, apply_fn, schedule)
    step = make_train_step(config, loss_fn, schedule, tx, lambda key, x: x)
    plain_model = dataclasses.replace(config.model, dropout=0.0)
    plain = dataclasses.replace(config, model=plain_model)
    plain_loss = experiment.make_loss(plain, experiment.make_network(plain)[1], schedule)
    plain_step = make_train_step(plain, plain_loss, schedule, tx, lambda key, x: x)
    state = init_state(init_fn, tx, config)
    params = weights(config)
    state = state._replace(params=params, emas={k: params for k in state.emas})
    rng = np.random.default_rng(1)
    shape = (steps, config.data.batch_size, *config.data.shape)
    batches = np.float32(rng.uniform(-1, 1, shape))
    draws: dict[str, list] = {"t": [], "noise": []}

    def spy(x0: Any, t: Any, noise: Any, **_: Any) -> Any:
        draws["t"].append(np.asarray(t))
        draws["noise"].append(np.asarray(noise))
        return jnp.zeros(len(x0))

    for n in range(CHECKED):
        k_loss, _ = jax.random.split(jax.random.fold_in(state.key, n))
        losses.monte_carlo_loss(
            spy,
            schedule,
            k_loss,
            jnp.asarray(batches[n % steps]),
            draw_timesteps=timestep_sampling.uniform_timesteps,
        )
    program = jax.jit(make_train_steps(step), donate_argnums=0)
    state, batches = jax.device_put((state, batches))
    state = jax.tree.map(jnp.copy, state)  # Donated: every array on its own.
    compiled = program.lower(state, batches, steps).compile()
    single = jax.jit(plain_step).lower(state, batches[0]).compile()
    save(folder / "weights.npz", params)
    np.savez(
        folder / "inputs.npz",
        x0=np.asarray(batches),
        t=np.stack(draws["t"]),
        noise=np.stack(draws["noise"]),
        alphas_cumprod=schedule.alphas_cumprod,
    )
    found, checked = [], state
    for n in range(CHECKED):
        checked, metrics = single(checked, batches[n % steps])
        found.append([float(metrics.loss), float(metrics.grad_norm)])
    np.save(folder / "ours.npy", np.array(found))
    held = [state]

    def run() -> None:
        held[0], said = compiled(held[0], batches, steps)
        said.metrics.loss.block_until_ready()

    return run, about(single)


def sample(config: Any, folder: pathlib.Path, sampler: str, steps: int) -> Any:
    schedule = experiment.make_schedule(config.process)
    _, apply_fn = experiment.make_network(config)
    sampling = dataclasses.replace(
        config.sampling, sampler=sampler, steps=steps, spacing="trailing"
    )
    config = dataclasses.replace(config, sampling=sampling)
    table = make_table(schedule, config.process, sampling)
    program = make_sampler(config, apply_fn, parallel.make_mesh())
    params = jax.device_put(weights(config))
    save(folder / "weights.npz", params)
    indices = np.arange(config.data.batch_size, dtype=np.int32)
    np.savez(folder / "inputs.npz", alphas_cumprod=schedule.alphas_cumprod)
    key = jax.random.key(0)

    def run() -> Any:
        return to_examples(np.asarray(program(params, table, key, indices)[0]), shape)

    shape = config.data.shape
    np.save(folder / "start.npy", np.asarray(chain._draw(key, indices, 0, shape)))
    np.save(folder / "ours.npy", run())
    return run, {}


def save(path: pathlib.Path, params: Any) -> None:
    flat = {
        ".".join(k.key for k in keys): np.asarray(leaf)
        for keys, leaf in jax.tree.leaves_with_path(params)
    }
    np.savez(path, **flat)


def about(program: Any) -> dict[str, Any]:
    cost = program.cost_analysis()
    memory = program.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "temporary": memory.temp_size_in_bytes,
    }


def prepare(folder: str, work: str, config: dict[str, Any], **options: Any) -> Any:
    """`config` as JSON."""
    config = from_json(json.dumps(config))
    return {"forward": forward, "train": train, "sample": sample}[work](
        config, pathlib.Path(folder), **options
    )


if __name__ == "__main__":
    serve(prepare)
