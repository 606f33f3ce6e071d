"""The examples that make up the batch of a step, and their loading in time.

The batch of step n is a pure function of (seed, n), however it is loaded. So a resumed
run needs no iterator state, and every process loads its own rows of one global batch.
"""

import collections
import functools
import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

import numpy as np
from absl import flags

from diffusion_jax.data.encoded import EncodedExamples
from diffusion_jax.data.sources import Split
from diffusion_jax.data.unreadable import Unreadable
from diffusion_jax.diffusion.batch import Batch


def batch_indices(num_examples: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The examples of the global batch of one step; int64 [batch_size].

    All examples are run through in a new random order each epoch; a batch may take its
    first rows from the end of one epoch and the others from the next.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs = positions // num_examples
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        order = _epoch_order(num_examples, seed, int(epoch))
        indices[rows] = order[positions[rows] % num_examples]
    return indices


@functools.lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


class StepBatches:
    """`rows` of the global batch of each step, as a Batch of arrays [rows, ...]."""

    def __init__(self, split: Split, batch_size: int, seed: int, rows: np.ndarray):
        self.split, self.batch_size, self.seed, self.rows = split, batch_size, seed, rows

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, step: int) -> Batch:
        indices = batch_indices(len(self.split), self.batch_size, self.seed, step)
        return self.split[indices[self.rows]]


class WorkerDied(Exception):
    """A process that reads ahead and has ended; str() is what is known."""


class Loader:
    """The batches of the steps to come, up to `most` steps at a time, as a context.

    What lies in memory is gathered when it is asked for. `EncodedExamples` are read
    ahead by Grain, in worker processes or, with `num_workers` 0, in threads.
    """

    def __init__(self, batches: StepBatches, start: int, most: int, num_workers: int = 0):
        """Start reading ahead from the step `start` on."""
        self._batches, self._most, self._first = batches, most, start
        self._ready: collections.deque[Batch] = collections.deque()
        self._ahead: Any = None
        if isinstance(batches.split.source, EncodedExamples):
            self._ahead = _read_ahead(batches, start, most, num_workers)

    def load(self, step: int, count: int) -> Batch:
        """Return the batches of `count` steps from `step` on, as arrays [most, rows, ...].

        Args:
          step: that of the last call, or after it by what was loaded then.
          count: at most `most`; what comes after these is 0.

        Raises:
          Unreadable: naming a file that cannot be read.
          WorkerDied: if a worker process was killed.
        """
        while self._first < step:
            self._ready.popleft()
            self._first += 1
        while len(self._ready) < count:
            following = self._first + len(self._ready)
            self._ready.append(self._next() if self._ahead else self._batches[following])
        batches = list(self._ready)[:count]
        cond = {
            name: self._stacked([batch.cond[name] for batch in batches])
            for name in batches[0].cond
        }
        return Batch(self._stacked([batch.x for batch in batches]), cond)

    def go_on_alone(self) -> None:
        """Read what comes next in this process: the workers are gone."""
        self._ahead = None

    def _stacked(self, arrays: list[np.ndarray]) -> np.ndarray:
        stacked = np.zeros((self._most, *arrays[0].shape), arrays[0].dtype)
        np.stack(arrays, out=stacked[: len(arrays)])
        return stacked

    def _next(self) -> Batch:
        # The workers, started by the first of these, inherit that SIGINT is blocked: what
        # Ctrl-C means is the trainer's to decide.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return next(self._ahead)
        except Unreadable as error:
            failure: Exception = Unreadable(str(error))
        except RuntimeError as error:  # What Grain says of a worker that is gone.
            failure = WorkerDied(str(error).partition(". ")[0])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Raised again, without the frames that hold on to the workers.
        raise failure

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the workers."""
        if self._ahead:
            self._ahead.close()
            # What they shared is given back when it is collected; a process that leaves
            # in haste would not do it.
            self._ahead = None
            gc.collect()


def _read_ahead(batches: StepBatches, start: int, count: int, num_workers: int) -> Any:
    # Imported where it is used: it takes half a second.
    import grain

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags; a notebook parses none.
    threads = 2 if num_workers else 8
    steps = grain.MapDataset.source(batches).slice(slice(start, None))
    ahead = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * count)
    )
    if num_workers:
        # The tracker, if a worker's semaphores start it, unblocks SIGINT for the worker.
        resource_tracker.ensure_running()
        # Batches come through pipes: a killed run would leave shared memory behind.
        piped = grain.experimental.DatasetOptions(min_shm_size=2**62)
        ahead = grain.experimental.WithOptionsIterDataset(ahead, piped)
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=max(2, count)
            ),
            worker_init_fn=_in_worker,
        )
    return iter(ahead)


def _in_worker(index: int, count: int) -> None:
    """Let no worker outlive the trainer, not even if that is killed."""
    del index, count
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
