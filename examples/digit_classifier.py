"""A small classifier of noised digits, for classifier guidance.

    python examples/digit_classifier.py
    python sample.py --workdir runs/digits --prior examples/classifier_prior.py

Trains on the digits of configs/digits.py, noised by its process, prints how many held-out
digits it tells at each t, and writes its params to runs/digit_classifier.npz.
"""

import argparse
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.data.embedded import NUM_HELD_OUT_DIGITS, labelled_digits
from diffusion_jax.diffusion.forward_process import q_sample
from diffusion_jax.diffusion.noise_level import NoiseLevel, noise_level_at
from diffusion_jax.diffusion.schedules import cosine_betas, make_schedule

ROOT = pathlib.Path(__file__).parent.parent
FILE = pathlib.Path(os.environ.get("CLASSIFIER", ROOT / "runs" / "digit_classifier.npz"))
PROCESS = make_schedule(cosine_betas(1000))  # That of configs/digits.py.
SHOWN = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
WIDTH = 256
SPREAD = 0.25  # About the variance of a pixel, between -1 and 1.


def log_probabilities(params: dict, x_t: jax.Array, level: NoiseLevel) -> jax.Array:
    """Return log p(digit | x_t), [B, 10].

    What the network sees is the best linear guess of x_0, gain x_t, so that its gradient
    vanishes with the signal, as that of the true p(digit | x_t) does.

    Args:
      params: of `initial`.
      x_t: [B, 8, 8, 1].
      level: of x_t, scalars or [B].
    """
    gain = level.alpha * SPREAD / (level.alpha_squared * SPREAD + level.sigma_squared)
    log_snr = jnp.log(jnp.maximum(level.alpha_squared, 1e-12) / level.sigma_squared)
    turns = log_snr.reshape(-1, 1) * jnp.arange(0.1, 0.9, 0.1, dtype=x_t.dtype)[None]
    told = jnp.concatenate([jnp.sin(turns), jnp.cos(turns)], axis=1)
    guess = gain.reshape(-1, 1) * x_t.reshape(len(x_t), -1)
    h = guess @ params["in"] + params["bias"]
    for i in range(2):
        scale, shift = jnp.split(told @ params[f"level{i}"], 2, axis=1)
        h = h * (1.0 + scale) + shift
        h = h + jax.nn.silu(h) @ params[f"hidden{i}"]
    return jax.nn.log_softmax(jax.nn.silu(h) @ params["out"])


def load() -> dict:
    """Return the params that were trained."""
    if not FILE.is_file():
        raise FileNotFoundError(f"no {FILE}; run python examples/digit_classifier.py")
    return dict(np.load(FILE))


def initial(key: jax.Array) -> dict:
    """Return params to begin with."""
    shapes = {"in": (64, WIDTH), "out": (WIDTH, 10)}
    shapes |= {f"hidden{i}": (WIDTH, WIDTH) for i in range(2)}
    shapes |= {f"level{i}": (16, 2 * WIDTH) for i in range(2)}
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    params = {n: jax.random.normal(keys[n], s) / s[0] ** 0.5 for n, s in shapes.items()}
    return params | {"bias": jnp.zeros((1, WIDTH))}


def digits() -> tuple[jax.Array, jax.Array]:
    """Return all digits in [-1, 1], and their labels; the last 200 are held out."""
    images, labels = labelled_digits()
    return jnp.asarray(images / 127.5 - 1.0, jnp.float32), jnp.asarray(labels)


def train(num_steps: int, batch_size: int = 256) -> dict:
    """Return params trained on noised digits, each at a t of its own."""
    x, labels = (array[:-NUM_HELD_OUT_DIGITS] for array in digits())
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=0.1)

    def loss(params: dict, key: jax.Array) -> jax.Array:
        k_row, k_t, k_noise = jax.random.split(key, 3)
        row = jax.random.randint(k_row, (batch_size,), 0, len(x))
        t = jax.random.randint(k_t, (batch_size,), 0, PROCESS.num_timesteps)
        noise = jax.random.normal(k_noise, (batch_size, *x.shape[1:]))
        x_t = q_sample(PROCESS, x[row], t, noise)
        said = log_probabilities(params, x_t, noise_level_at(PROCESS, t))
        return -jnp.take_along_axis(said, labels[row][:, None], axis=1).mean()

    def step(state: tuple, key: jax.Array) -> tuple:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, key), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    k_params, k_steps = jax.random.split(jax.random.key(0))
    params = initial(k_params)
    state = (params, optimizer.init(params))
    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    return run(state, jax.random.split(k_steps, num_steps))[0]


def accuracy(params: dict, t: int, draws: int = 10) -> float:
    """Return the share of held-out digits that are told at t, over many draws of noise."""
    x, labels = (jnp.repeat(a[-NUM_HELD_OUT_DIGITS:], draws, axis=0) for a in digits())
    x_t = q_sample(PROCESS, x, jnp.int32(t), jax.random.normal(jax.random.key(t), x.shape))
    said = log_probabilities(params, x_t, noise_level_at(PROCESS, jnp.int32(t)))
    return float((said.argmax(axis=1) == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=pathlib.Path, default=FILE)
    arguments = parser.parse_args()
    params = train(arguments.steps)
    print("| t | signal, alpha | held-out digits told |\n| --- | --- | --- |")
    for t in SHOWN:
        alpha = float(noise_level_at(PROCESS, jnp.int32(t)).alpha)
        print(f"| {t} | {alpha:.3f} | {100 * accuracy(params, t):.1f} % |")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.out, **params)
    print("wrote", arguments.out)


if __name__ == "__main__":
    main()
