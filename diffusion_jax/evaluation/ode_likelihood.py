"""The likelihood under the probability-flow ODE (Song et al. 2021, section 4.3).

With alpha-bar = cos^2 phi the process is x = cos(phi) x_0 + sin(phi) eps, and the flow with
its marginals moves x with the velocity that a network of v-prediction says:

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

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion.forward_process import q_sample
from diffusion_jax.diffusion.parameterization import prediction_alone
from diffusion_jax.diffusion.schedules import Schedule, times_at_log_snr
from diffusion_jax.diffusion.variational_bound import bound_term
from diffusion_jax.runtime import cpu, devices

CALLS_PER_STEP = 4  # Of the network, each with its derivative.
_SEGMENT = 5  # Steps of one dispatch; between two a job can tell its progress, or stop.
_MAX_EXACT = 16  # Dimensions whose divergence is a sum over all; else Hutchinson's.


class Stages(NamedTuple):
    """Where Runge and Kutta's method calls the network; float64 [N, 3], then [N].

    Attributes:
      t: times at the beginning, the middle and the end of each step.
      of_x, of_prediction: v = of_x x + of_prediction * prediction there.
      length: of each step, in phi.
    """

    t: np.ndarray
    of_x: np.ndarray
    of_prediction: np.ndarray
    length: np.ndarray


def make_stages(schedule: Schedule, prediction_type: str, num_steps: int) -> Stages:
    """N steps of the flow from t = 0 to T - 1, even in log SNR.

    Where that has no end, the last step is from T - 2, or from where log SNR is -10.
    """
    last = -1 if np.isfinite(schedule.log_snr[-1]) else -2
    ends = schedule.log_snr[0], schedule.log_snr[last]
    if last == -2:
        ends = ends[0], max(ends[1], -10.0)
    steps = np.linspace(*ends, num_steps + 2 + last)
    nodes = np.append(np.arctan(np.exp(-steps / 2)), [np.pi / 2] * (-1 - last))
    phi = np.stack([nodes[:-1], (nodes[:-1] + nodes[1:]) / 2, nodes[1:]], axis=1)
    t = times_at_log_snr(schedule, -2 * np.log(np.tan(phi).ravel())).reshape(phi.shape)
    t[-1, -1] = schedule.num_timesteps - 1
    cos, sin = np.cos(phi), np.sin(phi)
    if prediction_type == "eps":
        of_x, of_prediction = -sin / cos, 1 / cos
    elif prediction_type == "x0":
        of_x, of_prediction = cos / sin, -1 / sin
    else:
        of_x, of_prediction = np.zeros_like(phi), np.ones_like(phi)
    return Stages(t, of_x, of_prediction, np.diff(nodes))


class Flow:
    """The compiled integration of one network's flow."""

    def __init__(
        self,
        config: Config,
        apply_fn: Callable[..., jax.Array],
        schedule: Schedule,
        mesh: jax.sharding.Mesh,
        num_steps: int,
        *,
        seed: int = 0,
    ):
        """Prepares; the first batch compiles.

        Args:
          config: of the run.
          apply_fn: its network.
          schedule: its noise process.
          mesh: the devices that a batch is divided over.
          num_steps: N, of Runge and Kutta's method of fourth order.
          seed: of the noise, and of the probes of the divergence.
        """
        self.num_steps, self._mesh = num_steps, mesh
        has_levels = kind_of(config.data).has_levels
        process, segment = config.process, min(_SEGMENT, num_steps)
        stages = make_stages(schedule, process.prediction, num_steps)
        self._segment = segment
        rows, whole = devices.split_batch(mesh), devices.replicated(mesh)
        # As in `training.state.init_state`: clear of what training and sampling draw.
        key = jax.random.fold_in(jax.random.key(seed), 2**32 - 5)
        k_noise, k_probe = jax.random.split(key)

        def velocity(params, x, i, stage):
            t, of_x, of_prediction = (
                jnp.asarray(table, jnp.float32)[i, stage] for table in stages[:3]
            )
            times = jnp.broadcast_to(t, x.shape[:1])
            output = apply_fn(params, x, times, None, train=False, key=None)
            return of_x * x + of_prediction * prediction_alone(output, x)

        def derivative(params, x, probe, i, stage):
            """The velocity, and its divergence for each example."""
            v, pull_back = jax.vjp(lambda x: velocity(params, x, i, stage), x)

            def along(direction: jax.Array) -> jax.Array:
                (gradient,) = pull_back(direction)
                return (gradient * direction).reshape(len(x), -1).sum(axis=1)

            dimensions = math.prod(x.shape[1:])
            if dimensions > _MAX_EXACT:
                return v, along(probe)
            basis = jnp.eye(dimensions).reshape(dimensions, 1, *x.shape[1:])
            each = jax.vmap(lambda e: along(jnp.broadcast_to(e, x.shape)))(basis)
            return v, each.sum(axis=0)

        def advance(params, x, total, probe, first):
            """`_segment` steps from `first` on."""

            def step(carry, i):
                x, total = carry
                h = jnp.asarray(stages.length, jnp.float32)[jnp.minimum(i, num_steps - 1)]
                h = jnp.where(i < num_steps, h, 0)  # The last segment is filled up.
                i = jnp.minimum(i, num_steps - 1)
                v1, d1 = derivative(params, x, probe, i, 0)
                v2, d2 = derivative(params, x + h / 2 * v1, probe, i, 1)
                v3, d3 = derivative(params, x + h / 2 * v2, probe, i, 1)
                v4, d4 = derivative(params, x + h * v3, probe, i, 2)
                x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
                total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
                return (x, total), None

            return jax.lax.scan(step, (x, total), first + jnp.arange(segment))[0]

        def begin(params, x0, indices):
            """x at t = 0, the probe, and what dequantisation adds, in nats [B]."""

            def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
                noise = jax.random.normal(jax.random.fold_in(k_noise, index), x0.shape[1:])
                of_probe = jax.random.fold_in(k_probe, index)
                return noise, jax.random.rademacher(of_probe, x0.shape[1:], jnp.float32)

            noise, probe = jax.vmap(draw)(indices)
            t = jnp.zeros(x0.shape[:1], jnp.int32)
            added = jnp.zeros(len(x0))
            if has_levels:
                decoder = bound_term(
                    apply_fn,
                    params,
                    schedule,
                    x0,
                    t,
                    noise,
                    prediction_type=process.prediction,
                    variance_type=process.variance,
                )
                variance = 1 - schedule.alphas_cumprod[0]
                log_q = -0.5 * (jnp.square(noise) + math.log(2 * math.pi * variance))
                added = log_q.reshape(len(x0), -1).sum(axis=1)
                added += decoder.bits * math.log(2) * math.prod(x0.shape[1:])
            return q_sample(schedule, x0, t, noise), probe, added

        def log_normal(x):
            log_p = -0.5 * (jnp.square(x) + math.log(2 * math.pi))
            return log_p.reshape(len(x), -1).sum(axis=1)

        self._begin = jax.jit(begin, in_shardings=(whole, rows, rows), out_shardings=rows)
        self._advance = jax.jit(
            advance,
            in_shardings=(whole, rows, rows, rows, whole),
            out_shardings=rows,
            compiler_options=cpu.compiler_options(),
        )
        self._log_normal = jax.jit(log_normal)

    def bits(
        self,
        params: Any,
        x0: np.ndarray,
        indices: np.ndarray,
        size: int,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Bits per dimension of up to `size` examples, as one batch; float64 [N].

        Of images the bound above; of points -log2 of the density of x at t = 0.

        Args:
          params: the weights.
          x0: float32 [N, ...].
          indices: int [N], of these examples in the data set.
          size: of the compiled batch, which is filled up.
          on_progress: is told of the network calls done, and may raise an exception.
        """
        batch = devices.put_filled(self._mesh, np.asarray(x0, np.float32), size)
        where = devices.put_filled(self._mesh, np.asarray(indices, np.int32), size)
        x, probe, added = self._begin(params, batch, where)
        total = jnp.zeros_like(added)
        for first in range(0, self.num_steps, self._segment):
            x, total = jax.block_until_ready(self._advance(params, x, total, probe, first))
            done = min(first + self._segment, self.num_steps)
            on_progress(CALLS_PER_STEP * done)
        nats = added - self._log_normal(x) - total
        dimensions = math.prod(x0.shape[1:])
        return np.asarray(nats, np.float64)[: len(x0)] / (dimensions * math.log(2))
