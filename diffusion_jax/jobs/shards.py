"""Parts of a long job that are done alone, on any machines, and put together later.

A sample, or the figures of an example, depend on the checkpoint, the seed and the index
alone, so that shard 3 of 16 is independent of the others. It leaves its batches in a folder
P.shard_3_of_16; `collected` finds every batch of a request once, or names what is missing.
"""

import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from diffusion_jax.runtime import files, locks
from diffusion_jax.runtime.errors import BadRequest

SHARD_HELP = "Do only part K/N of the work, such as 3/16; --merge puts all parts together."
MERGE_HELP = "Put the parts of --shard together, and compute nothing else."
# Keys of a request that may differ between shards: where they were made, and the whole
# config, in which the length of the training or the place of the data may have changed.
_FREE = ("run", "devices", "config_sha256")


class Shard(NamedTuple):
    """Part `part` of `of` parts of a job, 1 .. `of`."""

    part: int
    of: int

    def batches(self, num: int) -> range:
        """Return which of `num` batches are in this part: every batch is in one."""
        first, end = ((i * num) // self.of for i in (self.part - 1, self.part))
        return range(first, end)

    def folder(self, out: pathlib.Path) -> pathlib.Path:
        """Return the folder of this part of P."""
        return out.with_name(f"{out.name}.shard_{self.part}_of_{self.of}")

    def __str__(self) -> str:
        return f"{self.part}/{self.of}"


def parse(text: str | None, *, merge: bool) -> Shard | None:
    """Return the Shard that --shard 3/16 names; None without the flag.

    Raises:
      BadRequest: for other text, a part that there is not, or --merge beside it.
    """
    if text is None:
        return None
    if merge:
        raise BadRequest(f"--shard {text} and --merge: give one of them")
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None:
        raise BadRequest(f"--shard {text} must be K/N, such as 3/16 for part 3 of 16")
    shard = Shard(*map(int, match.groups()))
    if not 1 <= shard.part <= shard.of:
        raise BadRequest(f"--shard {text}: K must be in 1 .. N, and N at least 1")
    return shard


def collected(
    out: pathlib.Path,
    request: dict[str, Any],
    num: int,
    is_whole: Callable[[pathlib.Path], bool],
    with_first: Collection[str] = (),
) -> dict[str, pathlib.Path]:
    """Return the file of each of `num` batches, and of what comes with the first one.

    Args:
      out: P.
      request: what every shard must have been asked for.
      num: batches of the whole request.
      is_whole: whether a file can be read.
      with_first: names of further files, in the shard that has the first batch.

    Raises:
      BadRequest: for shards that lack, overlap, are not finished, are still worked on, or
        are of another request.
    """
    shards = found(out)
    (count,) = {shard.of for shard in shards}
    lacking = [
        Shard(i, count) for i in range(1, count + 1) if Shard(i, count) not in shards
    ]
    if lacking:
        named = ", ".join(map(str, lacking[:5])) + ", ..." * (len(lacking) > 5)
        raise BadRequest(f"--merge: no part {named} of {out} is there; run --shard for it")
    parts: dict[str, pathlib.Path] = {}
    for shard in shards:
        folder = shard.folder(out)
        locks.check_not_locked(folder, "writing to")
        _check_request(folder, request)
        there = {path.stem: path for path in folder.glob("*.npy")}
        batches = shard.batches(num)
        wanted = {f"{i:06d}" for i in batches} | set(with_first if 0 in batches else ())
        odd = sorted(name for name in there.keys() - wanted if name.isdecimal())
        if odd:
            raise BadRequest(
                f"--merge: {there[odd[0]]} is of another part than {shard}; delete "
                f"{folder} and run --shard {shard} again"
            )
        left = [name for name in wanted if name not in there or not is_whole(there[name])]
        if left:
            raise BadRequest(
                f"--merge: {folder} lacks {len(left)} of {len(wanted)} files "
                f"({min(left)}.npy); run --shard {shard} again, which goes on"
            )
        parts |= {name: there[name] for name in wanted}
    return parts


def found(out: pathlib.Path) -> list[Shard]:
    """Return the shards of P that are there, one set of them.

    Raises:
      BadRequest: for none, or for more than one set.
    """
    pattern = re.compile(re.escape(out.name) + r"\.shard_([0-9]{1,9})_of_([0-9]{1,9})")
    matches = map(pattern.fullmatch, (p.name for p in out.parent.glob("*")))
    shards = sorted(Shard(*map(int, m.groups())) for m in matches if m)
    counts = sorted({shard.of for shard in shards})
    if not counts:
        raise BadRequest(
            f"--merge: there are no parts of {out}; make them with --shard 1/N to N/N in "
            "place of --merge"
        )
    if len(counts) > 1:
        said = " and of ".join(map(str, counts))
        raise BadRequest(f"--merge: parts of {said} of {out} are there; keep one set")
    return shards


def _check_request(folder: pathlib.Path, request: dict[str, Any]) -> None:
    try:
        there = files.parse_json(files.read_note(folder / "request.json"))
    except (OSError, ValueError) as error:
        raise BadRequest(
            f"--merge: {folder} has no request.json that can be read"
        ) from error
    there = there if isinstance(there, dict) else {}
    for name in sorted((request.keys() | there.keys()) - set(_FREE)):
        if request.get(name) != there.get(name):
            raise BadRequest(
                f"--merge: {folder} is of another request: its {name} is "
                f"{there.get(name)!r}, and here it is {request.get(name)!r}"
            )
