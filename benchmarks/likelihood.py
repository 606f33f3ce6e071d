"""Bits per dimension of the trained digits: what they cost, and what fewer steps cost.

Needs runs/digits (make demo). The cost is a ratio to the bare network calls, interleaved;
the bounds are of the held-out images.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from record import ROOT, Figure, record

from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.data.sources import open_data_set
from diffusion_jax.diffusion import oracle, schedules
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.evaluation.bound import Bound, standard_error
from diffusion_jax.experiment import build
from diffusion_jax.jobs import likelihood
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.weights import load_from_run
from diffusion_jax.runtime import devices

RUN = ROOT / "runs" / "digits"
SPACINGS = ("auto", "linspace", "trailing", "ddim_quadratic")


def cost() -> Iterator[Figure]:
    """Fifty timesteps of 50 images a turn: the bound, and the network alone."""
    config, mesh = run_folder.read_config(RUN), devices.make_mesh()
    model = build.make_model(config)
    params = load_from_run(RUN, config, "ema").params
    images = open_data_set(config.data).held_out
    x0 = np.asarray(PICTURES.to_network(jnp.asarray(images[np.arange(50)])))
    bound = Bound(model, mesh, 50)

    @jax.jit
    def bare(params, x):
        def call(x, t):
            times = jnp.full(len(x), t)
            return model.predict(params, x, times).output, None

        return jax.lax.scan(call, x, jnp.arange(50))[0]

    def one() -> None:
        bound.terms(params, Batch(x0), np.arange(50), 50)

    def other() -> None:
        jax.block_until_ready(bare(params, x0))

    one(), other()
    ratios = []
    for i in range(41):
        seconds = {}
        for function in (one, other) if i % 2 else (other, one):
            start = time.perf_counter()
            function()
            seconds[function] = time.perf_counter() - start
        ratios.append(seconds[one] / seconds[other])
    yield "likelihood: bound over bare network calls", statistics.median(ratios), "<= 1.1"


def oracle_in_3d() -> Iterator[Figure]:
    """What a diagonal reverse variance costs the best network of correlated levels.

    A Gaussian of three dimensions on the grid, standard deviation 2 levels, correlation
    0.8, with the exact posterior variance of each dimension; each image less its own
    -log2 p, whose mean is the entropy.
    """
    offsets = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), axis=-1)
    offsets = offsets.reshape(-1, 3)
    covariance = 4 * (0.8 + 0.2 * np.eye(3))
    inverse = np.linalg.inv(covariance)
    shares = np.exp(-np.einsum("ni,ij,nj->n", offsets, inverse, offsets) / 2)
    kept = shares > 1e-4
    data = oracle.discrete(128 + offsets[kept], shares[kept])
    schedule = schedules.make_schedule(schedules.linear_betas(1000))
    model = oracle.optimal_model(data, schedule, "eps", "learned")
    bound = Bound(model, devices.make_mesh(), 1000)
    x0 = np.asarray(oracle.sample(data, jax.random.key(0), 8000))
    found = bound.terms(None, Batch(x0), np.arange(8000), 8000)
    own = np.asarray(oracle.negative_log_likelihood(data, x0)) / (3 * np.log(2))
    gap = found.bits - own
    yield "likelihood: oracle in 3-D, bound over entropy, bits/dim", gap.mean(), ""
    yield "likelihood: oracle in 3-D, its standard error", standard_error(gap), ""


def digits() -> Iterator[Figure]:
    """The whole command, except its start: 200 images, all 1,000 timesteps."""
    config = run_folder.read_config(RUN)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        start = time.perf_counter()
        (job,) = likelihood.prepare(RUN, config, likelihood.Request(), bound=out / "all")
        found = job()
        seconds = time.perf_counter() - start
        yield "likelihood: seconds for 200 digits, T = 1000", seconds, "<= 90"
        yield "likelihood: digits, bits/dim", found["bits_per_dim"], ""
        yield "likelihood: digits, its standard error", found["standard_error"], ""
        for steps in (25, 50, 100):
            request = likelihood.Request(ode_steps=steps)
            (job,) = likelihood.prepare(RUN, config, request, flow=out / f"ode{steps}")
            name = f"likelihood: digits, flow of {steps} steps, bits/dim"
            yield name, job()["bits_per_dim"], ""
        for steps in (5, 10, 20, 50):
            for spacing in SPACINGS:
                request = likelihood.Request(steps=steps, spacing=spacing)
                out_of = out / f"{spacing}{steps}"
                (job,) = likelihood.prepare(RUN, config, request, bound=out_of)
                name = f"likelihood: digits, {steps} steps {spacing}, bits/dim"
                yield name, job()["bits_per_dim"], ""


if __name__ == "__main__":
    record(cost, oracle_in_3d, digits)
