"""Image sets of tensorflow-datasets: prepared once, then read without TensorFlow.

Preparing downloads a set and writes it as array_record files. It needs TensorFlow and
runs as a process of its own, prepare.py; nothing else imports TensorFlow.
"""

import difflib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.encoded import Progress
from diffusion_jax.data.unreadable import Unreadable, reason
from diffusion_jax.runtime import files as regular
from diffusion_jax.runtime import locks
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import quoted, say, shown

_INSTALL = "pip install tensorflow-datasets tensorflow-cpu importlib_resources"
_CHUNK = 256  # Records that are read at a time.


class _Keys(NamedTuple):
    """Features that are read: the image, and its class, "" if the set has none."""

    image: str
    label: str


class PreparedImages:
    """The images of one split, still encoded.

    Attributes:
      split: its name, in TFDS's notation.
      parts: the stretches of record files that it is made of: (file, begin, end).
    """

    def __init__(self, builder: Any, split: str, keys: _Keys):
        import tensorflow_datasets as tfds

        self.split, self._keys = split, keys
        self.parts = [
            (part.filename, part.skip, part.skip + part.take)
            for part in builder.info.splits[split].file_instructions
        ]
        skip = {keys.image: tfds.decode.SkipDecoding()}
        self._source = builder.as_data_source(split, decoders=skip)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""
        return f"image {index} of {self.split}"

    def read(self, index: int) -> bytes:
        """Return the bytes of the image's file.

        Raises:
          Unreadable: if the record is damaged.
        """
        try:
            return self._source[index][self._keys.image]
        except Exception as error:  # Whatever the record reader raises.
            raise Unreadable(reason(error)) from error

    def labels(self, progress: Progress | None = None, *, skip: bool = False) -> np.ndarray:
        """Return the class of each image, int32; every record is read once.

        Args:
          progress: told of how many are read.
          skip: whether an image whose record is damaged has the label 0, instead of being
            an error.

        Raises:
          Unreadable: naming the image.
        """
        labels = np.zeros(len(self), np.int32)
        for begin in range(0, len(self), _CHUNK):
            some = list(range(begin, min(begin + _CHUNK, len(self))))
            try:
                records = self._source.__getitems__(some)
                labels[some] = [record[self._keys.label] for record in records]
            except Exception:  # One of them is damaged.
                labels[some] = [self._label(i, skip=skip) for i in some]
            if progress:
                progress("reading labels", some[-1] + 1, len(self))
        return labels

    def _label(self, index: int, *, skip: bool) -> int:
        try:
            return int(self._source[index][self._keys.label])
        except Exception as error:
            if skip:
                return 0
            raise Unreadable(f"{self.name(index)}: {reason(error)}") from error


def open_prepared(
    name: str, data_dir: str, split: str, held_out: str, *, prepare: bool
) -> tuple[PreparedImages, PreparedImages | None, int, tuple[str, ...]]:
    """A set by its name, prepared first if it is not.

    Args:
      name: as TFDS writes it: "cifar10", "cifar10:3.0.2", "imagenet_resized/64x64".
      data_dir: where prepared sets lie; "" is TFDS's own place.
      split: what to train on, in TFDS's notation: "train", "train[:90%]".
      held_out: the split to hold out; "" takes validation or test, if the set has one
        that `split` has nothing of.
      prepare: whether to prepare the set if need be, or to refuse.

    Returns:
      The images to train on, those held out (None: the set has no such split), their
      channels (1, 3, or 0 if they vary), and the names of the classes if it has any.

    Raises:
      BadRequest: for an unknown set or split, or one that is not of images; and if it is
        not prepared and cannot be.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise BadRequest(
            f"data.source (tfds:{name}) needs tensorflow-datasets, which is not "
            f"installed: {_INSTALL}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir, prepare)
    features = builder.info.features
    keys = _Keys(
        _first(features, tfds.features.Image, "image"),
        _first(features, tfds.features.ClassLabel, "label"),
    )
    if not keys.image or features[keys.image].np_dtype != np.uint8:
        raise BadRequest(
            f"data.source (tfds:{name}) is not a set of 8-bit images: it has "
            f"{shown(', '.join(features))}"
        )
    train = _open(builder, name, data_dir, "data.split", split, keys)
    other: PreparedImages | None = None
    if held_out:
        other = _open(builder, name, data_dir, "data.held_out", held_out, keys)
        if _overlap(train, other):
            raise BadRequest(
                f"data.held_out ({held_out!r}) and data.split ({split!r}) have examples in "
                "common, which would be trained on"
            )
    else:
        for own in ("validation", "test"):
            if own in builder.info.splits and other is None:
                found = _open(builder, name, data_dir, "data.held_out", own, keys)
                other = None if _overlap(train, found) else found
    class_names = tuple(features[keys.label].names) if keys.label else ()
    return train, other, features[keys.image].shape[-1] or 0, class_names


def _first(features: Any, kind: type, usual: str) -> str:
    """Return the key of the feature of this kind with the usual name, or the first by name.

    The order of features differs from process to process. "" if there is none.
    """
    keys = sorted(key for key, feature in features.items() if type(feature) is kind)
    return usual if usual in keys else (keys or [""])[0]


def _builder(name: str, data_dir: str, prepare: bool) -> Any:
    builder = _find(name, data_dir)
    if builder is None:
        _check_known(name)
        if not prepare:
            raise BadRequest(_not_prepared(name, data_dir))
        _check_has_tensorflow(name, data_dir)
        with locks.in_turn(_folder_of_all(data_dir)):
            builder = _find(name, data_dir)  # Another process may have prepared it.
            if builder is None:
                _prepare(name, data_dir)
                builder = _find(name, data_dir)
        if builder is None:
            raise BadRequest(_not_prepared(name, data_dir))
    return builder


def _folder_of_all(data_dir: str) -> pathlib.Path:
    """Return a folder that all processes see which would prepare the same set."""
    import tensorflow_datasets as tfds

    if re.match(r"\w+://", data_dir):
        return pathlib.Path(tempfile.gettempdir())
    return pathlib.Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))


def _open(
    builder: Any, name: str, data_dir: str, field: str, split: str, keys: _Keys
) -> PreparedImages:
    try:
        opened = PreparedImages(builder, split, keys)
        if len(opened) < 1:
            raise ValueError("no examples")
    except NotImplementedError as error:
        raise BadRequest(
            f"{_named(builder.data_path, data_dir)} was prepared as "
            f"{builder.info.file_format.value}, which only TensorFlow reads; prepare it "
            f"again: {_command(name, 'DIR')}, and train with --config.data.path=DIR"
        ) from error
    except (ValueError, KeyError) as error:
        raise BadRequest(
            f"{field} ({split!r}) is not a split of {name} with examples in it; it has "
            f"{shown(', '.join(builder.info.splits))}"
        ) from error
    for path, *_ in opened.parts:
        try:
            regular.check_regular(path)
        except OSError as error:
            problem = (
                "is missing" if isinstance(error, FileNotFoundError) else reason(error)
            )
            raise BadRequest(
                f"{_named(path, data_dir)} {problem}; remove "
                f"{_named(builder.data_path, data_dir)} and prepare it again"
            ) from error
    return opened


def _overlap(one: PreparedImages, other: PreparedImages) -> bool:
    return any(
        path == their_path and begin < their_end and their_begin < end
        for path, begin, end in one.parts
        for their_path, their_begin, their_end in other.parts
    )


def _find(name: str, data_dir: str) -> Any:
    """The builder of a set that is prepared; None if it is not."""
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(
            name, data_dir=plain_place(data_dir), file_format="array_record"
        )
    except registered.DatasetNotFoundError:
        return None
    except Exception as error:  # A damaged set makes TFDS raise nearly any kind.
        # Only the first of its many lines says what is wrong.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadRequest(
            f"data.source (tfds:{name}) in {_place(data_dir)} cannot be read: "
            f"{_named(first, data_dir)}"
        ) from error


def _check_known(name: str) -> None:
    import tensorflow_datasets as tfds

    base = name.partition(":")[0].partition("/")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        near = difflib.get_close_matches(base, known, n=3, cutoff=0.6)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else "see `tfds.list_builders()`"
        )
        raise BadRequest(f"data.source (tfds:{name}): TFDS has no set {base!r}; {hint}")


def _check_has_tensorflow(name: str, data_dir: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise BadRequest(
            f"{_not_prepared(name, data_dir)} (once; it needs TensorFlow, which is not "
            f"installed: {_INSTALL})"
        )


def _prepare(name: str, data_dir: str) -> None:
    """Run prepare.py in a process of its own.

    Raises:
      BadRequest: if it fails.
    """
    say(f"preparing tfds:{name} in {_place(data_dir)}, once")
    command = [sys.executable, "-m", "diffusion_jax.data.prepare", name, *_folder(data_dir)]
    said = b""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while chunk := process.stderr.read1():  # type: ignore[attr-defined]
            said = (said + chunk)[-4096:]
            if sys.stdout.isatty():  # The progress bars of TFDS.
                sys.stdout.write(_bars(chunk))
                sys.stdout.flush()
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        why = last[0].removeprefix("error: ") if last else f"status {process.returncode}"
        raise BadRequest(
            f"data.source (tfds:{name}) is not prepared in {_place(data_dir)} (data.path), "
            f"and preparing it failed: {shown(why)}; prepare it where there is internet: "
            f"{_command(name, data_dir)}"
        )


def _not_prepared(name: str, data_dir: str) -> str:
    return (
        f"data.source (tfds:{name}) is not prepared: looked in {_place(data_dir)} "
        f"(data.path); prepare it where there is internet: {_command(name, data_dir)}"
    )


def _place(data_dir: str) -> str:
    import tensorflow_datasets as tfds

    return shown(data_dir or tfds.core.constants.DATA_DIR)


def plain_place(data_dir: str) -> str | None:
    """Return a name of a folder that TFDS, which looks for files by patterns, reads right.

    Args:
      data_dir: the folder; "" gives None, and an address (gs://...) itself.
    """
    if not data_dir or re.match(r"\w+://", data_dir):
        return data_dir or None
    return str(regular.plain(pathlib.Path(os.path.expanduser(data_dir))))


def _named(said: object, data_dir: str) -> str:
    """Return what TFDS says, with the place as the user has named it."""
    plain = plain_place(data_dir)
    return shown(str(said).replace(plain, data_dir) if plain else said)


def _bars(chunk: bytes) -> str:
    """Return bars of progress in ASCII, without moves of the cursor except by line ends."""
    text = re.sub(rb"\x1b\[[0-9;]*[A-Za-z]", b"", chunk).decode("ascii", "replace")
    parts = re.split(r"([\r\n])", text.replace("\ufffd", "#"))
    return "".join(part if part in ("\r", "\n") else shown(part) for part in parts)


def _folder(data_dir: str) -> list[str]:
    return [data_dir] if data_dir else []


def _command(name: str, data_dir: str) -> str:
    command = ["python", "-m", "diffusion_jax.data.prepare", name, *_folder(data_dir)]
    return " ".join(map(quoted, command))
