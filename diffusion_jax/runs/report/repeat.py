"""The commands that give a run and its results again."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_jax.runs import events
from diffusion_jax.runs.report import quality
from diffusion_jax.runs.report.facts import Facts
from diffusion_jax.runtime.fields import leaves_of
from diffusion_jax.runtime.text import command, quoted

# What a result of sample.py may depend on, and its P.json does not hold in full.
_NOT_HELD = (
    *("guide", "prior", "label"),
    *("from_image", "inpaint", "encode", "decode", "interpolate"),
)


def given(run: Facts) -> list[str]:
    """Return the commands of the training as they were given, without repetitions."""
    starts = [e for e in run.events if e.kind in (events.STARTED, events.RESUMED)]
    return list(dict.fromkeys(event.text for event in starts if event.text))


def sampled(run: Facts) -> Iterator[str]:
    """Return a command for each result of sample.py, made from its P.json.

    Those of a sweep are left out, and those that also depend on another run, a class or a
    file of their own.
    """
    for result in run.results:
        note = result.note
        is_held = "num" in note and not any(note.get(name) for name in _NOT_HELD)
        if "/" in result.name or not is_held:
            continue
        flags = [("num", note["num"]), ("seed", note.get("seed", 0))]
        flags += [*_of_sampling(run, note), *_of_weights(run, note)]
        flags += [("show_chain", True)] if note.get("show_chain") else []
        yield _line("sample", run, flags)


def evaluated(run: Facts) -> Iterator[str]:
    """Return a command for each result of evaluate.py, made from its P.json.

    Those of quality are left out if they also depend on a file, on classes or on archives.
    """
    for name, note in run.evaluations.items():
        if note.get("kind") == "quality" and _can_be_given(note):
            yield _line("evaluate", run, _of_quality(run, name, note))
    for _, _, note in quality.likelihoods([run]):
        is_flow = "ode_steps" in note
        flags = [("ode" if is_flow else "likelihood", True)]
        flags += [(k, note[k]) for k in ("split", "ode_steps") if k in note]
        for name, flag in (("num_examples", "max_examples"), ("seed", "seed")):
            flags += [(flag, note[name])] if note.get(name) else []
        if not is_flow:
            if note.get("spacing", "all") != "all":
                flags += [(k, note[k]) for k in ("steps", "spacing") if k in note]
            if note.get("num_timesteps_sampled") != note.get("steps"):
                flags.append(("num_timesteps_sampled", note["num_timesteps_sampled"]))
        yield _line("evaluate", run, [*flags, *_of_weights(run, note)])


def _can_be_given(note: Mapping[str, Any]) -> bool:
    network = str(note.get("network"))
    is_known = network == "efficientnet-lite0" or re.fullmatch("pca[0-9]+", network)
    is_drawn = "num" in note and note.get("reference") in ("train", "held_out")
    return bool(is_known and is_drawn and not any(note.get(name) for name in _NOT_HELD))


def _of_quality(run: Facts, name: str, note: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flags = [("quality", True), ("num", note["num"])]
    if note["network"] in name:  # A result of --features has it in its name.
        flags.append(("features", note["network"]))
    flags += [("seed", note["seed"])] if note.get("seed") else []
    seeds = note.get("seeds")
    if isinstance(seeds, list) and len(seeds) > 1:
        flags.append(("seeds", len(seeds)))
    if note["reference"] != "train":
        flags.append(("split", note["reference"]))
    there = run.record.data.get(note["reference"]) if run.record else None
    if note.get("num_reference") != there:
        flags.append(("max_examples", note.get("num_reference")))
    return [*flags, *_of_sampling(run, note), *_of_weights(run, note)]


def _of_sampling(run: Facts, note: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return the fields of the sampling that are not those of the run's config."""
    for leaf in leaves_of(run.config.sampling):
        value = note.get(leaf.path, leaf.value)
        value = tuple(value) if isinstance(value, list) else value
        if value != leaf.value and leaf.path != "timesteps":
            yield leaf.path, value


def _of_weights(run: Facts, note: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flags = []
    if note.get("weights", "ema") != "ema":
        flags.append(("weights", note["weights"]))
    step = note.get("checkpoint_step")
    if step is not None and (run.record is None or step != run.record.step):
        flags.append(("step", step))
    return flags


def _line(name: str, run: Facts, flags: list[tuple[str, Any]]) -> str:
    words = [command(name), f"--workdir {quoted(run.workdir)}"]
    for flag, value in flags:
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no{flag}")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words.append(f"--{flag} {quoted(','.join(map(str, values)))}")
    return " ".join(words)
