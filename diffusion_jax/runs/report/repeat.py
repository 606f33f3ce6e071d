"""The commands that give a run and its results again."""

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
        for leaf in leaves_of(run.config.sampling):
            value = note.get(leaf.path, leaf.value)
            value = tuple(value) if isinstance(value, list) else value
            if value != leaf.value and leaf.path != "timesteps":
                flags.append((leaf.path, value))
        flags += _of_weights(run, note)
        flags += [("show_chain", True)] if note.get("show_chain") else []
        yield _line("sample", run, flags)


def evaluated(run: Facts) -> Iterator[str]:
    """Return a command for each likelihood of evaluate.py, made from its P.json."""
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
