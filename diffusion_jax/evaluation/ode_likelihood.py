"""The likelihood under the probability-flow ODE (Song et al. 2021, section 4.3).

With alpha-bar = cos^2 phi the process is x = cos(phi) x_0 + sin(phi) eps, and the flow with
its marginals moves x with the velocity that a network of v-prediction predicts:

    dx / dphi = v(x, phi) = cos(phi) eps - sin(phi) x_0
    log p(x at t = 0) = log N(x at T - 1; 0, I) + integral of div v dphi

Images are dequantised by the first step of noising, which is what the flow ends in: with
x_1 from q(x_1 | x_0), as everywhere index 0 here, and the decoder of the bound's L_0,

    -log p(x_0) <= E_q[-log p(x_1) + log q(x_1 | x_0)] + L_0

Uniform noise within a level's bin, the usual choice for models of continuous time, is
narrower than the noise at t = 0, at which a discrete process ends.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.forward_process import q_sample
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.noise_level import noise_level
from diffusion_jax.diffusion.parameterization import v_coefficients
from diffusion_jax.diffusion.schedules import times_at_log_snr
from diffusion_jax.diffusion.variational_bound import bound_term
from diffusion_jax.evaluation.timestep_scan import as_float32
from diffusion_jax.runtime import cpu, devices

CALLS_PER_STEP = 4  # Calls of the network, each with its derivative.
_SEGMENT = 5  # Steps of one dispatch; between two a job can tell its progress, or stop.
_MAX_EXACT = 16  # Dimensions whose divergence is a sum over all; else Hutchinson's.


class Stages(NamedTuple):
    """The points at which Runge and Kutta's method calls the network; float64.

    [N, 3] for N steps of three points; the length is [N].

    Attributes:
      t: times at the beginning, the middle and the end of each step.
      of_x, of_prediction: v = of_x x + of_prediction * prediction there.
      length: of each step, in phi.
    """

    t: np.ndarray
    of_x: np.ndarray
    of_prediction: np.ndarray
    length: np.ndarray

    def at(self, i: jax.Array, stage: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return t and the two coefficients of one stage of step i; float32 scalars."""
        t, of_x, of_prediction = (jnp.asarray(x, jnp.float32)[i, stage] for x in self[:3])
        return t, of_x, of_prediction


def make_stages(model: Model, num_steps: int) -> Stages:
    """N steps of the flow from t = 0 to T - 1, even in log SNR.

    Where that has no end, the last step is from T - 2, or from where log SNR is -10.
    """
    schedule = model.process
    last = -1 if np.isfinite(schedule.log_snr[-1]) else -2
    ends = schedule.log_snr[0], schedule.log_snr[last]
    if last == -2:
        ends = ends[0], max(ends[1], -10.0)
    steps = np.linspace(*ends, num_steps + 2 + last)
    nodes = np.append(np.arctan(np.exp(-steps / 2)), [np.pi / 2] * (-1 - last))
    phi = np.stack([nodes[:-1], (nodes[:-1] + nodes[1:]) / 2, nodes[1:]], axis=1)
    t = times_at_log_snr(schedule, -2 * np.log(np.tan(phi).ravel())).reshape(phi.shape)
    t[-1, -1] = schedule.num_timesteps - 1
    level = noise_level(np.cos(phi), np.sin(phi))
    return Stages(t, *v_coefficients(model.prediction, level), np.diff(nodes))


class Flow:
    """The compiled integration of one network's flow."""

    def __init__(
        self,
        model: Model,
        mesh: jax.sharding.Mesh,
        num_steps: int,
        *,
        dequantize: bool,
        seed: int = 0,
    ):
        """Prepare; the first batch compiles.

        Args:
          model: the network.
          mesh: the devices that a batch is divided over.
          num_steps: N, of Runge and Kutta's method of fourth order.
          dequantize: whether examples are images on 256 levels, of which the bound is
            wanted; else the density of x at t = 0.
          seed: of the noise, and of the probes of the divergence.
        """
        self.num_steps, self._mesh = num_steps, mesh
        self._model, self._dequantize = model, dequantize
        self._segment = min(_SEGMENT, num_steps)
        self._stages = make_stages(model, num_steps)
        # As in `training.train_state.init_state`: clear of training's and sampling's.
        key = jax.random.fold_in(jax.random.key(seed), 2**32 - 5)
        self._key_noise, self._key_probe = jax.random.split(key)
        rows, whole = devices.split_batch(mesh), devices.replicated(mesh)
        self._begin = jax.jit(
            self._start, in_shardings=(whole, rows, rows), out_shardings=rows
        )
        self._advance = jax.jit(
            self._segment_from,
            in_shardings=(whole, rows, rows, rows, rows, whole),
            out_shardings=rows,
            compiler_options=cpu.compiler_options(),
        )
        self._log_normal = jax.jit(_log_normal)

    def _segment_from(self, params, cond, x, total, probe, first):
        """Return x and the sum of divergences after a segment of steps from `first` on."""

        def slope(x: jax.Array, i: jax.Array, stage: int) -> tuple[jax.Array, jax.Array]:
            def velocity(x: jax.Array) -> jax.Array:
                t, of_x, of_prediction = self._stages.at(i, stage)
                times = jnp.broadcast_to(t, x.shape[:1])
                said = self._model.predict(params, x, times, cond)
                return of_x * x + of_prediction * said.output

            return _with_divergence(velocity, x, probe)

        def step(carry: tuple[jax.Array, jax.Array], i: jax.Array):
            x, total = carry
            last = self.num_steps - 1
            h = jnp.asarray(self._stages.length, jnp.float32)[jnp.minimum(i, last)]
            h = jnp.where(i < self.num_steps, h, 0)  # The last segment is filled up.
            i = jnp.minimum(i, last)
            v1, d1 = slope(x, i, 0)
            v2, d2 = slope(x + h / 2 * v1, i, 1)
            v3, d3 = slope(x + h / 2 * v2, i, 1)
            v4, d4 = slope(x + h * v3, i, 2)
            x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
            return (x, total), None

        return jax.lax.scan(step, (x, total), first + jnp.arange(self._segment))[0]

    def _start(self, params, batch, indices):
        """Return x at t = 0, the probe, and what dequantisation adds, in nats [B]."""
        x0 = batch.x

        def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            of_noise = jax.random.fold_in(self._key_noise, index)
            of_probe = jax.random.fold_in(self._key_probe, index)
            probe = jax.random.rademacher(of_probe, x0.shape[1:], jnp.float32)
            return jax.random.normal(of_noise, x0.shape[1:]), probe

        noise, probe = jax.vmap(draw)(indices)
        process = self._model.process
        t = jnp.zeros(x0.shape[:1], jnp.int32)
        added = jnp.zeros(len(x0))
        if self._dequantize:
            decoder = bound_term(self._model, params, batch, Draw(t, noise))
            variance = 1 - process.alphas_cumprod[0]
            log_q = -0.5 * (jnp.square(noise) + math.log(2 * math.pi * variance))
            added = log_q.reshape(len(x0), -1).sum(axis=1)
            added += decoder.bits * math.log(2) * math.prod(x0.shape[1:])
        return q_sample(process, x0, t, noise), probe, added

    def bits(
        self,
        params: Any,
        batch: Batch,
        indices: np.ndarray,
        size: int,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Return bits per dimension of up to `size` examples, as one batch; float64 [N].

        For images they are the bound of this module; for points -log2 of the density of x
        at t = 0.

        Args:
          params: of the network.
          batch: float32 [N, ...], and what they are conditioned on.
          indices: int [N], of these examples in the data set.
          size: of the compiled batch, which is filled up.
          on_progress: is told of the network calls done, and may raise an exception.
        """
        num, dimensions = len(indices), math.prod(batch.x.shape[1:])
        filled = devices.put_filled(self._mesh, as_float32(batch), size)
        where = devices.put_filled(self._mesh, np.asarray(indices, np.int32), size)
        x, probe, added = self._begin(params, filled, where)
        total = jnp.zeros_like(added)
        for first in range(0, self.num_steps, self._segment):
            after = self._advance(params, filled.cond, x, total, probe, first)
            x, total = jax.block_until_ready(after)
            done = min(first + self._segment, self.num_steps)
            on_progress(CALLS_PER_STEP * done)
        nats = added - self._log_normal(x) - total
        nats = devices.to_host(nats).astype(np.float64)
        return nats[:num] / (dimensions * math.log(2))


def _with_divergence(
    velocity: Callable[[jax.Array], jax.Array], x: jax.Array, probe: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The velocity at x, and its divergence for each example, [B].

    It is exact for up to 16 dimensions, and Hutchinson's estimate with this probe for more.
    """
    v, pull_back = jax.vjp(velocity, x)

    def along(direction: jax.Array) -> jax.Array:
        (gradient,) = pull_back(direction)
        return (gradient * direction).reshape(len(x), -1).sum(axis=1)

    dimensions = math.prod(x.shape[1:])
    if dimensions > _MAX_EXACT:
        return v, along(probe)
    basis = jnp.eye(dimensions).reshape(dimensions, 1, *x.shape[1:])
    each = jax.vmap(lambda e: along(jnp.broadcast_to(e, x.shape)))(basis)
    return v, each.sum(axis=0)


def _log_normal(x: jax.Array) -> jax.Array:
    log_p = -0.5 * (jnp.square(x) + math.log(2 * math.pi))
    return log_p.reshape(len(x), -1).sum(axis=1)
