"""Gains in speed, as ratios in one process, with generous bounds."""

import os
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffusion_jax.experiment import build
from diffusion_jax.experiment.build_sampler import make_sampler
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.networks import blocks, winograd
from diffusion_jax.networks.convolution import conv_general_dilated
from diffusion_jax.runtime import cpu, devices
from diffusion_jax.samplers.chain import Samples
from diffusion_jax.samplers.methods import ddim_table
from diffusion_jax.samplers.timesteps import trailing_timesteps
from helpers import ROOT

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def ratio(own, other, rounds=15):
    """Median of the time of `own` over that of `other`, in turns."""
    found = []
    for _ in range(rounds + 1):
        seconds = []
        for function in (own, other):
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - start)
        found.append(seconds[0] / seconds[1])
    return statistics.median(found[1:])


def compiled(function, *arguments, options=None):
    program = jax.jit(function, compiler_options=options).lower(*arguments).compile()
    return lambda: program(*arguments)


def direct(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def test_products_of_matrices_are_faster_than_a_wide_convolution():
    """Matrix products against XLA's convolution of batch 8, 16x16, 256 channels."""
    x, kernel = draw(8, 16, 16, 256), draw(3, 3, 256, 256)
    own, stock = (compiled(f, x, kernel) for f in (winograd.convolution, direct))
    assert ratio(own, stock) < 0.95


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has nothing to share")
def test_a_narrow_convolution_is_shared_by_the_cores():
    """Processor time over time of a convolution of batch 64, 8x8, 32 channels."""
    x, kernel = draw(64, 8, 8, 32), draw(3, 3, 32, 32)
    program = jax.jit(direct, compiler_options=cpu.compiler_options())
    program = program.lower(x, kernel).compile()
    cores = []
    for _ in range(15):
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(20):
            program(x, kernel).block_until_ready()
        cores.append((time.process_time() - busy) / (time.perf_counter() - start))
    assert statistics.median(cores) > 1.3


def test_gradients_in_a_loop_cost_what_they_cost_outside():
    """Gradients in a loop, where the stock ones take 13 to 33 times as long."""
    x, kernel = draw(16, 8, 8, 32), draw(3, 3, 32, 32)

    def loss(kernel, x):
        return jnp.square(conv_general_dilated(x, kernel, (1, 1), "SAME")).mean()

    def loop(kernel, x):
        def step(_, kernel):
            return kernel - 1e-6 * jax.grad(loss)(kernel, x)

        return lax.fori_loop(0, 20, step, kernel)

    once = compiled(jax.grad(loss), kernel, x)
    assert ratio(compiled(loop, kernel, x), lambda: [once() for _ in range(20)]) < 2


def test_group_norm_is_as_fast_as_that_of_flax():
    """GroupNorm and its gradient, against those of Flax."""
    x = draw(64, 16, 16, 32)

    def gradient(module):
        params = module.init(jax.random.key(0), x)

        def loss(params, x):
            return jnp.square(nn.swish(module.apply(params, x))).mean()

        return compiled(jax.grad(loss, (0, 1)), params, x)

    own, stock = blocks.GroupNorm(8, jnp.float32), nn.GroupNorm(8)
    assert ratio(gradient(own), gradient(stock)) < 1.15


def test_a_chain_costs_what_its_forward_passes_cost():
    """A chain of 50 steps of the digits network, against 50 forward passes."""
    config = load_config(str(ROOT / "configs" / "digits.py"))
    init_fn, _ = build.make_network(config)
    model = build.make_model(config)
    params = jax.jit(init_fn)(jax.random.key(0))
    sampler = make_sampler(config, model, devices.make_mesh())
    table = ddim_table(model, trailing_timesteps(config.process.num_timesteps, 50))
    samples = Samples(jax.random.key(0), np.arange(64))
    x, t = jnp.zeros((64, *config.data.shape)), jnp.zeros(64)
    forward = compiled(model.apply_fn, params, x, t, options=cpu.compiler_options())
    chain = ratio(
        lambda: sampler(params, table, samples, {}),
        lambda: [forward() for _ in range(50)],
        rounds=7,
    )
    assert chain < 1.15
