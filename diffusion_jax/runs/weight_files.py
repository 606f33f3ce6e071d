"""Weights as files that other programs read: a flat list of named arrays and a note.

Each array is named by its place in the network, "down0_res0.conv1.kernel"; kernels are
[height, width, in, out]. The note has kind, step, config, and a hash of the arrays.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
from safetensors.numpy import save

from diffusion_jax.config import Config, to_json
from diffusion_jax.runtime import files
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.text import reason

SUFFIXES = (".safetensors", ".npz")
_ABOUT = "about"  # The name of the note.


class Weights(NamedTuple):
    """A network's parameters, and what is known of them.

    Attributes:
      params: float32 tree, or arrays by name.
      kind: "ema" (the main moving average), "raw" (what the optimiser moved), or the name
        of another average.
      step: train steps that they have seen.
    """

    params: Any
    kind: str
    step: int


class NotWeights(Exception):
    """A file that holds no weights, or damaged ones; str() says why."""


def named(params: Any) -> dict[str, Any]:
    """Each array by its place in the tree; the order is that of the tree's leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in leaves}


def unnamed(arrays: dict[str, Any], like: Any) -> Any:
    """The inverse of `named`, with the structure of `like`."""
    leaves = [arrays[name] for name in named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def write(path: pathlib.Path, weights: Weights, config: Config) -> None:
    """Write a .safetensors or .npz, by the suffix of `path`, whole or not at all."""
    arrays: dict[str, Any] = {n: np.asarray(x) for n, x in named(weights.params).items()}
    about = {
        "kind": weights.kind,
        "step": str(weights.step),
        "config": to_json(config),
        "sha256": _hash(arrays),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        if path.suffix == ".npz":
            arrays[_ABOUT] = np.array(json.dumps(about))
            np.savez(file, **arrays)
        else:
            # One entry: the order of several, and so the bytes, would be random. It is
            # written here, so that a full disk is the same error as everywhere.
            file.write(save(arrays, metadata={_ABOUT: json.dumps(about)}))


def read(path: pathlib.Path) -> Weights:
    """The arrays of a file by name.

    Raises:
      NotWeights: if it is not a whole file of `write`.
    """
    try:
        if path.suffix == ".npz":
            with files.open_regular(path) as content, np.load(content) as file:
                arrays = {name: file[name] for name in file}
            about = json.loads(str(arrays.pop(_ABOUT)))
        else:
            files.check_regular(path)
            with safetensors.safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})[_ABOUT])
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        found = Weights(arrays, about["kind"], int(about["step"]))
        whole = about.get("sha256") in (None, _hash(arrays))
    except Exception as error:  # Whatever the readers make of foreign or damaged bytes.
        raise NotWeights(f"{type(error).__name__}: {reason(error)}") from error
    if not whole:
        raise NotWeights("its arrays have changed since it was written")
    return found


def _hash(arrays: dict[str, Any]) -> str:
    return sha256(part for name in sorted(arrays) for part in (name, arrays[name]))
