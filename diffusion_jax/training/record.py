"""run.json at the start of a run, and when it goes on."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

import diffusion_jax
from diffusion_jax import runs
from diffusion_jax.config import Config
from diffusion_jax.data import sources
from diffusion_jax.runtime.text import say
from diffusion_jax.training import snapshots
from diffusion_jax.training.plan import Plan
from diffusion_jax.validation import BadRequest

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_examples(
    plan: Plan, workdir: pathlib.Path, old: runs.Record | None
) -> dict[str, Any]:
    """Return what tells the examples of a run from others, as run.json has it.

    Raises:
      BadRequest: if they are not those that the run was started with.
    """
    data = plan.data
    about = {
        "source": plan.config.data.source,
        "train": len(data.train),
        "held_out": len(data.held_out),
        "shape": list(data.shape),
        "fingerprint": sources.fingerprint(data),
        "whole_fingerprint": sources.whole_fingerprint(data),
    }
    differ = _differences({} if old is None else old.data, about)
    if differ:
        raise BadRequest(
            f"the examples are not those that the run in {workdir} was started with "
            f"({', '.join(differ)}); give it those back, or take another run"
        )
    return about


def new_record(
    plan: Plan, workdir: pathlib.Path, old: runs.Record | None, num_parameters: int
) -> runs.Record:
    """Return the new contents of run.json; of a new run it is written at once.

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


def _differences(known: dict[str, Any], about: dict[str, Any]) -> list[str]:
    return [
        f"{key} {known[key]} -> {value}"
        for key, value in about.items()
        if "" not in (value, known.get(key, "")) and known[key] != value
    ]


def check_data_there(workdir: pathlib.Path, config: Config) -> None:
    """Raise BadRequest if what a run was trained on is not where its config says."""
    source = config.data.source
    for field, path in (("path", config.data.path), ("held_out", config.data.held_out)):
        of_files = source in ("folder", "npz") or (field == "path" and ":" in source)
        if of_files and path and not os.path.exists(os.path.expanduser(path)):
            raise BadRequest(
                f"data.{field} ({path!r}) is not there; where that of the run in {workdir} "
                f"is now, --data_{field} says"
            )


def check_same_data(workdir: pathlib.Path, plan: Plan) -> None:
    """Refuse other examples than a run was trained on; keep the place of the same ones.

    What was held out of others may have been trained on. If `plan.config` says another
    place than the run's own config, that one says it from now on.

    Raises:
      BadRequest: naming what differs.
    """
    record = runs.read_record(workdir)
    check_examples(plan, workdir, record)
    config, data = runs.read_config(workdir), plan.config.data
    place = data.path, data.held_out
    if record is None or place == (config.data.path, config.data.held_out):
        return
    config.data.path, config.data.held_out = place
    try:
        runs.write_config(workdir, config)
    except OSError as error:
        say(f"where the data are now is not kept in {workdir}: {error.strerror}")
    else:
        say(f"the config of {workdir} says from now on where the data are")
