"""Sources of examples: the data set that a config describes.

A source of examples is anything that has a length and, indexed with an array of n
integers, gives n examples: [n, *shape], in the form of their kind (kinds.py). A NumPy
array is one as it stands; `EncodedExamples`, which read files, are another.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffusion_jax.config import DataConfig
from diffusion_jax.data import chirps, embedded
from diffusion_jax.data.encoded import EncodedExamples, Form, Progress, decode_all
from diffusion_jax.data.example_files import Files, existing, find_files
from diffusion_jax.data.file_format import FileFormat
from diffusion_jax.data.headers import Headers, in_common, read_headers
from diffusion_jax.data.kinds import KINDS, PICTURES, kind_of
from diffusion_jax.data.labels import check_labels, read_label_file
from diffusion_jax.data.low_res import reduced
from diffusion_jax.data.npz import read_npz
from diffusion_jax.data.report import by_suffix, named
from diffusion_jax.data.tfds_sets import PreparedImages, open_prepared
from diffusion_jax.data.unreadable import Unreadable
from diffusion_jax.diffusion.batch import LOW_RES, Batch
from diffusion_jax.runtime.checks import nearest
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.text import say, shown

_TOYS = {
    "swiss_roll": embedded.swiss_roll,
    "two_moons": embedded.two_moons,
    "eight_gaussians": embedded.eight_gaussians,
}
EMBEDDED = ("digits", "moving_digits", "chirps", *_TOYS)
SOURCES = (*EMBEDDED, "folder", "npz")  # Without tfds:NAME.
_TFDS = "tfds:"
_CLIPS_PER_DIGIT = 3
_PIECE = 256  # Examples between two reports of progress.
_LABELS = {"train": "labels", "held_out": "held_out_labels"}


class Source(Protocol):
    """Random access to the examples of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Random access to one split as batches: examples, and what they are conditioned on.

    Attributes:
      source: of the examples.
      cond: arrays by name, with one row for each example of the source.
      low_res: (h, w) of the low-resolution image of each example, `cond["low_res"]`, which
        is made of it; () for none.
    """

    source: Source
    cond: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    low_res: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    def cond_forms(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return an array without rows for each condition of examples of this shape."""
        forms = {name: rows[:0] for name, rows in self.cond.items()}
        if self.low_res:
            forms[LOW_RES] = np.zeros((0, *self.low_res, shape[-1]), np.uint8)
        return forms

    def __getitem__(self, indices: np.ndarray, /) -> Batch:
        """Return the examples at these indices, int [n], as a batch of n rows."""
        if isinstance(self.source, EncodedExamples):
            x, indices = self.source.read(indices)
        else:
            x = self.source[indices]
        cond = {name: rows[indices] for name, rows in self.cond.items()}
        if self.low_res:
            cond[LOW_RES] = reduced(x, self.low_res)
        return Batch(x, cond)


class DataSet(NamedTuple):
    """Two splits of examples.

    Attributes:
      train: what the network learns from.
      held_out: never trained on; its loss is logged.
      shape: of one example.
      labels, held_out_labels: int32, the class of each example, if the source tells.
      class_names: of the classes, if they have names.
      uses_labels: whether batches have the labels as a condition, `cond["label"]`.
      low_res: of `Split`.
    """

    train: Source
    held_out: Source
    shape: tuple[int, ...]
    labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    uses_labels: bool = False
    low_res: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes: that of their names, or the largest label and 1; 0 if none."""
        there = (self.labels, self.held_out_labels)
        largest = [
            int(labels.max()) for labels in there if labels is not None and len(labels)
        ]
        return len(self.class_names) or max(largest, default=-1) + 1

    def split(self, name: str) -> Split:
        """Return the split of this name, "train" or "held_out", for batches.

        This is the one place that decides what examples are conditioned on: the label,
        int32, if `uses_labels`, and the low-resolution image, if `low_res`.
        """
        source = {"train": self.train, "held_out": self.held_out}[name]
        labels = getattr(self, _LABELS[name]) if self.uses_labels else None
        return Split(source, {} if labels is None else {"label": labels}, self.low_res)


def open_data_set(
    config: DataConfig,
    seed: int = 0,
    *,
    prepare: bool = True,
    progress: Progress | None = None,
) -> DataSet:
    """Open the data set of a config; examples in files are found, but not decoded yet.

    Args:
      config: describes the data set, and what its examples become.
      seed: of the points of a toy, of the motion of moving_digits, and of chirps; nothing
        else depends on it.
      prepare: whether to download and prepare a tfds set that is not there.
      progress: told of what takes long.

    Raises:
      BadRequest: naming the field of the config that cannot be met.
    """
    data = _opened(config, seed, prepare=prepare, progress=progress)
    return conditioned(data, config)


def conditioned(data: DataSet, config: DataConfig) -> DataSet:
    """Return a set whose batches have the conditions that a config asks for.

    Raises:
      BadRequest: if the config asks for labels, and the set has none that fit.
    """
    if config.labels:
        check_labels(config, data.labels, data.held_out_labels, data.num_classes)
    return conditioned_as(data, config)


def conditioned_as(data: DataSet, config: DataConfig) -> DataSet:
    """Return a set whose batches have the conditions that a config asks for, unchecked."""
    low_res = config.low_res_shape[:2] if config.low_res else ()
    return data._replace(uses_labels=config.labels, low_res=low_res)


def _opened(
    config: DataConfig, seed: int, *, prepare: bool, progress: Progress | None
) -> DataSet:
    source = config.source
    if config.path and source in EMBEDDED:
        raise BadRequest(
            f"data.path ({config.path!r}) is for sources that read files, which {source} "
            "does not; leave it empty"
        )
    if source == "digits":
        return _digits()
    if source == "moving_digits":
        return _moving_digits(seed)
    if source == "chirps":
        return _chirps(config, seed)
    if source in _TOYS:
        num = embedded.NUM_POINTS
        points = _TOYS[source](num + embedded.NUM_HELD_OUT_POINTS, seed)
        return arrays(points[:num], points[num:])
    if config.origin and not config.path and source in ("folder", "npz"):
        raise BadRequest(
            f"data.path is empty; give it with --config.data.path=PATH. {config.origin}"
        )
    if source == "npz":
        return _npz(config)
    if source != "folder" and not source.startswith(_TFDS):
        known = (*SOURCES, "tfds:cifar10", "tfds:mnist")
        raise BadRequest(f"data.source ({source!r}) is unknown; {nearest(source, known)}")
    return _of_files(config, prepare, progress)


def _of_files(config: DataConfig, prepare: bool, progress: Progress | None) -> DataSet:
    source, kind = config.source, kind_of(config)
    format = kind.file_format(config)
    if format is None:
        raise BadRequest(
            f"data.image_size () is for {kind.name}, but {source} is of {PICTURES.name}; "
            "set it to (height, width)"
        )
    if source != "folder" and kind is not PICTURES:
        raise BadRequest(
            f"data.source ({source!r}) is of {PICTURES.name}, but the config is of "
            f"{kind.name}; {kind.name} are read from --config.data.source=folder"
        )
    if config.channels not in (0, *format.channels):
        known = ", ".join(f"{n} ({word})" for n, word in format.channels.items())
        raise BadRequest(
            f"data.channels ({config.channels}) must be {known} or 0 (as the "
            f"{format.name} have)"
        )
    if source == "folder":
        return _folder(config, format, progress)
    return _tfds(config, format, prepare, progress)


def arrays(
    train: np.ndarray,
    held_out: np.ndarray,
    labels: np.ndarray | None = None,
    held_out_labels: np.ndarray | None = None,
) -> DataSet:
    """A data set of the caller's own.

    Args:
      train, held_out: in the form of one of the `KINDS`.
      labels, held_out_labels: the class of each example, whole numbers from 0 on, [N].

    Raises:
      ValueError: if they are not of such a form, or one is empty.
    """
    for name, array in (("train", train), ("held_out", held_out)):
        if not any(kind.fits(array) for kind in KINDS):
            forms = ", or ".join(kind.form for kind in KINDS)
            raise ValueError(
                f"{name} must be {forms}, and not empty; got {array.dtype} {array.shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite")
    if train.shape[1:] != held_out.shape[1:] or train.dtype != held_out.dtype:
        raise ValueError(
            f"train {train.dtype} {train.shape[1:]} and held_out {held_out.dtype} "
            f"{held_out.shape[1:]} must hold examples of the same kind"
        )
    return DataSet(
        train,
        held_out,
        train.shape[1:],
        _whole_numbers("labels", labels, len(train)),
        _whole_numbers("held_out_labels", held_out_labels, len(held_out)),
    )


def _whole_numbers(name: str, numbers: np.ndarray | None, count: int) -> np.ndarray | None:
    if numbers is None:
        return None
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be {count} whole numbers, one for each example; got "
            f"{numbers.dtype} {numbers.shape}"
        )
    fitting = numbers.astype(np.int32)
    if not np.array_equal(fitting, numbers):
        raise ValueError(f"{name} must fit into int32; number the classes from 0 on")
    return fitting


def _digits() -> DataSet:
    images, labels = embedded.labelled_digits()
    num = embedded.NUM_HELD_OUT_DIGITS
    data = arrays(images[:-num], images[-num:], labels[:-num], labels[-num:])
    return data._replace(class_names=tuple(map(str, range(10))))


def _moving_digits(seed: int) -> DataSet:
    """Return three clips of each digit to train on, and one of each held-out digit."""
    still = _digits()
    train = np.concatenate([still.train] * _CLIPS_PER_DIGIT)
    clips = embedded.moving(np.concatenate([train, still.held_out]), seed)
    assert still.labels is not None
    return still._replace(
        train=clips[: len(train)],
        held_out=clips[len(train) :],
        shape=clips.shape[1:],
        labels=np.tile(still.labels, _CLIPS_PER_DIGIT),
    )


def _chirps(config: DataConfig, seed: int) -> DataSet:
    if config.sound_length and config.sample_rate != chirps.SAMPLE_RATE:
        raise BadRequest(
            f"data.sample_rate ({config.sample_rate}) must be {chirps.SAMPLE_RATE} for "
            "data.source chirps"
        )
    num = chirps.NUM_SOUNDS
    sounds, bands, _ = chirps.chirps(num + chirps.NUM_HELD_OUT, seed)
    data = arrays(sounds[:num], sounds[num:], bands[:num], bands[num:])
    return data._replace(class_names=chirps.BAND_NAMES)


def _folder(config: DataConfig, format: FileFormat, progress: Progress | None) -> DataSet:
    """Open files in a folder or zip; headers are read, so that other files show now."""
    files = find_files(config.path, "data.path", format)
    mine = _usable(files, config, f"data.path ({config.path!r})", progress)
    both = [mine]
    if config.held_out:
        _check_apart(config, "folder or zip")
        other = find_files(config.held_out, "data.held_out", format)
        if other.class_names != files.class_names and not _has_label_file(config):
            raise BadRequest(
                f"data.held_out ({config.held_out!r}) has other classes than data.path: "
                f"{shown(', '.join(other.class_names))}; not "
                f"{shown(', '.join(files.class_names))}"
            )
        where = f"data.held_out ({config.held_out!r})"
        both.append(_usable(other, config, where, progress))
        _check_nothing_in_common(mine, both[1], config)
        train, held_out = mine.indices, both[1].indices
    else:
        other = files
        train, held_out = _split(mine.indices, config.held_out_fraction)
    form = _form(config, format, config.channels or _common_channels(both, format))
    data = DataSet(
        EncodedExamples(files, train, form),
        EncodedExamples(other, held_out, form),
        form.shape,
    )
    labels, class_names = [files.labels, other.labels], files.class_names
    if _has_label_file(config):
        labels, class_names = _labels_of_csv(config, files, other, (train, held_out))
    elif not class_names:
        return data
    return data._replace(
        labels=labels[0][train],
        held_out_labels=labels[1][held_out],
        class_names=class_names,
    )


def _has_label_file(config: DataConfig) -> bool:
    return config.labels and bool(config.label_file)


def _labels_of_csv(
    config: DataConfig, files: Files, other: Files, needed: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return labels of all files of both splits, and the names of the classes.

    Args:
      config: names the CSV.
      files, other: of the examples to train on, and of those held out.
      needed: indices of the files of each split.
    """
    names = [files.names, other.names]
    if config.held_out:
        place, root = map(os.path.expanduser, (config.held_out, config.path))
        away = pathlib.PurePath(os.path.relpath(place, root)).as_posix()
        names[1] = [f"{away}/{name}" for name in other.names]
    return read_label_file(config.label_file, names, needed)


def _usable(
    files: Files, config: DataConfig, where: str, progress: Progress | None
) -> Headers:
    """Return the headers of the files, and report what is left out."""
    headers = read_headers(files, progress)
    if files.others:
        say(
            f"left out of {where}, as they are not {files.format.name}: "
            f"{by_suffix(files.others)} ({named(files.others)})"
        )
    if headers.again:
        say(
            f"left out of {where}, as other names of the same files: "
            f"{len(headers.again):,} ({named(headers.again)})"
        )
    all_bad = not len(headers.indices)
    _report_unreadable(headers.bad, len(files), where, config, all_bad=all_bad)
    return headers


def _common_channels(both: Sequence[Headers], format: FileFormat) -> int:
    """Return the most channels that any example has; report those with fewer."""
    channels = np.concatenate([headers.channels for headers in both])
    least, most = int(channels.min()), int(channels.max())
    fewer = int((channels == least).sum())
    if least < most:
        word = format.channels[least]
        say(
            f"{fewer:,} {word} {format.name} become {format.widened}, as the other "
            f"{len(channels) - fewer:,} are (data.channels={least} makes all of them "
            f"{word})"
        )
    return most


def _report_unreadable(
    bad: Sequence[str], total: int, where: str, config: DataConfig, *, all_bad: bool
) -> None:
    """Name the files that cannot be read.

    Raises:
      BadRequest: unless the config skips them and some can be read.
    """
    if not bad:
        return
    kind = kind_of(config).name
    said = f"{len(bad):,} of {total:,} {kind} cannot be read: {named(bad)}"
    if all_bad:
        raise BadRequest(f"{where}: {said}")
    if config.unreadable == "refuse":
        raise BadRequest(
            f"{where}: {said}; remove them, or skip them with --config.data.unreadable=skip"
        )
    say(f"skipped: {said}")


def _tfds(
    config: DataConfig, format: FileFormat, prepare: bool, progress: Progress | None
) -> DataSet:
    name = config.source.removeprefix(_TFDS)
    train, held_out, channels, class_names = open_prepared(
        name, config.path, config.split, config.held_out, prepare=prepare
    )
    form = _form(config, format, config.channels or channels or 3)
    everything = np.arange(len(train))
    if held_out is None:
        mine, theirs = _split(everything, config.held_out_fraction)
        held_out = train
    else:
        mine, theirs = everything, np.arange(len(held_out))
    data = DataSet(
        EncodedExamples(train, mine, form),
        EncodedExamples(held_out, theirs, form),
        form.shape,
        class_names=class_names,
    )
    if not (config.labels and class_names):
        return data
    labels = _labels_of_records(train, config, progress)
    others = labels
    if held_out is not train:
        others = _labels_of_records(held_out, config, progress)
    return data._replace(labels=labels[mine], held_out_labels=others[theirs])


def _labels_of_records(
    images: PreparedImages, config: DataConfig, progress: Progress | None
) -> np.ndarray:
    try:
        return images.labels(progress, skip=config.unreadable == "skip")
    except Unreadable as error:
        raise BadRequest(
            f"data.source ({config.source!r}): a label cannot be read: {error}; prepare "
            "the set again, or skip such images with --config.data.unreadable=skip"
        ) from error


def _npz(config: DataConfig) -> DataSet:
    """Read an .npz: arr_0 has examples in the form of their kind, and arr_1 labels."""
    examples, labels = read_npz(config.path, "data.path", config)
    if config.held_out:
        _check_apart(config, "file")
        other, other_labels = read_npz(config.held_out, "data.held_out", config)
        known = {sha256([example]) for example in examples}
        if all(sha256([example]) in known for example in other):
            raise BadRequest(
                f"all examples of data.held_out ({config.held_out!r}) are in data.path "
                f"({config.path!r}) too: what is held out would be trained on"
            )
        return arrays(examples, other, labels, other_labels)
    mine, theirs = _split(np.arange(len(examples)), config.held_out_fraction)
    if labels is None:
        return arrays(examples[mine], examples[theirs])
    return arrays(examples[mine], examples[theirs], labels[mine], labels[theirs])


def _check_apart(config: DataConfig, what: str) -> None:
    """Raise BadRequest if what is held out would be trained on, by where it lies."""
    path, held_out = (
        os.path.realpath(existing(getattr(config, field), f"data.{field}", what))
        for field in ("path", "held_out")
    )
    if os.path.commonpath([path, held_out]) in (path, held_out):
        raise BadRequest(
            f"data.held_out ({config.held_out!r}) and data.path ({config.path!r}) must not "
            "contain one another: what is held out would be trained on"
        )


def _check_nothing_in_common(mine: Headers, theirs: Headers, config: DataConfig) -> None:
    common = in_common(mine, theirs)
    if common:
        kind = mine.files.format.name
        raise BadRequest(
            f"data.held_out ({config.held_out!r}) and data.path ({config.path!r}) have "
            f"{len(common):,} {kind} in common, so that what is held out would be trained "
            f"on; remove them from one of the two: {named(common)}"
        )


def _form(config: DataConfig, format: FileFormat, channels: int) -> Form:
    shape = (*config.shape[:-1], channels)
    return Form(format, shape, config.unreadable == "skip")


def _split(indices: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices to train on and those held out, always the same; none is empty."""
    if len(indices) < 2:
        raise BadRequest(
            "data.path has one example; it needs two, one to train on and one to hold out"
        )
    count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
    order = np.random.default_rng(0).permutation(len(indices))
    return indices[np.sort(order[count:])], indices[np.sort(order[:count])]


def fits_in_memory(data: DataSet, config: DataConfig) -> bool:
    """Return whether examples in files, decoded, take at most `config.memory_gib`."""
    splits = (data.train, data.held_out)
    num_bytes = sum(s.num_bytes for s in splits if isinstance(s, EncodedExamples))
    return num_bytes <= config.memory_gib * 2**30


def into_memory(
    data: DataSet, config: DataConfig, progress: Progress | None = None
) -> DataSet:
    """Decode a set's files once, if the examples fit into `config.memory_gib`.

    Raises:
      BadRequest: if some cannot be read, unless the config skips them.
    """
    splits = {"train": data.train, "held_out": data.held_out}
    encoded = {k: s for k, s in splits.items() if isinstance(s, EncodedExamples)}
    if not encoded:
        return data
    total = sum(len(split) for split in encoded.values())
    num_bytes = sum(split.num_bytes for split in encoded.values())
    kind = kind_of(config).name
    if not fits_in_memory(data, config):
        if config.unreadable == "refuse":
            say(
                f"streamed: {total:,} {kind} need {num_bytes / 2**30:,.1f} GiB in memory "
                f"(data.memory_gib is {config.memory_gib:g}), so they are decoded for each "
                "batch: a damaged one stops the run when its batch comes"
            )
        return data
    decoded: dict[str, Any] = {}
    bad, all_bad = [], False
    for name, split in encoded.items():
        decoded[name], which, unread = decode_all(split, progress)
        of_labels = _LABELS[name]
        labels = getattr(data, of_labels)
        if labels is not None:  # Labels of the examples that are there instead.
            decoded[of_labels] = labels[which]
        bad += unread
        all_bad |= len(unread) == len(split)
    _report_unreadable(bad, total, where_from(config), config, all_bad=all_bad)
    return data._replace(**decoded)


def where_from(config: DataConfig) -> str:
    """Return the field that says where the examples are from, for messages."""
    field, value = ("path", config.path) if config.path else ("source", config.source)
    return f"data.{field} ({value!r})"


def loudest(data: DataSet, config: DataConfig, progress: Progress | None = None) -> float:
    """Return the largest |value| of the examples to train on, a pass over those in files.

    Raises:
      BadRequest: naming a file that cannot be read, unless it is skipped.
    """
    source = data.train
    if isinstance(source, np.ndarray):
        return float(np.abs(source).max())
    peak, total = 0.0, len(source)
    for i in range(total):
        try:
            peak = max(peak, float(np.abs(source[np.array([i])]).max()))
        except Unreadable as error:
            _report_unreadable([str(error)], total, "data.path", config, all_bad=False)
        if progress and (i % _PIECE == _PIECE - 1 or i + 1 == total):
            progress("looking for the loudest value", i + 1, total)
    return peak


def fixed_choice(total: int, most: int) -> np.ndarray:
    """Choose at most `most` of `total` examples, always the same ones; int [N].

    They are not the first ones, which may all be of one class.
    """
    chosen = np.arange(total)
    if total > most:
        chosen = np.random.default_rng(0).permutation(chosen)[:most]
    return chosen


def fingerprint(data: DataSet) -> str:
    """Return 16 hexadecimal digits that other examples, or another order of them, change.

    Up to 256 examples of each split count, evenly spaced, with what they are conditioned
    on; whether they are in memory or read from files makes no difference.
    """
    parts: list[Any] = []
    for split in (data.split("train"), data.split("held_out")):
        chosen = np.unique(np.linspace(0, len(split) - 1, 256).round().astype(np.int64))
        parts += _named(len(split), split[chosen])
    return sha256(parts)[:16]


def whole_fingerprint(data: DataSet) -> str:
    """Return a fingerprint of all examples, if all are in memory; else an empty string."""
    parts: list[Any] = []
    for split in (data.split("train"), data.split("held_out")):
        if not isinstance(split.source, np.ndarray):
            return ""
        parts += _named(len(split), Batch(split.source, split.cond))
    return sha256(parts)[:16]


def _named(length: int, batch: Batch) -> list[Any]:
    parts: list[Any] = [f"{length} {batch.x.dtype} {batch.x.shape}", batch.x]
    for name, rows in sorted(batch.cond.items()):
        parts += [f"{name} {rows.dtype} {rows.shape}", rows]
    return parts
