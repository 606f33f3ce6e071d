"""run.json at the start of a run, and when it goes on."""

import importlib.metadata
import pathlib
import platform
from typing import Any

import jax

import diffusion_jax
from diffusion_jax import runs
from diffusion_jax.data import sources
from diffusion_jax.runtime.text import say
from diffusion_jax.training import snapshots
from diffusion_jax.training.plan import Plan
from diffusion_jax.validation import BadRequest

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_examples(
    plan: Plan, workdir: pathlib.Path, old: runs.Record | None
) -> dict[str, Any]:
    """What run.json says of the examples.

    Raises:
      BadRequest: if they are not those that the run was started with.
    """
    config, data = plan.config, plan.data
    about = {
        "source": config.data.source,
        "train": len(data.train),
        "held_out": len(data.held_out),
        "shape": list(data.shape),
        "fingerprint": sources.fingerprint(data),
        "whole_fingerprint": sources.whole_fingerprint(data),
    }
    known = {} if old is None else {k: v for k, v in old.data.items() if v != ""}
    differ = [
        f"{key} {value} -> {about[key]}"
        for key, value in known.items()
        if key in about and about[key] not in ("", value)
    ]
    if differ:
        raise BadRequest(
            f"the examples are not those that the run in {workdir} was started with "
            f"({', '.join(differ)}); give it those back, or another --workdir"
        )
    return about


def new_record(
    plan: Plan, workdir: pathlib.Path, old: runs.Record | None, num_parameters: int
) -> runs.Record:
    """What run.json is to say from now on; of a new run it is written at once.

    Args:
      plan: of the run.
      workdir: its folder.
      old: what run.json says of a run that goes on.
      num_parameters: of the network.

    Raises:
      BadRequest: if the examples are not those that the run was started with.
    """
    config = plan.config
    about = check_examples(plan, workdir, old)
    record = runs.Record(
        format=runs.FORMAT,
        version=diffusion_jax.__version__,
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        data=about,
        parameters=num_parameters,
        started=runs.now(),
        snapshot_every=snapshots.interval(config),
    )
    if old is not None:
        about["whole_fingerprint"] = about["whole_fingerprint"] or old.data.get(
            "whole_fingerprint", ""
        )
        for name in ("started", "step", "wall_time_s", "steps_per_dispatch"):
            setattr(record, name, getattr(old, name))
        if record.snapshot_every and old.snapshot_every:
            record.snapshot_every = old.snapshot_every  # Whatever num_steps is now.
    if config.training.steps_per_dispatch:
        record.steps_per_dispatch = config.training.steps_per_dispatch
    if old is None:
        every = record.snapshot_every
        if every:
            size = snapshots.num_bytes(config, every, num_parameters)
            say(
                f"snapshots of {len(config.ema.stds)} averages every {every:,} steps: "
                f"{size / 2**20:,.0f} MiB in all (--config.ema.snapshots=0 for none)"
            )
        runs.write_record(workdir, record)
    return record
