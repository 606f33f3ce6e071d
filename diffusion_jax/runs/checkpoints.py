"""Checkpoints of a run: the newest few and the best, each with checksums of its parts.

A checkpoint is saved as parts by name, such as "params" and "ema 0.9999", so that a reader
need not load what it has no use for. With each part goes a checksum that the device has
computed of its bits: damage that the file format does not notice shows when it is read.
"""

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import FORMAT, Record, read_record
from diffusion_jax.runtime import files, first_process, processes
from diffusion_jax.runtime.errors import RunFailed
from diffusion_jax.runtime.text import reason, say

_EMA = "ema "  # The name of an average's part begins with this.


class Restored(NamedTuple):
    """Parts of a checkpoint.

    Attributes:
      step: of the checkpoint.
      parts: trees by name.
      damaged: newer checkpoints that cannot be read, each with the reason.
    """

    step: int
    parts: dict[str, Any]
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints/ folder of a run, as a context: saving goes on in the background."""

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 2,
        *,
        writing: bool,
    ):
        """Open the folder.

        Args:
          workdir: the run.
          keep: how many of the newest to keep; the one with the lowest loss of those that
            `score` was told of is kept as well.
          writing: True for the one trainer of the run: it makes the folder, and clears
            what a killed one left half written. A reader must not, lest it clears what
            is being written.
        """
        self._losses: dict[int, float] = {}
        self._workdir, self._keep, self._writing = workdir, keep, writing
        self._saving: int | None = None
        if writing:
            run_folder.checkpoints_path(workdir).mkdir(parents=True, exist_ok=True)
        self._checkpointer = self._open()

    def _open(self) -> Any:
        return ocp.training.Checkpointer(
            # Orbax and TensorStore take some characters of a path for patterns.
            files.plain(run_folder.checkpoints_path(self._workdir)),
            preservation_policy=_NewestAndBest(self._keep, self._losses),
            cleanup_tmp_directories=self._writing,
        )

    def save(self, state: Any) -> None:
        """Save in the background; the arrays of `state` may be donated right after.

        Raises:
          RunFailed: if this checkpoint, or the one before, cannot be written.
        """
        self.wait()
        step, parts = int(state.step), parts_of(state)
        checksums = {name: _checksum(part) for name, part in parts.items()}
        tree = {"parts": parts, "checksums": checksums}
        with self._writes(step):
            self._checkpointer.save_async(step, tree, force=True)
        self._saving = step

    def score(self, step: int, loss: float) -> None:
        """Tell by which loss the checkpoint of a step is compared with the others."""
        self._losses[step] = loss

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
          RunFailed: if it cannot be written.
        """
        if self._saving is not None:
            step, self._saving = self._saving, None
            with self._writes(step):
                self._checkpointer.wait()

    @contextlib.contextmanager
    def _writes(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises nearly any kind.
            older = [s for s in self.steps if s != step]
            left = f"that of step {max(older):,} is whole" if older else "there is no other"
            raise RunFailed(
                f"the checkpoint of step {step:,} cannot be written "
                f"({_reason(error)}); {left}; when that is fixed, give the same command "
                "again"
            ) from error

    @property
    def is_saving(self) -> bool:
        """Return whether what was saved may not be on disk yet."""
        return self._checkpointer.is_saving_in_progress()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of all checkpoints on disk, rising."""
        return tuple(sorted(c.step for c in self._checkpointer.checkpoints))

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest loss; None if `score` was told of none."""
        return _best(self.steps, self._losses)

    def restore(self, like: Mapping[str, Any], step: int | None = None) -> Restored | None:
        """Parts of the newest checkpoint that is whole; None if there are no checkpoints.

        Args:
          like: for each part `jax.ShapeDtypeStruct`s with shardings, as of
            `abstract`.
          step: of the only checkpoint that will do, instead of the newest.

        Raises:
          RunFailed: if none can be read, or it is of another version and lacks a part.
            Nothing is changed then.
          BadRequest: if run.json is not what a run has written.
        """
        failed: dict[int, str] = {}
        record = read_record(self._workdir)
        for tried in processes.of_first(self.steps)[::-1] if step is None else [step]:
            try:
                parts = self._load_together(tried, like, record)
            except _Unreadable as error:
                failed[tried] = str(error)
                continue
            # Newer checkpoints are at fault only if they fail where this one does not.
            for newer in list(failed):
                with contextlib.suppress(_Unreadable):
                    tried, parts = newer, self._load_together(newer, like, record)
                    break
            damaged = {s: why for s, why in failed.items() if s > tried}
            return Restored(tried, parts, damaged)
        if not failed:
            return None
        if step is not None:
            others = ", ".join(f"{s:,}" for s in self.steps if s != step) or "none"
            raise RunFailed(
                f"{self._folder(step)} cannot be read ({failed[step]}); other checkpoints: "
                f"{others}"
            )
        each = "; ".join(f"{self._folder(s)}: {why}" for s, why in failed.items())
        raise RunFailed(
            f"no checkpoint of {self._workdir} can be read ({each}); nothing was changed; "
            "restore one from a backup, or begin again in another --workdir"
        )

    def read_back(self, step: int, like: Mapping[str, Any]) -> None:
        """Read a checkpoint that was just saved as a resume would.

        Args:
          step: of the checkpoint.
          like: as of `restore`, all of its parts.

        Raises:
          RunFailed: if it cannot be read, or a checksum is wrong.
        """
        if not self._folder(step).is_dir():
            raise RunFailed(
                f"{self._folder(step)} was written and is gone: the run was moved or "
                "deleted while it was trained"
            )
        record = read_record(self._workdir)
        try:
            for name, part in like.items():  # One after the other takes less memory.
                self._load(step, {name: part}, record)
        except _Unreadable as error:
            raise RunFailed(
                f"the checkpoint of step {step:,} was written, but cannot be read back "
                f"({error}); the run stops while there is little to lose"
            ) from error

    def set_aside(self, damaged: Mapping[int, str]) -> None:
        """Move checkpoints that cannot be read out of the way, and report them."""
        with processes.together():
            if first_process.is_here():
                self._move_aside(damaged)
        if damaged:
            self._checkpointer.close()
            self._checkpointer = self._open()

    def _move_aside(self, damaged: Mapping[int, str]) -> None:
        for step, why in damaged.items():
            aside = run_folder.damaged_path(self._workdir)
            aside.mkdir(exist_ok=True)
            target, again = aside / str(step), 1
            while target.exists():
                again += 1
                target = aside / f"{step}_{again}"
            self._folder(step).rename(target)
            say(f"warning: checkpoint {step:,} is damaged ({why}); it is now {target}")

    def _folder(self, step: int) -> pathlib.Path:
        return run_folder.checkpoints_path(self._workdir) / str(step)

    def _load_together(
        self, step: int, like: Mapping[str, Any], record: Record | None
    ) -> dict[str, Any]:
        """Load, or fail in all processes: each reads what lies on its own devices."""
        parts, failed = dict[str, Any](), None
        try:
            parts = self._load(step, like, record)
        except _Unreadable as error:
            failed = error
        if processes.most(failed is not None):
            raise failed or _Unreadable("another process cannot read its part")
        return parts

    def _load(
        self, step: int, like: Mapping[str, Any], record: Record | None
    ) -> dict[str, Any]:
        where = _of_numbers(jax.tree.leaves(dict(like))[0].sharding)
        number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=where)
        step_of = jax.ShapeDtypeStruct((), jnp.int32, sharding=number.sharding)
        parts = {"step": step_of, **like}
        wanted = {"parts": parts, "checksums": dict.fromkeys(parts, number)}
        context = ocp.Context()
        # Parts that are not named here are not read; Orbax would refuse to leave them out.
        context.pytree.loading.partial_load = True
        try:
            self._check_files(step)
            if record is None or record.format != FORMAT:
                self._check_parts(step, like, record)
            with context:
                found = self._checkpointer.load(step, wanted)
            sums = {name: _checksum(part) for name, part in found["parts"].items()}
            wrong = [n for n, s in found["checksums"].items() if int(s) != int(sums[n])]
            other = [
                name for name in like if _form(found["parts"][name]) != _form(like[name])
            ]
        except RunFailed:
            raise
        except Exception as error:  # Orbax raises nearly any kind.
            cause = _first_cause(error)
            if _is_of_the_system(cause):
                raise RunFailed(
                    f"{self._folder(step)} cannot be read ({_reason(cause)}), though the "
                    "checkpoint may be whole; nothing was changed; when that is fixed, "
                    "give the same command again"
                ) from error
            raise _Unreadable(_reason(cause)) from error
        if other:  # Orbax gives what the file says that it is, as bits without a type.
            raise _Unreadable(f"another type or shape of {', '.join(other)}")
        if wrong:
            raise _Unreadable(f"wrong checksum of {', '.join(wrong)}")
        if int(found["parts"]["step"]) != step:
            raise _Unreadable(f"it is that of step {int(found['parts']['step']):,}")
        return {name: found["parts"][name] for name in like}

    def _check_files(self, step: int) -> None:
        """Refuse a named pipe among the files, which the reader would wait for."""
        for folder, _, names in os.walk(self._folder(step)):
            for name in names:
                files.check_regular(os.path.join(folder, name))

    def _check_parts(
        self, step: int, like: Mapping[str, Any], record: Record | None
    ) -> None:
        """Tell a checkpoint of an older version from a damaged one."""
        there = self._checkpointer.metadata(step).metadata
        lacking = set(like) - set(there.get("parts", {}))
        version = record.version if record else "before 0.1.0"
        if lacking:
            raise RunFailed(
                f"{self._folder(step)} was written by another version of diffusion_jax "
                f"({version}) and has no {', '.join(sorted(lacking))}, but "
                f"{', '.join(sorted(there))}; train it again, or use that version"
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *exception: object) -> None:
        """Wait until all that was saved is on disk, unless something else failed."""
        if kind is None:
            self.wait()
        with contextlib.suppress(Exception):
            self._checkpointer.close()


class _Unreadable(Exception):
    """A checkpoint that cannot be read by its own fault; str() is the reason."""


class _NewestAndBest:
    """The choice of checkpoints that stay: Orbax asks at each save."""

    def __init__(self, keep: int, losses: Mapping[int, float]):
        self._keep, self._losses = keep, losses

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        del context
        steps = [c.step for c in checkpoints]
        stays = {*sorted(steps)[-self._keep :], _best(steps, self._losses)}
        return [step in stays for step in steps]


def _best(steps: Sequence[int], losses: Mapping[int, float]) -> int | None:
    scored = [step for step in steps if step in losses]
    return min(scored, key=lambda step: losses[step], default=None)


def parts_of(state: Any) -> dict[str, Any]:
    """The parts of a state by name, without one that this run has no use for."""
    fields = {name: part for name, part in state._asdict().items() if jax.tree.leaves(part)}
    averages = {f"{_EMA}{name}": tree for name, tree in fields.pop("emas").items()}
    return fields | averages


def with_parts(state: Any, parts: Mapping[str, Any]) -> Any:
    """The state with these parts in place of its own."""
    fields = {n: part for n, part in parts.items() if not n.startswith(_EMA)}
    emas = {n.removeprefix(_EMA): p for n, p in parts.items() if n.startswith(_EMA)}
    return state._replace(**fields, emas=emas)


def part_name(kind: str) -> str:
    """The part that holds these weights: "raw", or the name of an average."""
    return "params" if kind == "raw" else f"{_EMA}{kind}"


def abstract(tree: Any, sharding: Any) -> Any:
    """Shapes and types of a tree, each array to lie as `sharding` says: one, or a tree."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        sharding,
    )


def _of_numbers(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Return the sharding of a number on the devices of an array's."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        whole = jax.sharding.PartitionSpec()
        return jax.sharding.NamedSharding(sharding.mesh, whole)
    return sharding


def _form(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


@jax.jit
def _checksum(tree: Any) -> jax.Array:
    """uint32: the bits of each array, as 32-bit words, times 1, 3, 5, ..., added up.

    The arithmetic is in whole numbers, the same on every device. No change of one word
    goes unnoticed, because the factors are odd; one in 2^32 of the others may.
    """
    total, before = jnp.uint32(0), 0
    for words in map(_words, jax.tree.leaves(tree)):
        # The places of words that lie on several devices, without gathering those.
        place = jnp.full(words.shape, before, jnp.uint32)
        stride = 1
        for axis in reversed(range(words.ndim)):
            count = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            place += jnp.uint32(stride % 2**32) * count
            stride *= words.shape[axis]
        total += (words * (2 * place + 1)).sum(dtype=jnp.uint32)
        before += words.size
    return total


def _words(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype.itemsize != 4:
        raise TypeError(f"{leaf.dtype} is not of 32 bits, as all in a state is")
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)


_NOT_OF_THE_FILE = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    *(errno.ESTALE, errno.EBUSY, errno.ETIMEDOUT, errno.ENOBUFS, errno.EINTR),
)
# Messages of TensorStore where a file may be whole.
_OF_THE_SYSTEM = re.compile(
    r"(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|UNAUTHENTICATED|ABORTED|CANCELLED"
    r"|DEADLINE_EXCEEDED): "
)


def _is_of_the_system(error: BaseException) -> bool:
    """Return whether a read failed for want of permission, memory or open files."""
    if isinstance(error, OSError):
        return error.errno in _NOT_OF_THE_FILE
    of_device = isinstance(error, MemoryError | jax.errors.JaxRuntimeError)
    return of_device or _OF_THE_SYSTEM.match(str(error)) is not None


def _first_cause(error: BaseException) -> BaseException:
    """Return the first of a chain of errors, which Orbax hides below its own."""
    seen = [error]
    while (cause := seen[-1].__cause__ or seen[-1].__context__) and cause not in seen:
        seen.append(cause)
    return seen[-1]


# Places in TensorStore's own source, and its arguments.
_DETAILS = re.compile(r" \[(source locations|tensorstore_spec)=.*")


def _reason(error: BaseException) -> str:
    """Return an error's own words, whose cause stands at their end, in at most 200."""
    said = _DETAILS.sub("", reason(error))
    if isinstance(error, files.NotRegular):
        return f"{error.filename} {error.strerror}"
    if len(said) > 200:
        said = f"{said[:80]} ... {said[-115:]}"
    return f"{type(error).__name__}: {said}" if str(error) else said
