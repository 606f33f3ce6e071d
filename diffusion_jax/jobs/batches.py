"""A measurement over many examples, batch by batch, which continues where it stopped."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.kinds import Kind
from diffusion_jax.data.sources import Split, fixed_choice
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.jobs.resumable import Partial
from diffusion_jax.runtime import first_process
from diffusion_jax.runtime.interrupts import Stopped, stop_on_interrupt
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.text import say

# measure(batch of N as the network sees it, indices [N], on_progress) -> an array
MeasureBatch = Callable[[Batch, np.ndarray, Callable[[int], None]], np.ndarray]


def batch_size(num: int, most: int, mesh: jax.sharding.Mesh) -> int:
    """Return the size of the fewest batches that hold `num`, `most` each or a few more."""
    size = -(-num // -(-num // most))
    return -(-size // mesh.size) * mesh.size


class Selection(NamedTuple):
    """Examples of a data set that are measured.

    Attributes:
      kind: of the examples.
      split: of the data set.
      chosen: int [N], those of its examples that are measured.
      size: of a batch.
    """

    kind: Kind
    split: Split
    chosen: np.ndarray
    size: int

    @property
    def num_batches(self) -> int:
        """Number of batches, of which the last may not be full."""
        return -(-len(self.chosen) // self.size)


def select(
    kind: Kind, split: Split, num: int, most: int, mesh: jax.sharding.Mesh
) -> Selection:
    """Return a fixed choice of at most `num` examples, in batches of about `most`."""
    chosen = np.sort(fixed_choice(len(split), num))
    return Selection(kind, split, chosen, batch_size(len(chosen), most, mesh))


def over_examples(
    partial: Partial, what: str, examples: Selection, calls: int, measure: MeasureBatch
) -> list[np.ndarray]:
    """Measure batch after batch.

    Args:
      partial: where the parts are kept, claimed and locked; those that are there stand.
      what: the name of the measurement.
      examples: the ones to measure.
      calls: steps of `measure` that it reports for each batch.
      measure: see `MeasureBatch`; the last batch may have fewer examples.

    Returns:
      What `measure` returned, for each batch; [] for a shard, and in all processes
      except the first.

    Raises:
      KeyboardInterrupt: after Ctrl-C, at the next step.
    """
    chosen, size = examples.chosen, examples.size
    num_batches = examples.num_batches
    left = partial.missing(num_batches)
    with stop_on_interrupt(say, sigterm=False) as stop:
        bar = ProgressBar(what, left.stop * calls, "calls", left.start * calls)
        bar.say(
            f"{what}: {len(chosen):,} {examples.kind.name}, {calls:,} network calls each, "
            f"{size} at a time; compiling"
        )

        def progress(i: int) -> Callable[[int], None]:
            def report(done: int) -> None:
                bar.report(i * calls + done)
                stop.check()

            return report

        try:
            for i in left:
                here = chosen[i * size : (i + 1) * size]
                batch = jax.tree.map(jnp.asarray, examples.split[here])
                batch = jax.tree.map(np.asarray, examples.kind.network_batch(batch))
                partial.save(f"{i:06d}", measure(batch, here, progress(i)))
        except Stopped:
            bar.say(
                f"{i} of {num_batches} batches are in {partial.folder}; the same command, "
                "without --overwrite, goes on from there"
            )
            raise KeyboardInterrupt from None
        finally:
            bar.close()
    if partial.shard:
        say(partial.said_of_shard())
        return []
    if not first_process.is_here():
        return []
    return [partial.load(f"{i:06d}") for i in range(num_batches)]


def means(rows: list[np.ndarray], num: int, size: int) -> np.ndarray:
    """The mean over `num` examples of what are means over batches of `size`."""
    counts = [min(size, num - i * size) for i in range(len(rows))]
    return np.average(np.stack(rows), axis=0, weights=counts)
