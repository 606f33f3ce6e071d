"""The variational bound of a network over many images, term by term (DDPM eq. 5).

    -log p(x_0) <= L_T + sum over t of L_{t-1} + L_0,   in bits per dimension

The T timesteps are divided into M strata, and each image draws one t of each, whose term
counts as often as there are timesteps in the stratum: an unbiased estimate, and with M = T
the whole sum. The t and the noise of an image are functions of its number in the data
set, whatever batch it is in and however many devices there are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import parallel
from diffusion_jax.config import Config
from diffusion_jax.likelihood import bound_term, prior_term
from diffusion_jax.schedules import Schedule

_SEGMENT = 50  # Strata of one dispatch; between two a job can tell its progress, or stop.


class BatchTerms(NamedTuple):
    """The terms of some images.

    Attributes:
      bits: float64 [N], the bound of each image in bits per dimension.
      prior: float64, the mean L_T.
      terms: float64 [M], the mean over the images of what each stratum adds to the bound;
        the first is L_0.
      squared_errors: float64 [M], the mean squared error of the predicted x_0.
    """

    bits: np.ndarray
    prior: float
    terms: np.ndarray
    squared_errors: np.ndarray


def strata(num_timesteps: int, num_strata: int) -> np.ndarray:
    """The edges of the strata: stratum j is edges[j] .. edges[j + 1] - 1; int [M + 1].

    Narrow where t is small, because there the terms of the bound are large, and change
    fast: nearly T (j / M)^3, but none empty.
    """
    edges = np.rint(num_timesteps * (np.arange(num_strata + 1) / num_strata) ** 3)
    edges = edges.astype(np.int64)
    for j in range(1, num_strata + 1):
        edges[j] = max(edges[j], edges[j - 1] + 1)
    # What was pushed up at the end makes room from there.
    highest = num_timesteps - np.arange(num_strata + 1)[::-1]
    return np.minimum(edges, highest).astype(np.int32)


class Bound:
    """The compiled evaluation of one network."""

    def __init__(
        self,
        config: Config,
        apply_fn: Callable[..., jax.Array],
        schedule: Schedule,
        mesh: jax.sharding.Mesh,
        num_strata: int,
        *,
        seed: int = 0,
    ):
        """Prepares; the first batch compiles.

        Args:
          config: of the run.
          apply_fn: its network.
          schedule: its noise process.
          mesh: the devices that a batch is divided over.
          num_strata: M, 1 .. T.
          seed: of t and noise.
        """
        self.num_strata, self._mesh = num_strata, mesh
        edges = strata(schedule.num_timesteps, num_strata)
        self._segment = min(_SEGMENT, num_strata)
        rows, whole = parallel.split_batch(mesh), parallel.replicated(mesh)
        # As in `training.state.init_state`: clear of what training and sampling draw.
        key = jax.random.fold_in(jax.random.key(seed), 2**32 - 4)
        k_t, k_noise = jax.random.split(key)

        def advance(params, x0, indices, live, totals, first):
            """`_segment` strata from `first` on."""

            def step(totals: jax.Array, j: jax.Array):
                low = jnp.asarray(edges)[j]
                width = jnp.asarray(np.diff(edges))[j]

                def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
                    of_t, of_noise = (
                        jax.random.fold_in(jax.random.fold_in(k, index), j)
                        for k in (k_t, k_noise)
                    )
                    t = jax.random.randint(of_t, (), low, low + width)
                    return t, jax.random.normal(of_noise, x0.shape[1:])

                t, noise = jax.vmap(draw)(indices)
                term = bound_term(
                    apply_fn,
                    params,
                    schedule,
                    x0,
                    t,
                    noise,
                    prediction_type=config.process.prediction,
                    variance_type=config.process.variance,
                )
                here = jnp.where(j < num_strata, live, 0)  # The last segment is filled up.
                bits = jnp.where(here > 0, width * term.bits, 0)
                return totals + bits, (bits.sum(), (here * term.squared_error).sum())

            return jax.lax.scan(step, totals, first + jnp.arange(self._segment))

        self._advance = jax.jit(
            advance,
            in_shardings=(whole, rows, rows, rows, rows, whole),
            out_shardings=(rows, whole),
            donate_argnums=4,
        )
        self._prior = jax.jit(lambda x0: prior_term(schedule, x0), in_shardings=(rows,))

    def terms(
        self,
        params: Any,
        x0: np.ndarray,
        indices: np.ndarray,
        size: int,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> BatchTerms:
        """The terms of up to `size` images, as one batch.

        Args:
          params: the weights.
          x0: float32 [N, H, W, C], on the grid of 256 levels.
          indices: int [N], of these images in the data set.
          size: of the compiled batch, which is filled up.
          on_progress: is told of the strata done, and may raise an exception.
        """
        num = len(x0)
        filled = np.arange(size) % num
        live = (np.arange(size) < num).astype(np.float32)
        rows = parallel.split_batch(self._mesh)
        batch = jax.device_put(np.asarray(x0, np.float32)[filled], rows)
        where = jax.device_put(np.asarray(indices, np.int32)[filled], rows)
        alive = jax.device_put(live, rows)
        totals = jax.device_put(jnp.zeros(size), rows)  # Donated: not NumPy's memory.
        segments = []
        for first in range(0, self.num_strata, self._segment):
            totals, sums = self._advance(params, batch, where, alive, totals, first)
            segments.append([np.asarray(s, np.float64) for s in sums])
            on_progress(min(first + self._segment, self.num_strata))
        bits, errors = (
            np.concatenate(s)[: self.num_strata] for s in zip(*segments, strict=True)
        )
        prior = np.asarray(self._prior(batch), np.float64)[:num]
        return BatchTerms(
            bits=prior + np.asarray(totals, np.float64)[:num],
            prior=float(prior.mean()),
            terms=bits / num,
            squared_errors=errors / num,
        )


def combined(parts: list[BatchTerms]) -> BatchTerms:
    """The terms of several batches as those of one."""
    counts = np.array([len(part.bits) for part in parts], float)
    shares = counts / counts.sum()

    def mean(field: str) -> Any:
        return sum(s * getattr(p, field) for s, p in zip(shares, parts, strict=True))

    return BatchTerms(
        bits=np.concatenate([part.bits for part in parts]),
        prior=float(mean("prior")),
        terms=mean("terms"),
        squared_errors=mean("squared_errors"),
    )


def standard_error(bits: np.ndarray) -> float:
    """Of the mean over images: of which images there are, and of their t and noise."""
    return float(np.std(bits, ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else np.nan


class Curve(NamedTuple):
    """Rate and distortion as the reverse process goes on (DDPM section 4.3); float64 [M].

    Attributes:
      t: where each stratum begins, falling from near T.
      rate: bits per dimension spent before the reverse step at t.
      rmse: root-mean-square error of the x_0 predicted there, in levels of 0 .. 255.
    """

    t: np.ndarray
    rate: np.ndarray
    rmse: np.ndarray


def rate_distortion(terms: BatchTerms, num_timesteps: int) -> Curve:
    """The curve of these terms."""
    spent = np.concatenate([[0.0], np.cumsum(terms.terms[::-1])])[:-1]
    return Curve(
        t=strata(num_timesteps, len(terms.terms))[:-1][::-1],
        rate=terms.prior + spent,
        rmse=127.5 * np.sqrt(terms.squared_errors[::-1]),
    )
