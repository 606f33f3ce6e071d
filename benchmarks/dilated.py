"""A dilated network and the U-Net on the chirps, trained for the same time.

    python benchmarks/dilated.py [SECONDS]

Each is trained for SECONDS (240) on this machine, by the trainer and the config of the run
chirps, and draws 200 samples by DDIM in 20 timesteps. The dilated network is that of
DiffWave (Kong et al. 2021): residual blocks of one dilated convolution and a gated unit,
whose skips are added up.
"""

import dataclasses
import functools
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from record import ROOT, Figure, record
from scipy.stats import ks_2samp
from sounds import NUM, dominant_frequencies

from diffusion_jax import networks
from diffusion_jax.data import chirps
from diffusion_jax.experiment import build
from diffusion_jax.jobs import sample
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.networks import convolution
from diffusion_jax.networks.embeddings import timestep_embedding
from diffusion_jax.runs.metrics_log import losses_by_step, read_metrics
from diffusion_jax.training import train

_TRIAL_STEPS = 30
_NUM, _STEPS = 200, 20  # The dilated network takes too long for more.


class Dilated(nn.Module):
    """DiffWave's network on [B, L, 1]: 20 blocks, dilations 1, 2, ..., 512, twice."""

    width: int = 32
    num_blocks: int = 20
    cycle: int = 10

    @nn.compact
    def __call__(self, x_t, t, cond=None, *, train):
        del cond, train
        conv = functools.partial(
            nn.Conv, conv_general_dilated=convolution.for_platform(jax.default_backend())
        )
        temb = timestep_embedding(t, 128)
        for i in range(2):
            temb = nn.swish(nn.Dense(256, name=f"temb{i}")(temb))
        h = nn.relu(nn.Dense(self.width, name="in")(x_t[:, None]))
        skips = 0.0
        for i in range(self.num_blocks):
            time_of_block = nn.Dense(self.width, name=f"time{i}")(temb)[:, None, None]
            gates = _dilated(conv, h + time_of_block, 2 ** (i % self.cycle), f"conv{i}")
            gate, value = jnp.split(gates, 2, axis=-1)
            out = nn.Dense(2 * self.width, name=f"out{i}")(
                nn.sigmoid(gate) * jnp.tanh(value)
            )
            residual, skip = jnp.split(out, 2, axis=-1)
            h, skips = (h + residual) / jnp.sqrt(2.0), skips + skip
        h = nn.relu(nn.Dense(self.width, name="skip")(skips / jnp.sqrt(self.num_blocks)))
        h = nn.Dense(1, kernel_init=nn.initializers.zeros, name="last")(h)
        return h[:, 0]


def _dilated(conv, h, dilation, name):
    """Return a convolution of 3 taps that lie `dilation` apart; [B, 1, L, 2 width].

    Every `dilation`-th value becomes a row of its own, along which the taps are neighbours,
    so that the convolutions of CPUs, which have no dilation, do it.
    """
    batch, _, length, width = h.shape
    rows = h.reshape(batch, length // dilation, dilation, width).swapaxes(1, 2)
    out = conv(2 * width, (1, 3), name=name)(rows)
    return out.swapaxes(1, 2).reshape(batch, 1, length, 2 * width)


def dilated_network(config, *, platform=None):
    del platform
    return networks.as_functions(Dilated(), config.data.shape)


def config_with(num_steps: int):
    config = load_config(str(ROOT / "configs/chirps.py"))
    config.training = dataclasses.replace(
        config.training,
        num_steps=num_steps,
        log_every=10,
        eval_every=num_steps,
        sample_every=0,
    )
    config.sampling = dataclasses.replace(config.sampling, steps=_STEPS)
    config.ema.snapshots = 0
    return config


def seconds_per_step(folder: pathlib.Path) -> float:
    """Return the time of a train step, without those in which it is compiled."""
    train.train(config_with(_TRIAL_STEPS), folder)
    rates = [
        line["steps_per_sec"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "steps_per_sec" in line
    ]
    return 1 / rates[-1]


def compared(name: str, make_network, seconds: float) -> Iterator[Figure]:
    with (
        tempfile.TemporaryDirectory() as temporary,
        mock.patch.object(build, "make_network", make_network),
    ):
        folder = pathlib.Path(temporary)
        num_steps = max(10, round(seconds / seconds_per_step(folder / "trial")))
        config = config_with(num_steps)
        params = train.train(config, folder / "run").params
        yield f"{name}: parameters", sum(x.size for x in jax.tree.leaves(params)), ""
        yield f"{name}: train steps in {seconds:g} s", num_steps, ""
        losses = losses_by_step(folder / "run/metrics.jsonl", "held_out_loss")
        yield f"{name}: held-out loss", losses[max(losses)], ""
        sample.generate(folder / "run", config, sample.Request(_NUM), out=folder / "x")
        found = dominant_frequencies(np.load(folder / "x.npz")["arr_0"])
        data = dominant_frequencies(chirps.chirps(NUM, 1)[0])
        yield f"{name}: KS distance", float(ks_2samp(found, data).statistic), "<= 0.1"


if __name__ == "__main__":
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 240.0
    record(
        lambda: compared("U-Net", build.make_network, budget),
        lambda: compared("dilated", dilated_network, budget),
    )
