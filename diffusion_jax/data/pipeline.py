"""Which examples make up the batch of a step.

The batch of step n is a pure function of (seed, n). So a resumed run needs no iterator
state, and every process can load its own rows of the same global batch.
"""

import functools

import numpy as np

from diffusion_jax.data.sources import Source


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


def load_batches(
    source: Source, batch_size: int, seed: int, step: int, count: int, rows: slice
) -> np.ndarray:
    """`rows` of the batches of `count` steps from `step` on; [count, rows, *shape]."""
    indices = np.stack(
        [
            batch_indices(len(source), batch_size, seed, s)[rows]
            for s in range(step, step + count)
        ]
    )
    examples = source[indices.ravel()]
    return examples.reshape(*indices.shape, *examples.shape[1:])


@functools.lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
