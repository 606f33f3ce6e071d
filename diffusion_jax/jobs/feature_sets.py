"""Features of sets of examples, in files: batch by batch, and kept for the next time."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation.extractor import BATCH, Extractor
from diffusion_jax.evaluation.feature_networks import FeatureNetwork
from diffusion_jax.jobs.batches import Work, over_batches
from diffusion_jax.jobs.resumable import Partial
from diffusion_jax.runtime import files, first_process, locks, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

_SUFFIX = ".features"


class Parts:
    """Columns of the batches of a folder, each read when it is its turn."""

    def __init__(self, partial: Partial, num: int, columns: slice):
        self._partial, self._num, self._columns = partial, num, columns

    def __iter__(self) -> Iterator[np.ndarray]:
        for i in range(self._num):
            name = f"{i:06d}"
            try:
                yield self._partial.load(name)[:, self._columns]
            except (ValueError, IndexError) as error:
                where = self._partial.path(name)
                raise BadRequest(f"{where} is damaged; delete {where.parent}") from error


def features_of(partial: Partial, num: int, network: FeatureNetwork) -> Parts:
    """Return the features of `num` batches in a folder."""
    return Parts(partial, num, slice(network.num_features))


def logits_of(partial: Partial, num: int, network: FeatureNetwork) -> Parts | None:
    """Return the logits of `num` batches in a folder; None of a network without classes."""
    if not network.num_classes:
        return None
    return Parts(partial, num, slice(network.num_features, None))


class ExampleSet(NamedTuple):
    """Examples whose features are wanted.

    Attributes:
      source: of the examples.
      num: how many of them, at most.
      about: what tells them from others, as JSON can hold it.
      name: in messages.
    """

    source: Source
    num: int
    about: dict[str, Any]
    name: str

    @property
    def order(self) -> np.ndarray:
        """Return which examples are taken, mixed, always in the same order; int [n]."""
        return np.random.default_rng(0).permutation(len(self.source))[: self.num]


def extract(partial: Partial, extractor: Extractor, examples: ExampleSet) -> Parts:
    """Save the features of examples in a folder that is claimed and locked; return them.

    Raises:
      KeyboardInterrupt: after Ctrl-C, at the end of a batch.
    """
    order = examples.order
    num_batches = -(-len(order) // BATCH)

    def measure(i: int, on_progress: Any) -> np.ndarray:
        found = extractor(examples.source[order[i * BATCH : (i + 1) * BATCH]])
        on_progress(1)
        return found

    name = extractor.network.name
    said = f"features: {len(order):,} examples, {examples.name}, by {name}"
    over_batches(partial, Work("features", said, num_batches, 1, "batches"), measure)
    return features_of(partial, num_batches, extractor.network)


def _agree(kept: np.ndarray | None, found: np.ndarray) -> bool:
    """Return whether features are the same, except for what other machines round."""
    if kept is None or kept.shape != found.shape:
        return False
    return np.allclose(kept, found, rtol=1e-3, atol=1e-4)


class Cache:
    """Features of one set of examples that are kept for later evaluations."""

    def __init__(self, folder: pathlib.Path, examples: ExampleSet, network: FeatureNetwork):
        """Begin; nothing is written yet.

        Args:
          folder: that holds such folders.
          examples: the set.
          network: whose features.
        """
        about = {
            "network": network.name,
            "network_sha256": network.sha256,
            "num_examples": len(examples.order),
            **examples.about,
        }
        name = f"{network.name}_{examples.name}_{len(examples.order)}"
        self._examples = examples
        self._partial = Partial(folder / name, about, suffix=_SUFFIX)

    @property
    def num(self) -> int:
        """Number of the examples."""
        return len(self._examples.order)

    def check(self, overwrite: bool) -> None:
        """Raise BadRequest if features of other examples, or another network, are there."""
        with processes.together():
            if first_process.is_here():
                self._check(overwrite)

    def _check(self, overwrite: bool) -> None:
        folder, wanted = self._partial.folder, self._partial.request
        try:
            there = files.parse_json(files.read_note(folder / "request.json"))
        except (OSError, ValueError) as error:
            if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                return
            raise BadRequest(
                f"{folder} has no request.json that can be read, which says whose features "
                "are in it; delete it"
            ) from error
        there = there if isinstance(there, dict) else {}
        for key, value in wanted.items():
            if there.get(key) != value and not overwrite:
                raise BadRequest(
                    f"{folder} has features of another {key} ({there.get(key)!r}, and here "
                    f"{value!r}); delete that folder, or give --overwrite"
                )

    def filled(self, extractor: Extractor) -> Parts:
        """Return the features, which are computed as far as they are not there yet.

        Those of the first examples are computed again: where they are others, as a function
        of the user's own may read files of its own, all are.
        """
        self._partial.begin()
        with contextlib.ExitStack() as held:
            if first_process.is_here():
                held.enter_context(self._lock())
            kept = self.kept(f"{0:06d}")
            if processes.of_first(kept is not None):
                found = extractor(self._examples.source[self._examples.order[:BATCH]])
                if not processes.of_first(_agree(kept, found)):
                    say(f"{self._partial.folder} is not of this network any more; again")
                    files.delete(self._partial.folder.glob("*.npy"))
            return extract(self._partial, extractor, self._examples)

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Return the lock of the folder, which waits for another process and says so."""
        folder = self._partial.folder
        try:
            locks.check_not_locked(folder, "writing to")
        except BadRequest as error:
            say(f"waiting: {error}")
        return locks.in_turn(folder)

    def keep(self, name: str, array: np.ndarray) -> None:
        """Keep an array beside the features."""
        if first_process.is_here():
            self._partial.save(name, array)

    def kept(self, name: str) -> np.ndarray | None:
        """Return an array that was kept; None if it is not there or damaged."""
        try:
            return self._partial.load(name)
        except Exception:  # A damaged file makes NumPy raise nearly any kind.
            return None
