"""Samples from a trained run, written batch by batch.

While it runs, everything lies in a folder P.partial: the request and one file for each
finished batch. The noise of a sample depends on the seed and its index alone, so the same
request continues where it stopped; at the end the parts become P.npz, P.png and P.json.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
import zipfile
from typing import Any

import jax
import numpy as np

from diffusion_jax import experiment, parallel, runs
from diffusion_jax.config import BadRequest, Config, to_json
from diffusion_jax.data.transforms import to_examples
from diffusion_jax.reporting import pictures
from diffusion_jax.reporting.progress import ProgressBar
from diffusion_jax.samplers.chain import even_frames
from diffusion_jax.training.checkpoints import Checkpoints, abstract_state
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import init_state

WEIGHTS = ("ema", "raw")
_STRIP_FRAMES = 10
_FRAMES = 3 * (_STRIP_FRAMES - 1) + 1  # Of the animation; every third is in the strip.
_MAX_PICTURED = 1024  # Images in the grid; the .npz holds all.


def generate(
    workdir: pathlib.Path,
    config: Config,
    *,
    num: int,
    seed: int = 0,
    out: pathlib.Path,
    weights: str = "ema",
    show_chain: bool = False,
    overwrite: bool = False,
) -> None:
    """Draws `num` samples with the newest checkpoint and writes them to `out`.*.

    Args:
      workdir: the run.
      config: its config, with `sampling` as wanted.
      num: how many samples, from index 0 of the seed on.
      seed: of the noise.
      out: P of P.npz (arr_0: uint8 [num, H, W, C], or float32 points), P.png (the
        first 1,024 as a grid) and P.json (how they were made).
      weights: "ema" or "raw".
      show_chain: also P_chain.png and P_chain.gif, noise becoming the first samples.
      overwrite: replace files that exist.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    config.validate()
    batch, shape = config.sampling.batch_size, config.data.shape
    try:
        parallel.check_batch_size("batch_size", batch)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    schedule = experiment.make_schedule(config.process)
    table = experiment.make_table(schedule, config.process, config.sampling)
    result = out.with_name(out.name + ".npz")
    if result.exists() and not overwrite:
        raise BadRequest(
            f"--out {out}: {result} exists already; give another --out or --seed, or "
            "--overwrite to replace it"
        )
    mesh = parallel.make_mesh()
    params, step, apply_fn = _load(workdir, config, weights, parallel.replicated(mesh))
    request = {
        "run": str(workdir),
        "checkpoint_step": step,
        "config_sha256": hashlib.sha256(to_json(config).encode()).hexdigest(),
        "weights": weights,
        "seed": seed,
        "num": num,
        **dataclasses.asdict(config.sampling),
        "show_chain": show_chain,
        "devices": parallel.describe_devices(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
        },
    }
    partial = _Partial(out, request, batch, overwrite)

    num_batches, num_rows = -(-num // batch), table.num_rows
    frames = even_frames(num_rows, _FRAMES) if show_chain else ()
    first = partial.first_missing(num_batches)
    bar = ProgressBar("sampling", num_batches * num_rows, "steps", start=first * num_rows)
    done_before = [first * num_rows]
    sampler = experiment.make_sampler(
        config,
        apply_fn,
        table,
        mesh,
        frames=frames,
        on_progress=lambda done: bar.report(done_before[0] + int(done)),
    )
    bar.say(f"compiling a chain of {num_rows:,} steps for batches of {batch}")
    try:
        for i in range(first, num_batches):
            # A last batch that is not full is computed in full, so that the shape, and
            # with it the program and every bit of the samples, stay the same.
            indices = np.arange(i * batch, (i + 1) * batch, dtype=np.int32)
            samples, chain = sampler(params, jax.random.key(seed), indices)
            kept = min(batch, num - i * batch)
            if show_chain and i == 0:
                partial.save("chain", to_examples(np.asarray(chain)[:, :kept], shape))
            partial.save(f"{i:06d}", to_examples(np.asarray(samples)[:kept], shape))
            jax.effects_barrier()  # No report of this batch may come after this.
            done_before[0] += num_rows
            bar.report(done_before[0])
    except KeyboardInterrupt:
        bar.say(f"stopped; the same command goes on from what lies in {partial.folder}")
        raise
    finally:
        bar.close()
    partial.finish(num_batches, num, frames)


def _load(
    workdir: pathlib.Path, config: Config, weights: str, sharding: jax.sharding.Sharding
) -> tuple[Any, int, Any]:
    """The weights of the newest checkpoint, its step, and the network."""
    init_fn, apply_fn = experiment.make_network(config)
    folder = runs.checkpoints_path(workdir)
    nothing = f"the run in {workdir} has no checkpoint yet; train it further with train.py"
    if not folder.is_dir():
        raise BadRequest(nothing)
    tx = make_optimizer(config.optimizer, config.training.num_steps)
    shapes = jax.eval_shape(lambda: init_state(init_fn, tx, config.seed))
    with Checkpoints(folder, writing=False) as checkpoints:
        step = checkpoints.latest_step
        if step is None:
            raise BadRequest(nothing)
        state = checkpoints.restore(step, abstract_state(shapes, sharding))
    return (state.ema_params if weights == "ema" else state.params), step, apply_fn


class _Partial:
    """The folder P.partial of a request that is being worked on."""

    def __init__(
        self, out: pathlib.Path, request: dict[str, Any], batch: int, overwrite: bool
    ):
        self.out, self.request = out, request
        self.folder = out.with_name(out.name + ".partial")
        note = self.folder / "request.json"
        if self.folder.exists() and not overwrite:
            old = json.loads(note.read_text()) if note.exists() else None
            if old != request:
                raise BadRequest(
                    f"--out {out}: {self.folder} holds the beginning of another "
                    "request; give another --out, or --overwrite to delete it"
                )
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        note.write_text(json.dumps(request, indent=2) + "\n")

    def first_missing(self, num_batches: int) -> int:
        """The first batch that is not on disk."""
        present = (self._path(f"{i:06d}").exists() for i in range(num_batches))
        return sum(1 for _ in iter(lambda: next(present, False), False))

    def save(self, name: str, array: np.ndarray) -> None:
        """Whole or not at all: a kill leaves no half-written file under this name."""
        unfinished = self.folder / "unfinished.npy"
        np.save(unfinished, array)
        unfinished.replace(self._path(name))

    def finish(self, num_batches: int, num: int, frames: tuple[int, ...]) -> None:
        """Makes the result files out of the parts; the .npz, which counts, is last."""
        names = [f"{i:06d}" for i in range(num_batches)]
        parts = (np.load(self._path(name)) for name in names)
        first = np.load(self._path(names[0]))
        unfinished = self.folder / "unfinished.npz"
        pictured: list[np.ndarray] = []
        # Streamed into the file, so that memory does not grow with the number.
        with (
            zipfile.ZipFile(unfinished, "w") as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
        ):
            header = {
                "descr": np.lib.format.dtype_to_descr(first.dtype),
                "fortran_order": False,
                "shape": (num, *first.shape[1:]),
            }
            np.lib.format.write_array_header_2_0(file, header)
            for part in parts:
                if sum(map(len, pictured)) < _MAX_PICTURED:
                    pictured.append(part)
                file.write(np.ascontiguousarray(part).tobytes())
        written = [self._result(".png"), self._result(".json"), self._result(".npz")]
        pictures.save_samples(written[0], np.concatenate(pictured)[:_MAX_PICTURED])
        if frames:
            written[1:1] = self._save_chain(frames)
        self._result(".json").write_text(json.dumps(self.request, indent=2) + "\n")
        unfinished.replace(self._result(".npz"))
        shutil.rmtree(self.folder)
        print("wrote", *written)

    def _save_chain(self, frames: tuple[int, ...]) -> list[pathlib.Path]:
        chain = np.load(self._path("chain"))
        shown = even_frames(len(frames) - 1, _STRIP_FRAMES)
        png, gif = self._result("_chain.png"), self._result("_chain.gif")
        titles = [f"{frames[i]} of {frames[-1]} steps" for i in shown]
        pictures.save_strip(png, chain[list(shown)], titles)
        pictures.save_animation(gif, chain)
        return [png, gif]

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.npy"

    def _result(self, suffix: str) -> pathlib.Path:
        return self.out.with_name(self.out.name + suffix)
