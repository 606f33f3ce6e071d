"""A measurement over many examples, batch by batch, which continues where it stopped."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.kind import Kind
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

    def of_batch(i: int, on_progress: Callable[[int], None]) -> np.ndarray:
        here = chosen[i * size : (i + 1) * size]
        batch = jax.tree.map(jnp.asarray, examples.split[here])
        batch = jax.tree.map(np.asarray, examples.kind.network_batch(batch))
        return measure(batch, here, on_progress)

    said = (
        f"{what}: {len(chosen):,} {examples.kind.name}, {calls:,} network calls each, "
        f"{size} at a time; compiling"
    )
    num_batches = examples.num_batches
    over_batches(partial, Work(what, said, num_batches, calls), of_batch)
    if partial.shard:
        say(partial.said_of_shard())
        return []
    if not first_process.is_here():
        return []
    return [partial.load(f"{i:06d}") for i in range(num_batches)]


class Work(NamedTuple):
    """Batches that are measured one after the other.

    Attributes:
      what: the name of the measurement.
      said: about it, before the first batch.
      num_batches: how many.
      calls: steps that are reported for each.
      unit: the name of a step, in the plural.
    """

    what: str
    said: str
    num_batches: int
    calls: int = 1
    unit: str = "calls"


def over_batches(
    partial: Partial,
    work: Work,
    measure: Callable[[int, Callable[[int], None]], np.ndarray],
) -> None:
    """Save `measure(i, on_progress)` for each batch i that is not there yet.

    Raises:
      KeyboardInterrupt: after Ctrl-C, at the next step.
    """
    calls, left = work.calls, partial.missing(work.num_batches)
    with stop_on_interrupt(say, sigterm=False) as stop:
        bar = ProgressBar(work.what, left.stop * calls, work.unit, left.start * calls)
        if len(left):
            bar.say(work.said)

        def progress(i: int) -> Callable[[int], None]:
            def report(done: int) -> None:
                bar.report(i * calls + done)
                stop.check()

            return report

        try:
            for i in left:
                partial.save(f"{i:06d}", measure(i, progress(i)))
        except Stopped:
            bar.say(
                f"{i} of {work.num_batches} batches are in {partial.folder}; the same "
                "command, without --overwrite, goes on from there"
            )
            raise KeyboardInterrupt from None
        finally:
            bar.close()


def means(rows: list[np.ndarray], num: int, size: int) -> np.ndarray:
    """The mean over `num` examples of what are means over batches of `size`."""
    counts = [min(size, num - i * size) for i in range(len(rows))]
    return np.average(np.stack(rows), axis=0, weights=counts)
