"""Evaluation of the quality that the flags of evaluate.py ask for, taken together."""

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.config import Config
from diffusion_jax.experiment import build_sampler
from diffusion_jax.jobs import labels, quality, sample, sweep
from diffusion_jax.jobs.resumable import prefix
from diffusion_jax.runs import checkpoint_choice
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import class_names
from diffusion_jax.runtime import files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say

NUM = 2000
OWN = ("features", "inception", "num", "seeds", "samples", "reference", "sweep", "label")
HELP = {
    "num": f"Samples of --quality; default {NUM:,}.",
    "seeds": (
        "Sets of samples of --quality, of this many seeds from --seed on; their spread is "
        "then the error bar."
    ),
    "samples": "An .npz, a folder or a zip of samples, in place of the run's own.",
    "reference": "An .npz, a folder or a zip of examples, in place of the run's data.",
}
_MOST_SEEDS = 100


class Given(NamedTuple):
    """Flags that are given.

    Attributes:
      own: by their names, those of `OWN`; None where one is not given.
      sampling: values by their field of SamplingConfig.
      drawn: which samples of the run, before labels and step are known.
      step: of `checkpoint_choice.check_step`.
      split: of --split; None if it is not given.
      max_examples: of the reference; 0 is all.
      out: of --out.
    """

    own: Mapping[str, Any]
    sampling: Mapping[str, Any]
    drawn: sample.Request
    step: str
    split: str | None
    max_examples: int
    out: str | None


def evaluate(
    given: Given,
    workdir: pathlib.Path | None,
    config: Config | None,
    overwrite: bool,
) -> None:
    """Do what the flags ask for.

    Args:
      given: the flags.
      workdir, config: the run; None where two archives are compared.
      overwrite: replace files that exist.

    Raises:
      BadRequest, RunFailed, KeyboardInterrupt: as `quality.compare`.
    """
    own = given.own
    _check(given)
    settings, drawn = list[sweep.Setting](), given.drawn
    if config is not None and workdir is not None:
        if own["sweep"] is not None:
            settings = sweep.parse(own["sweep"], config, given.sampling)
        else:
            build_sampler.change(config, dict(given.sampling))
        drawn = _of_run(given, workdir, config, [s.config for s in settings] or [config])
    inception = own["inception"] and files.expanded("--inception", own["inception"])
    request = quality.Request(
        features=own["features"] or "",
        inception=inception,
        samples=own["samples"] or "",
        reference=own["reference"] or "",
        split=given.split or "train",
        max_examples=given.max_examples,
        num_seeds=own["seeds"] or 1,
        drawn=drawn,
    )
    titles = [setting.title for setting in settings] or [""]
    configs: list[Config | None] = [s.config for s in settings] or [config]
    outs = [_out(given, workdir, each, request) for each in configs]
    folder = run_folder.evaluations_path(workdir) if workdir else outs[0].parent
    comparison = quality.prepare(
        workdir, config, request, folder=folder / "features", overwrite=overwrite
    )
    jobs = [
        quality.compare(comparison, each, request, out=out, overwrite=overwrite)
        for each, out in zip(configs, outs, strict=True)
    ]
    for title, job in zip(titles, jobs, strict=True):  # All of them were checked.
        if title:
            say(f"setting {title}")
        job()


def _check(given: Given) -> None:
    """Refuse flags that do not fit together, and numbers out of range."""
    own = given.own
    for name, most in (("num", 2**31 - 1), ("seeds", _MOST_SEEDS)):
        if own[name] is not None and not 1 <= own[name] <= most:
            raise BadRequest(f"--{name} {own[name]} must be in 1 .. {most:,}")
    if given.drawn.seed + (own["seeds"] or 1) > 2**31:
        raise BadRequest(
            f"--seeds {own['seeds']}: the last seed would exceed 2,147,483,647"
        )
    if own["samples"] is not None:
        others = [n for n in ("num", "seeds", "sweep", "label") if own[n] is not None]
        others += ["step"] * (given.step != checkpoint_choice.NEWEST)
        others += ["weights"] * (given.drawn.weights != "ema")
        others += ["seed"] * (given.drawn.seed != 0)
        for name in (*others, *given.sampling):
            raise BadRequest(
                f"--{name} and --samples: those samples are drawn already; give one of them"
            )
    if own["reference"] is not None and given.split is not None:
        raise BadRequest(f"--split {given.split} and --reference: give one of them")


def _of_run(
    given: Given, workdir: pathlib.Path, config: Config, configs: Sequence[Config]
) -> sample.Request:
    """Return which samples of a run are drawn."""
    names = class_names(workdir) if config.data.labels else []
    label = labels.parse(given.own["label"], config, names)
    for each in configs:
        labels.check_guidance(each)
        labels.check_not_dropped(given.own["label"], each)
    if label:
        warnings.warn(
            f"--label {given.own['label']}: the reference has the examples of all classes",
            stacklevel=2,
        )
    step = checkpoint_choice.chosen_step(workdir, config, given.step)
    return dataclasses.replace(given.drawn, label=label, step=step)


def _out(
    given: Given, workdir: pathlib.Path | None, config: Config | None, request: Any
) -> pathlib.Path:
    """Return P: in the run unless --out is a folder or a prefix."""
    own, drawn = given.own, request.drawn
    parts = ["quality"]
    if request.samples or config is None:
        parts.append(pathlib.Path(request.samples).stem)
    else:
        parts.append(build_sampler.short_name(config.sampling))
        parts.append(f"seed{drawn.seed}")
        parts += [f"to{drawn.seed + request.num_seeds - 1}"] * (request.num_seeds > 1)
        parts += [drawn.weights.replace(":", "")] * (drawn.weights != "ema")
        parts += [f"step{drawn.step}"] * (drawn.step is not None)
        parts += [f"label{own['label']}"] * (own["label"] is not None)
        parts.append(f"num{drawn.num}")
    if request.features or request.inception:
        parts.append(pathlib.Path(request.features).stem or "inception")
    if request.reference:
        parts.append(f"to_{pathlib.Path(request.reference).stem}")
    elif request.split != "train":
        parts.append(request.split)
    parts += [f"of{request.max_examples}"] * bool(request.max_examples)
    name = re.sub(r"[^\w.,-]", "-", "_".join(parts))
    if given.out is not None:
        own_name = given.own["sweep"] is not None
        return prefix(f"{given.out}/" if own_name else given.out, name)
    if workdir is not None:
        return run_folder.evaluations_path(workdir) / name
    return pathlib.Path(name)
