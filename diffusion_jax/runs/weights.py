"""The weights of a run: their kinds, saved to a file, and loaded into another run."""

import json
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

from diffusion_jax.config import MAX_STD, MIN_STD, Config
from diffusion_jax.experiment import build
from diffusion_jax.runs import ema_snapshots, weight_files
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.checkpoints import Checkpoints, abstract, part_name
from diffusion_jax.runs.ema import STD, average_names
from diffusion_jax.runs.record import read_record
from diffusion_jax.runs.weight_files import SUFFIXES, NotWeights, Weights, named, unnamed
from diffusion_jax.runtime import devices, first_process, processes
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.hashing import sha256

HELP = (
    "Weights to use: ema, raw, the rate of an average such as 0.999, or std:LENGTH such as "
    "std:0.08."
)
_MAX_NAMED = 5


def check_kind(flag: str, text: str) -> str:
    """Return "ema", "raw", or the name of an average as it is spelled: "0.999", "std:0.08".

    Raises:
      BadRequest: naming the flag, for another text.
    """
    if text in ("ema", "raw"):
        return text
    known = "ema, raw, the rate of an average such as 0.999, or std:LENGTH"
    try:
        if text.startswith(STD):
            std = float(text.removeprefix(STD))
            if not MIN_STD <= std <= MAX_STD:
                raise BadRequest(
                    f"{flag} {text}: a std must be in {MIN_STD} .. {MAX_STD}, such as "
                    "std:0.08"
                )
            return f"{STD}{std}"
        rate = float(text) + 0.0  # Not -0.0.
    except ValueError as error:
        raise BadRequest(f"{flag} ({text!r}) is unknown; it can be {known}") from error
    if not 0 <= rate < 1:
        raise BadRequest(f"{flag} ({text}): a rate must be at least 0 and below 1")
    return str(rate)


def load_from_run(
    workdir: pathlib.Path,
    config: Config,
    kind: str,
    sharding: jax.sharding.Sharding | None = None,
    *,
    flag: str = "--weights",
    step: int | None = None,
) -> Weights:
    """The weights of a run's newest checkpoint that is whole, or of one step.

    An average that the run has not tracked is rebuilt from its snapshots.

    Args:
      workdir: the run.
      config: its config.
      kind: of `check_kind`.
      sharding: where the arrays are to lie; whole on every device unless given.
      flag: the flag that gave the kind.
      step: of `checkpoint_choice.chosen_step`.

    Raises:
      BadRequest: if it has no checkpoint yet, or no such weights, with what it has; or if
        they are not finite, naming the first.
      RunFailed: if no checkpoint, or a snapshot, can be read.
    """
    nothing = f"the run in {workdir} has no checkpoint yet; train it further with train.py"
    if not run_folder.checkpoints_path(workdir).is_dir():
        record = read_record(workdir)
        if record is not None and record.step:
            raise RunFailed(
                f"{run_folder.checkpoints_path(workdir)} is gone, but run.json says "
                f"that the run has a checkpoint of step {record.step:,}; put it back"
            )
        raise BadRequest(nothing)
    names = average_names(config.ema)
    sharding = sharding or devices.replicated(devices.make_mesh())
    init_fn, _ = build.make_network(config)
    shapes = jax.eval_shape(init_fn, jax.random.key(0))
    if kind not in ("ema", "raw", *names):
        moments = ema_snapshots.moments(workdir)
        if not kind.startswith(STD) or not moments:
            more = (
                f", and by its snapshots every std:X with X in {MIN_STD} .. {MAX_STD}"
                if moments
                else ""
            )
            raise BadRequest(
                f"{flag} {kind}: the run in {workdir} holds ema (which is {names[0]}), "
                f"raw, {', '.join(names)}{more}"
            )
        arrays, rebuilt = ema_snapshots.rebuild(workdir, kind, named(shapes), step)
        params = jax.device_put(unnamed(arrays, shapes), sharding)
        return _finite(Weights(params, kind, rebuilt), f"{flag} {kind} of {workdir}")
    if step is not None:
        run_folder.check_has_step(workdir, step)
    part = part_name(names[0] if kind == "ema" else kind)
    with Checkpoints(workdir, writing=False) as checkpoints:
        found = checkpoints.restore({part: abstract(shapes, sharding)}, step)
    if found is None:
        raise BadRequest(nothing)
    for damaged, why in found.damaged.items():
        warnings.warn(
            f"checkpoint {damaged:,} of {workdir} is damaged ({why}); taking that of step "
            f"{found.step:,}",
            stacklevel=2,
        )
    weights = Weights(found.parts[part], kind, found.step)
    return _finite(weights, f"{flag} {kind} of {workdir}")


def _finite(weights: Weights, where: str) -> Weights:
    """Refuse weights that are not finite: every sample, and every update, would be void.

    Processes that work as one have read the same ones.
    """
    if processes.are_many():
        processes.check_same(f"{where}: what was read", json.dumps(identity_of(weights)))
    arrays = named(weights.params)
    bad = [name for name, x in arrays.items() if not np.isfinite(np.asarray(x)).all()]
    if bad:
        more = f" and {len(bad) - _MAX_NAMED:,} more" if bad[_MAX_NAMED:] else ""
        raise BadRequest(
            f"{where} at step {weights.step:,}: not all numbers are finite in "
            f"{', '.join(bad[:_MAX_NAMED])}{more} (of {len(arrays):,} arrays); take other "
            "weights, or another checkpoint"
        )
    return weights


def save_to_file(
    path: pathlib.Path, weights: Weights, config: Config, *, overwrite: bool = False
) -> None:
    """Write weights to a .safetensors or .npz, whole or not at all.

    Args:
      path: of the file; its suffix decides the format, of `weight_files`.
      weights: what to write.
      config: of the run that they come from.
      overwrite: replace a file that exists.

    Raises:
      BadRequest: for another suffix, or a file that exists.
    """
    if path.suffix not in SUFFIXES:
        raise BadRequest(f"--out {path}: its name must end in {' or '.join(SUFFIXES)}")
    with processes.together():
        if not first_process.is_here():
            return
        if path.is_dir():
            raise BadRequest(f"--out {path} is a folder; name a file")
        if path.exists() and not overwrite:
            raise BadRequest(f"--out {path} exists already; name another, or --overwrite")
        weight_files.write(path, weights, config)


def load_for(
    config: Config, source: pathlib.Path, kind: str, step: int | None = None
) -> Weights:
    """Weights for the network of `config`, from another run or from a file.

    Args:
      config: of the run that is to start with them.
      source: a run folder, or a file of `save_to_file`.
      kind: of `check_kind`, of a run; a file holds one kind.
      step: of `checkpoint_choice.chosen_step`, of a run.

    Raises:
      BadRequest: if there are none, or they do not fit, or are not finite: naming which
        arrays.
    """
    if source.is_dir():
        old = run_folder.read_config(source)
        found = load_from_run(source, old, kind, flag="--init_weights", step=step)
    elif source.suffix in SUFFIXES:
        found = _load_from_file(source)
    else:
        raise BadRequest(
            f"--init_from {source} is neither the folder of a run nor a file that ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    init_fn, _ = build.make_network(config)
    wanted = jax.eval_shape(init_fn, jax.random.key(0))
    theirs, ours = named(found.params), named(wanted)
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
    return _finite(found._replace(params=unnamed(theirs, wanted)), f"--init_from {source}")


def _load_from_file(path: pathlib.Path) -> Weights:
    if not path.exists():
        raise BadRequest(f"--init_from {path}: there is no such file")
    try:
        return weight_files.read(path)
    except NotWeights as error:
        raise BadRequest(
            f"--init_from {path} was not written by export.py: {error}"
        ) from error


def identity_of(weights: Weights) -> dict[str, Any]:
    """Return what tells these weights from others in a result."""
    leaves = map(np.asarray, jax.tree.leaves(weights.params))
    return {
        "checkpoint_step": weights.step,
        "weights": weights.kind,
        "weights_sha256": sha256(leaves),
    }


def _size(array: Any) -> str:
    """Return "float32 [3, 3, 1, 32]", or "missing"."""
    return "missing" if array is None else f"{array.dtype} {list(array.shape)}"
