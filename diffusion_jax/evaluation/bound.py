"""The variational bound of a network over many images, term by term (DDPM eq. 5).

    -log p(x_0) <= L_T + sum over t of L_{t-1} + L_0,   in bits per dimension

Each image draws one t of each of M strata (timestep_scan.py), whose term counts as often
as there are timesteps in the stratum: an unbiased estimate, and with M = T the whole sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.diffusion.batch import Batch, Draw
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.variational_bound import BoundTerm, bound_term, prior_term
from diffusion_jax.evaluation.timestep_scan import TimestepScan, as_float32, strata
from diffusion_jax.runtime import devices


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


class Bound:
    """The compiled evaluation of one network.

    Attributes:
      num_strata: M, the network calls of each image.
    """

    def __init__(
        self, model: Model, mesh: jax.sharding.Mesh, num_strata: int, *, seed: int = 0
    ):
        """Prepare; the first batch compiles.

        Args:
          model: the network, whose variance is that of the reverse steps.
          mesh: the devices that a batch is divided over.
          num_strata: M, 1 .. T.
          seed: of t and noise.
        """
        process = model.process

        def measure(params: Any, batch: Batch, draw: Draw) -> BoundTerm:
            return bound_term(model, params, batch, draw)

        self._mesh, self.num_strata = mesh, num_strata
        self._scan = TimestepScan(
            measure, process.num_timesteps, mesh, num_strata, seed=seed
        )
        rows = devices.split_batch(mesh)
        self._prior = jax.jit(lambda x0: prior_term(process, x0), in_shardings=(rows,))

    def terms(
        self,
        params: Any,
        batch: Batch,
        indices: np.ndarray,
        size: int,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> BatchTerms:
        """Return the terms of up to `size` images, as one batch.

        Args:
          params: of the network.
          batch: float32 [N, H, W, C], on the grid of 256 levels.
          indices: int [N], of these images in the data set.
          size: of the compiled batch, which is filled up.
          on_progress: is told of the strata done, and may raise an exception.

        Raises:
          ValueError: for images off the grid, for which L_0 is not defined.
        """
        levels = (np.asarray(batch.x, np.float64) + 1) * 127.5
        off = np.abs(levels - np.clip(np.rint(levels), 0, 255)).max()
        if off > 1e-3:
            raise ValueError(
                "the bound needs images on the 256 levels k / 127.5 - 1; these are up to "
                f"{off:.3g} levels off"
            )
        totals, terms, errors = self._scan.run(params, batch, indices, size, on_progress)
        filled = devices.put_filled(self._mesh, as_float32(batch).x, size)
        prior = devices.to_host(self._prior(filled)).astype(np.float64)[: len(totals)]
        return BatchTerms(
            bits=prior + totals,
            prior=float(prior.mean()),
            terms=terms,
            squared_errors=errors,
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
    """Return the standard error of the mean, by the choice of images, t and noise."""
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
