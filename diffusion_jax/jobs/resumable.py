"""A long job's results in parts, so that an interrupted one continues.

While it runs, everything lies in a folder P.partial: what was asked for, and one file for
each part that is finished. The same request continues where it stopped; another one is
refused, and nothing of somebody else is touched.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from diffusion_jax.jobs.shards import Shard, collected, found
from diffusion_jax.runtime import files, first_process, locks, processes
from diffusion_jax.runtime.errors import BadRequest

_REQUEST = "request.json"
_FINISHING = "finishing"  # A mark in the folder: results are being written.


def result_path(out: pathlib.Path, suffix: str) -> pathlib.Path:
    """Return P with the suffix appended, and none replaced: P may hold dots."""
    return out.with_name(out.name + suffix)


def prefix(out: str, name: str) -> pathlib.Path:
    """P of an --out: a folder, for files of this name, or P, or the name of one file.

    Raises:
      BadRequest: if it names nothing.
    """
    path = files.expanded("--out", out)
    if out.endswith("/") or path.is_dir():
        path = path / name
    if path.suffix in (".png", ".npz", ".json", ".csv"):
        path = path.with_suffix("")
    if path.name in ("", ".."):
        raise BadRequest(f"--out {out} names no file; give a prefix, or a folder")
    return path


def check_free(out: pathlib.Path, results: list[pathlib.Path], others: str) -> None:
    """Raise BadRequest if a result exists.

    Args:
      out: P.
      results: files that will be written.
      others: which flags give results another name.
    """
    existing = [path for path in results if path.exists()]
    if existing:
        raise BadRequest(
            f"--out {out}: {existing[0]} exists already; give another {others}, or "
            "--overwrite to replace it"
        )


class Partial:
    """The folder P.partial of a request that is being worked on, or that of a shard."""

    def __init__(
        self,
        out: pathlib.Path,
        request: dict[str, Any],
        shard: Shard | None = None,
        suffix: str = ".partial",
    ):
        """Begin; nothing is written yet.

        Args:
          out: P.
          request: all that decides the results, as JSON can hold it.
          shard: the part of the job that is done here, alone; None is all of it.
          suffix: of the folder's name.
        """
        self.out, self.shard = out, shard
        self.request = json.loads(json.dumps(request))  # As it is read back.
        self.folder = shard.folder(out) if shard else result_path(out, suffix)
        self._of_shards: dict[str, pathlib.Path] = {}

    def merge(self, num: int, with_first: Collection[str] = ()) -> None:
        """Take the `num` batches of all shards, and what the first one has, for its own.

        Raises:
          BadRequest: unless every batch is there once, of this request.
        """
        self._of_shards = collected(self.out, self.request, num, self._is_whole, with_first)

    def claim(self, results: list[pathlib.Path], overwrite: bool, others: str) -> None:
        """Make the folder, or go on with it if it is of the same request.

        Of several processes the first does it.

        Args:
          results: the files that will be written.
          overwrite: replace them, and the beginning of another request.
          others: which flags give results another name, for the error.

        Raises:
          BadRequest: if a result exists, or the folder is of another request.
        """
        with processes.together():
            if first_process.is_here():
                self._claim(results, overwrite, others)

    def check(self, results: list[pathlib.Path], overwrite: bool, others: str) -> None:
        """Refuse what `claim` would refuse; nothing is written. Arguments as there."""
        with processes.together():
            if first_process.is_here() and not self._goes_on(results, overwrite, others):
                self._holds_files(overwrite)

    def _claim(self, results: list[pathlib.Path], overwrite: bool, others: str) -> None:
        if self._goes_on(results, overwrite, others):
            return
        files.delete_unfinished(self.folder)
        files.delete_unfinished(self.folder.parent)
        if self._holds_files(overwrite):
            with locks.held(self.folder, "writing to"):
                files.delete([self.folder])
        self.folder.mkdir(parents=True, exist_ok=True)
        note = json.dumps(self.request, indent=2) + "\n"
        files.write_whole(self.folder / _REQUEST, note)

    def _goes_on(self, results: list[pathlib.Path], overwrite: bool, others: str) -> bool:
        """Return whether the folder is of the same request; refuse results that exist."""
        begun = not overwrite and self._read(self.folder / _REQUEST) == self.request
        if begun and (self.folder / _FINISHING).exists():
            return True  # Some results exist: it was stopped while they were written.
        if not overwrite:
            check_free(self.out, results, others)
        return begun

    def _holds_files(self, overwrite: bool) -> bool:
        """Return whether the folder has to be deleted; refuse where it must not be."""
        # A kill can leave the folder without anything in it.
        if not self.folder.is_dir():
            return False
        found = set(os.listdir(self.folder)) - {".lock", "request.tmp"}
        if all(map(files.is_unfinished, found)):
            return False
        old = self._read(self.folder / _REQUEST)
        if old == self.request and not overwrite:
            return False  # Another process has begun it since `_goes_on`.
        if old is None or not overwrite:
            what = "other files" if old is None else "the beginning of another request"
            hint = "" if old is None else ", or --overwrite to delete it"
            raise BadRequest(
                f"--out {self.out}: {self.folder} holds {what}; give another --out{hint}"
            )
        return True

    def begin(self) -> None:
        """Make the folder; go on if it is of the same request, and else begin again."""
        old = self._read(self.folder / _REQUEST)
        is_other = processes.of_first(old != self.request)
        self.claim([], overwrite=is_other, others="")

    def _read(self, note: pathlib.Path) -> Any:
        try:
            return files.parse_json(files.read_note(note))
        except (OSError, ValueError):
            return None

    def finished(self) -> dict[str, Any] | None:
        """Return the contents of P.json, if it is of this very request."""
        found = self._read(result_path(self.out, ".json"))
        same = isinstance(found, dict) and self.request.items() <= found.items()
        return found if same else None

    def missing(self, num: int) -> range:
        """Return the batches of `num` that are to be done, from the first one not whole."""
        batches = (self.shard or Shard(1, 1)).batches(num)
        done = len(list(itertools.takewhile(self._is_done, batches)))
        return batches[processes.of_first(done) :]

    def _is_done(self, i: int) -> bool:
        return self._is_whole(self.path(f"{i:06d}"))

    def _is_whole(self, path: pathlib.Path) -> bool:
        try:
            files.check_regular(path)
            np.load(path, mmap_mode="r")
        except Exception:  # A damaged file makes NumPy raise nearly any kind.
            return False
        return True

    def save(self, name: str, array: np.ndarray) -> None:
        """Save a part, whole or not at all: a kill leaves no half-written file there."""
        with files.replacing(self.path(name)) as file:
            np.save(file, array)

    def load(self, name: str) -> np.ndarray:
        """Return the array that was saved under this name."""
        with files.open_regular(self.path(name)) as file:
            return np.load(file)

    def path(self, name: str) -> pathlib.Path:
        """Return the path of a part; numbered ones are called 000000, 000001, ..."""
        return self._of_shards.get(name, self.folder / f"{name}.npy")

    def mark_finishing(self) -> None:
        """Mark that results exist from here on, though the request is not done."""
        files.write_whole(self.folder / _FINISHING, "")

    def remove(self) -> None:
        """Delete the folder, once all results are written."""
        # A kill after the first of these leaves what says whose it is.
        files.delete(self.folder.glob("*.npy"))
        files.delete([self.folder])
        if self._of_shards:
            files.delete([shard.folder(self.out) for shard in found(self.out)])

    def said_of_shard(self) -> str:
        """Return what is to be done next, when the batches of a shard are done."""
        return (
            f"part {self.shard} is done, in {self.folder}; when all parts are, the same "
            "command with --merge in place of --shard puts them together"
        )
