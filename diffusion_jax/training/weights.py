"""Weights on their own: out of a run, into files that other programs read, and in again."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from diffusion_jax import experiment, runs
from diffusion_jax.config import Config, to_json
from diffusion_jax.training.checkpoints import Checkpoints, abstract_state
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import init_state
from diffusion_jax.validation import BadRequest

KINDS = ("ema", "raw")
SUFFIXES = (".safetensors", ".npz")
_ABOUT = "about"  # The name of the note in an .npz.
_MAX_NAMED = 5


class Weights(NamedTuple):
    """A network's parameters, and what is known of them.

    Attributes:
      params: float32 tree.
      kind: "ema" (the moving average) or "raw" (what the optimiser moved).
      step: train steps that they have seen.
    """

    params: Any
    kind: str
    step: int


def load_from_run(
    workdir: pathlib.Path,
    config: Config,
    kind: str,
    sharding: jax.sharding.Sharding | None = None,
) -> Weights:
    """The weights of a run's newest checkpoint.

    Args:
      workdir: the run.
      config: its config.
      kind: "ema" or "raw".
      sharding: where the arrays are to lie; the first device unless given.

    Raises:
      BadRequest: if it has no checkpoint yet.
      RunFailed: if the checkpoint cannot be read.
    """
    folder = runs.checkpoints_path(workdir)
    nothing = f"the run in {workdir} has no checkpoint yet; train it further with train.py"
    if not folder.is_dir():
        raise BadRequest(nothing)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    init_fn, _ = experiment.make_network(config)
    tx = make_optimizer(config.optimizer, config.training.num_steps)
    shapes = jax.eval_shape(lambda: init_state(init_fn, tx, config))
    with Checkpoints(folder, writing=False) as checkpoints:
        step = checkpoints.latest_step
        if step is None:
            raise BadRequest(nothing)
        state = checkpoints.restore(step, abstract_state(shapes, sharding))
    params = state.ema_params if kind == "ema" else state.params
    return Weights(params, kind, step)


def save_to_file(
    path: pathlib.Path, weights: Weights, config: Config, *, overwrite: bool = False
) -> None:
    """Writes weights to a .safetensors or .npz, whole or not at all.

    Each array is named by its place in the network, "down0_res0.conv1.kernel";
    kernels are [height, width, in, out]. A note says kind, step and config.

    Args:
      path: of the file; its suffix decides the format.
      weights: what to write.
      config: of the run that they come from.
      overwrite: replace a file that exists.

    Raises:
      BadRequest: for another suffix, or a file that exists.
    """
    if path.suffix not in SUFFIXES:
        raise BadRequest(f"--out {path}: its name must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise BadRequest(f"--out {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise BadRequest(f"--out {path} exists already; name another, or --overwrite")
    arrays: dict[str, Any] = {n: np.asarray(x) for n, x in _named(weights.params).items()}
    about = {"kind": weights.kind, "step": str(weights.step), "config": to_json(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".npz":
            with unfinished.open("wb") as file:
                arrays[_ABOUT] = np.array(json.dumps(about))
                np.savez(file, **arrays)
        else:
            save_file(arrays, unfinished, metadata={"format": "np", **about})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_for(config: Config, source: pathlib.Path, kind: str) -> Weights:
    """Weights for the network of `config`, from another run or from a file.

    Args:
      config: of the run that is to start with them.
      source: a run folder, or a file of `save_to_file`.
      kind: "ema" or "raw" of a run; a file holds one kind.

    Raises:
      BadRequest: if there are none, or they do not fit: naming which arrays do not.
    """
    if source.is_dir():
        found = load_from_run(source, runs.read_config(source), kind)
    elif source.suffix in SUFFIXES:
        found = _load_from_file(source)
    else:
        raise BadRequest(
            f"--init_from {source} is neither the folder of a run nor a file that ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    init_fn, _ = experiment.make_network(config)
    wanted = jax.eval_shape(init_fn, jax.random.key(0))
    theirs, ours = _named(found.params), _named(wanted)
    problems = [
        f"{name} is {_size(theirs.get(name))} there and {_size(ours.get(name))} here"
        for name in sorted(theirs.keys() | ours.keys())
        if _size(theirs.get(name)) != _size(ours.get(name))
    ]
    if problems:
        more = f" and {len(problems) - _MAX_NAMED:,} more" if problems[_MAX_NAMED:] else ""
        raise BadRequest(
            f"--init_from {source} is of another network: "
            f"{'; '.join(problems[:_MAX_NAMED])}{more}"
        )
    leaves = [theirs[name] for name in ours]
    params = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
    return found._replace(params=params)


def _load_from_file(path: pathlib.Path) -> Weights:
    if not path.is_file():
        raise BadRequest(f"--init_from {path}: there is no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
            about = json.loads(str(arrays.pop(_ABOUT)))
        else:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        kind, step = about["kind"], int(about["step"])
    except Exception as error:  # Whatever the readers make of foreign or damaged bytes.
        raise BadRequest(
            f"--init_from {path} is not a file of export.py: {type(error).__name__}: "
            f"{error}"
        ) from error
    return Weights(arrays, kind, step)


def _named(params: Any) -> dict[str, Any]:
    """Each array by its place in the tree; the order is that of the tree's leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in leaves}


def _size(array: Any) -> str:
    """ "float32 [3, 3, 1, 32]", or "missing"."""
    return "missing" if array is None else f"{array.dtype} {list(array.shape)}"
