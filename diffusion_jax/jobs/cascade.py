"""Cascades of runs (Ho et al. 2022): each refines the samples of the one before it.

A cascade is a sequence of ordinary requests for samples. Each stage writes its results
before the next one begins, so the same command goes on where it stopped.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.experiment import build_sampler
from diffusion_jax.jobs import field_values, labels, sample, sweep
from diffusion_jax.jobs.origins import Upscale
from diffusion_jax.jobs.resumable import check_free, result_path
from diffusion_jax.runs import checkpoint_choice
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import class_counts, class_names
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

HELP = (
    "Runs A,B,...: each refines the samples of the one before it, as its data.low_res "
    'says. A run may have values of its own: "A steps=50 guidance=2,B steps=20 '
    'aug_level=0.1". Fields: ' + ", ".join(sweep.FIELDS) + "."
)


class Stage(NamedTuple):
    """A run of a cascade, with `sampling` as wanted, and the step of its checkpoint."""

    workdir: pathlib.Path
    config: Config
    step: int | None


def parse(text: str, given: Mapping[str, Any], step: str) -> list[Stage]:
    """Return the stages that --cascade names.

    Args:
      text: of the flag, see `HELP`.
      given: other flags, values by their field of SamplingConfig, for every stage.
      step: of --step, for every stage.

    Raises:
      BadRequest: for a run that is none, or stages that do not meet.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or not all(parts):
        raise BadRequest(
            f"--cascade {text!r}: give two runs or more, such as runs/a,runs/b"
        )
    stages = [_stage(part, given, step) for part in parts]
    _check_meet(stages)
    return stages


def _stage(part: str, given: Mapping[str, Any], step: str) -> Stage:
    name, _, own = part.partition(" ")
    if "=" in name:
        raise BadRequest(
            f"--cascade {part!r}: must be a run, or a run and one value for each of some "
            'fields, such as "runs/a steps=50 guidance=2"'
        )
    workdir = files.expanded("--cascade", name)
    config = copy.deepcopy(run_folder.read_config(workdir))
    values = dict(given)
    if not config.data.low_res:
        values.pop("aug_level", None)  # A flag is for the stages that refine.
    if own.strip():
        found = field_values.parse("--cascade", own, sweep.FIELDS)
        values |= {field: listed[0] for field, listed in found.items()}
    try:
        build_sampler.change(config, values)
        labels.check_guidance(config)
    except BadRequest as error:
        raise BadRequest(f"--cascade {name}: {error}") from error
    return Stage(workdir, config, checkpoint_choice.chosen_step(workdir, config, step))


def _check_meet(stages: Sequence[Stage]) -> None:
    """Refuse stages whose sizes, channels or classes do not meet."""
    first = stages[0]
    if first.config.data.low_res:
        raise BadRequest(
            f"--cascade {first.workdir}: the first run refines smaller images; begin with "
            f"one that draws {_named(first.config.data.low_res_shape, first)}"
        )
    for before, stage in zip(stages, stages[1:], strict=False):
        mine, given = stage.config.data, before.config.data
        if not mine.low_res:
            raise BadRequest(
                f"--cascade {stage.workdir}: the run was trained without data.low_res, and "
                "refines no image"
            )
        if mine.low_res_shape != given.shape:
            raise BadRequest(
                f"--cascade: {before.workdir} draws {_named(given.shape, before)}, but "
                f"{stage.workdir} refines {_named(mine.low_res_shape, stage)}; take runs "
                "that meet (data.image_size of one is data.low_res of the next)"
            )
        if mine.labels:
            _check_classes(before, stage)


def _named(shape: tuple[int, ...], stage: Stage) -> str:
    *size, channels = shape
    plural = "" if channels == 1 else "s"
    name = kind_of(stage.config.data).name
    return f"{name} of {'x'.join(map(str, size))} and {channels} channel{plural}"


def _check_classes(before: Stage, stage: Stage) -> None:
    if not before.config.data.labels:
        raise BadRequest(
            f"--cascade: {stage.workdir} has classes, and {before.workdir} draws images of "
            "none"
        )
    folders = before.workdir, stage.workdir
    for what, values in (
        ("names", [class_names(folder) for folder in folders]),
        ("shares", [class_counts(folder) for folder in folders]),
    ):
        if values[0] != values[1]:
            raise BadRequest(
                f"--cascade: {folders[0]} and {folders[1]} have other {what} of classes, "
                "so that the class of a sample would not be the same in both"
            )


def draw(
    stages: Sequence[Stage],
    request: sample.Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
) -> bool:
    """Draw the samples of every stage.

    Args:
      stages: of `parse`.
      request: which samples; its seed is that of all stages, whose noise differs.
      out: P of the last stage's files, as of `sample.generate`; stage i of those before it
        has P_stage<i>.
      overwrite: replace files that exist; otherwise stages that are done stay.

    Returns:
      Whether Ctrl-C came while the last batch was drawn, when there was nothing to stop.

    Raises:
      BadRequest: before anything is compiled or written.
      RunFailed: for samples that are not finite.
      KeyboardInterrupt: after Ctrl-C, at the end of a batch, which is kept.
    """
    last = len(stages) - 1
    outs = [result_path(out, f"_stage{i + 1}") for i in range(last)] + [out]
    results = sample.results_of(stages[-1].workdir, out, request, stages[-1].config)
    # While they are written, the folder of the parts is still there.
    if not overwrite and not result_path(out, ".partial").exists():
        check_free(out, results, "--out or --seed")
    stopping = False
    for i, (stage, own) in enumerate(zip(stages, outs, strict=True)):
        say(f"stage {i + 1} of {len(stages)}: {stage.workdir}")
        wanted = dataclasses.replace(request, step=stage.step, stage=i)
        if i:
            wanted = dataclasses.replace(wanted, origin=_samples_of(outs[i - 1]))
        if not stage.config.data.labels:
            wanted = dataclasses.replace(wanted, label=())
        stopping = sample.generate(
            stage.workdir,
            stage.config,
            wanted,
            out=own,
            overwrite=overwrite,
            keep_finished=i < last,
        )
        if stopping and i < last:
            say("the same command, without --overwrite, goes on with the next stage")
            raise KeyboardInterrupt
    return stopping


def _samples_of(out: pathlib.Path) -> Upscale:
    path = result_path(out, ".npz")
    with files.open_regular(path) as file, np.load(file) as archive:
        return Upscale("cascade", str(path), archive["arr_0"])
