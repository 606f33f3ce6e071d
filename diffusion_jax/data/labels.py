"""Labels of examples: read from a CSV, and checked before they condition a network."""

import csv
import io
import posixpath
import re
from collections.abc import Sequence

import numpy as np

from diffusion_jax.config import MAX_CLASSES, DataConfig
from diffusion_jax.data import formats
from diffusion_jax.data.example_files import existing
from diffusion_jax.data.report import named
from diffusion_jax.data.unreadable import reason
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import shown

_NUMBER = re.compile("[+-]?[0-9]{1,18}")
_REMEDIES = {
    "folder": "put the images of each class into a sub-folder of its own, or name a CSV of "
    "file,label in data.label_file",
    "npz": "save them in the file as arr_1, one whole number for each example",
    "tfds": "it has no feature of the type ClassLabel; take another set",
}


def check_labels(
    config: DataConfig,
    train: np.ndarray | None,
    held_out: np.ndarray | None,
    num_classes: int,
) -> None:
    """Refuse labels that a network cannot be conditioned on.

    Args:
      config: of the data set.
      train, held_out: int, the labels of the two splits; None where there are none.
      num_classes: of the data.

    Raises:
      BadRequest: if a split has none, if one is negative, and for too few or too many.
    """
    source = config.source
    if train is None or held_out is None:
        remedy = _REMEDIES.get(source.partition(":")[0], "take a source that has them")
        where = f"data.source ({source!r})"
        if train is not None and config.held_out:
            where = f"data.held_out ({config.held_out!r})"
        raise BadRequest(
            f"data.labels (True) needs a label for each example, and {where} has none: "
            f"{remedy}; or set data.labels to False"
        )
    for labels in (train, held_out):
        if len(labels) and labels.min() < 0:
            raise BadRequest(
                f"data.labels (True): data.source ({source!r}) has the label "
                f"{labels.min()}; number the classes from 0 on"
            )
    if num_classes < 2 or len(np.unique(train)) == 1:
        raise BadRequest(
            "data.labels (True) needs examples of at least two classes, and those to "
            f"train on of data.source ({source!r}) are of one; set data.labels to False"
        )
    if num_classes > MAX_CLASSES:
        raise BadRequest(
            f"data.labels (True): data.source ({source!r}) has the label "
            f"{num_classes - 1}, and at most {MAX_CLASSES:,} classes are possible; number "
            "the classes from 0 on"
        )
    if 0 < config.num_classes < num_classes:
        raise BadRequest(
            f"data.num_classes ({config.num_classes}) is too small for data.source "
            f"({source!r}), which has {num_classes:,} classes; 0 is as many as the data has"
        )


def read_label_file(
    path: str, names: Sequence[Sequence[str]], needed: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return the labels of images by a CSV: rows of two fields, a file's name and a label.

    The first row is a header if its name is not that of an image. If all labels are whole
    numbers, they are the classes; otherwise the labels, sorted, are names of classes.

    Args:
      path: of the CSV.
      names: of the images of each set, as the CSV has them.
      needed: indices of those images of each set that must have a label.

    Returns:
      The label of each image of each set, int32, 0 where there is none; and the names of
      the classes, if they have names.

    Raises:
      BadRequest: if there is no such file, or its rows do not fit the images.
    """
    where = f"data.label_file ({path!r})"
    label_of = _rows(path, where)
    known = {name for of_set in names for name in of_set}
    unknown = [name for name in label_of if name not in known]
    if unknown:
        raise BadRequest(
            f"{where} has {len(unknown):,} names that are not among the images: "
            f"{named(unknown)}; a name is relative to data.path"
        )
    without = [
        of_set[i]
        for of_set, indices in zip(names, needed, strict=True)
        for i in indices
        if of_set[i] not in label_of
    ]
    if without:
        raise BadRequest(
            f"{where} has no label for {len(without):,} images: {named(without)}"
        )
    number_of, class_names = _numbered(label_of, where)
    labels = [
        np.array([number_of.get(label_of.get(name, ""), 0) for name in of_set], np.int32)
        for of_set in names
    ]
    return labels, class_names


def _rows(path: str, where: str) -> dict[str, str]:
    """Return the label of each name, both as the file has them."""
    file = existing(path, "data.label_file", "file")
    label_of: dict[str, str] = {}
    try:
        # The names of files need not be UTF-8.
        text = files.read_text(file, "surrogateescape").removeprefix("\ufeff")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        for i, row in enumerate(rows):
            line = f"{where}: line {rows.line_num}"
            if not row:
                continue
            if len(row) != 2:
                raise BadRequest(
                    f"{line} has {len(row)} fields, but must have two: file,label"
                )
            if i == 0 and not formats.kind_of_name(row[0]):
                continue
            name, label = posixpath.normpath(row[0]), row[1].strip()
            if not label:
                raise BadRequest(f"{line} has no label for {shown(name)}")
            if label_of.setdefault(name, label) != label:
                raise BadRequest(
                    f"{line} gives {shown(name)} the label {shown(label)}, and a line "
                    f"before it the label {shown(label_of[name])}"
                )
    except (OSError, csv.Error) as error:
        raise BadRequest(f"{where} cannot be read: {reason(error)}") from error
    return label_of


def _numbered(
    label_of: dict[str, str], where: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of each label, and the names of the classes, if they have names."""
    labels = sorted(set(label_of.values()))
    if not all(map(_NUMBER.fullmatch, labels)):
        return {label: i for i, label in enumerate(labels)}, tuple(labels)
    number_of = {label: int(label) for label in labels}
    for label, number in number_of.items():
        if not 0 <= number < MAX_CLASSES:
            raise BadRequest(
                f"{where} has the label {label}; number the classes from 0 on, up to "
                f"{MAX_CLASSES - 1:,}"
            )
    return number_of, ()
