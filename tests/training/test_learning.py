"""Training of networks, against the best that can be learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    MLPConfig,
    OptimizerConfig,
    ProcessConfig,
)
from diffusion_jax.data import sources
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.diffusion import losses, oracle, timestep_sampling
from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.noise_level import noise_level_at
from diffusion_jax.experiment import build
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.training import train
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.train_state import init_state
from diffusion_jax.training.train_step import make_train_step, make_train_steps
from helpers import ROOT

T, BATCH, STEPS = 50, 256, 1500
DATA = oracle.mixture([1, 2], [[-0.6], [0.5]], [[0.02], [0.05]])


def irreducible_loss(process):
    """E over t and x_t of Var[eps | x_t], by integration over x_t in float64."""
    total = 0.0
    with jax.enable_x64(True):
        grid = jnp.linspace(-7, 7, 8001, dtype=jnp.float64)[:, None]
        for t in range(T):
            level = noise_level_at(process, jnp.array([t]), jnp.float64)
            density = np.exp(oracle.log_density(DATA, grid, level))
            _, variance = oracle.x0_mean_variance(DATA, grid, level)
            ratio = float(level.alpha_squared[0] / level.sigma_squared[0])
            total += ratio * (density * np.asarray(variance)[:, 0]).sum() / density.sum()
    return total / T


@pytest.mark.statistical
@pytest.mark.slow
def test_a_small_network_approaches_the_oracle_from_above(capsys):
    """Losses of the oracle and of a network trained by the real step, on the same draws."""
    config = Config(
        data=DataConfig(source="mixture", image_size=(), channels=1, batch_size=BATCH),
        model=MLPConfig(width=64, num_blocks=2),
        process=ProcessConfig(schedule="cosine", num_timesteps=T),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20, decay="cosine"),
        ema=EMAConfig(decay=0.99, warmup=True),
    )
    init_fn, _ = build.make_network(config)
    model = build.make_model(config)
    tx = make_optimizer(config.optimizer, STEPS)
    loss_fn = build.make_loss(config, model)
    step = make_train_step(config, loss_fn, model.process, tx, lambda key, batch: batch)
    steps = jax.jit(make_train_steps(step))
    n = 200_000
    x0 = oracle.sample(DATA, jax.random.key(1), n)
    best_fn = build.make_loss(config, oracle.optimal_model(DATA, model.process))

    @functools.partial(jax.jit, static_argnums=0)
    def on_same_draws(loss_fn, params):
        per_example = functools.partial(loss_fn, params)
        key = jax.random.key(2)
        draw = timestep_sampling.stratified_timesteps
        return losses.monte_carlo_loss(
            per_example, model.process, key, Batch(x0), draw_timesteps=draw, train=False
        )[1][1]

    best = np.asarray(on_same_draws(best_fn, None), np.float64)
    floor = irreducible_loss(model.process)
    assert abs(best.mean() - floor) < 5 * best.std() / np.sqrt(n)

    state, gaps = init_state(init_fn, tx, config), []
    for count in (50, 200, STEPS - 250):
        key = jax.random.fold_in(jax.random.key(3), int(state.step))
        batches = oracle.sample(DATA, key, STEPS * BATCH).reshape(STEPS, BATCH, 1)
        state, _ = steps(state, batches, count)
        gaps.append((on_same_draws(loss_fn, state.emas["0.99"]) - best).mean())
    with capsys.disabled():
        said = ", ".join(f"{gap:.4f}" for gap in gaps)
        print(
            f"\nabove the irreducible loss {floor:.4f} after 50, 250, {STEPS} steps: {said}"
        )
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.02 * floor


@pytest.mark.slow
def test_importance_sampling_quietens_the_gradient_of_the_bound(tmp_path, capsys):
    """The second moment of one example's gradient of L_vlb, on the demo's network.

    It is taken under uniform t and under the probabilities that the recorded losses give,
    summed over all t, with one example and one noise for each.
    """
    config = load_config(str(ROOT / "configs/digits.py"))
    config.training.num_steps, config.training.sample_every = 1000, 0
    state = train.train(config, tmp_path / "run")
    model = build.make_model(config)
    total = config.process.num_timesteps
    digits = sources.open_data_set(config.data).train[:]
    images = PICTURES.to_network(jnp.asarray(digits[:total]))
    bound = functools.partial(losses.variational_loss, model)

    @jax.jit
    def of_every_t(key):
        """(losses [T], squared norms of the gradients [T])."""

        def one(t):
            noise = jax.random.normal(jax.random.fold_in(key, t), (1, *images.shape[1:]))
            x0 = images[jax.random.randint(jax.random.fold_in(key, t), (1,), 0, total)]

            def loss(params):
                return bound(params, Batch(x0), Draw(t[None], noise))[0]

            value, gradient = jax.value_and_grad(loss)(state.params)
            return value, optax.tree.norm(gradient) ** 2

        return jax.lax.map(one, jnp.arange(total))

    history = timestep_sampling.empty_history(total)
    for i in range(10):
        values, _ = of_every_t(jax.random.fold_in(jax.random.key(1), i))
        history = timestep_sampling.record_losses(history, jnp.arange(total), values)
    p = np.asarray(timestep_sampling.timestep_probabilities(history), np.float64)
    squares = np.mean(
        [of_every_t(jax.random.fold_in(jax.random.key(2), i))[1] for i in range(5)], axis=0
    )
    uniform = squares.mean()  # E_t |g_t|^2, and then E_p |g_t / (T p_t)|^2.
    weighted = (squares / (total * p)).mean()
    with capsys.disabled():
        print(
            f"\nimportance sampling divides the second moment by {uniform / weighted:.1f}"
        )
    assert uniform / weighted > 5
