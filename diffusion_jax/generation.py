"""Samples from a trained run, written batch by batch.

While it runs, everything lies in a folder P.partial: the request and one file for each
finished batch. The noise of a sample depends on the seed and its index alone, so the same
request continues where it stopped; at the end the parts become P.npz, P.png and P.json.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import zipfile
from typing import Any

import jax
import numpy as np

from diffusion_jax import experiment, parallel, runs, sampling
from diffusion_jax.config import Config, to_json
from diffusion_jax.data.transforms import to_examples
from diffusion_jax.interrupts import stop_on_interrupt
from diffusion_jax.reporting import pictures
from diffusion_jax.reporting.progress import ProgressBar
from diffusion_jax.samplers.chain import even_frames
from diffusion_jax.training.weights import load_from_run
from diffusion_jax.validation import BadRequest, values_refused

_STRIP_FRAMES = 10
_FRAMES = 3 * (_STRIP_FRAMES - 1) + 1  # Of the animation; every third is in the strip.
_FINISHING = "finishing"  # A mark in the folder: results are being written.
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
    with values_refused():
        parallel.check_batch_size("batch_size", batch)
    schedule = experiment.make_schedule(config.process)
    table = sampling.make_table(schedule, config.process, config.sampling)
    num_steps = len(sampling.make_timesteps(schedule, config.sampling))
    chain_suffixes = ("_chain.png", "_chain.gif") if show_chain else ()
    results = [_result(out, s) for s in (".png", ".json", *chain_suffixes, ".npz")]
    for path in results:
        if runs.is_part(workdir, path):
            raise BadRequest(f"--out {out}: {path} belongs to the run; give another --out")
        if path.is_dir():
            raise BadRequest(f"--out {out}: {path} is a folder; give another --out")
    mesh = parallel.make_mesh()
    _, apply_fn = experiment.make_network(config)
    params, _, step = load_from_run(workdir, config, weights, parallel.replicated(mesh))
    request = {
        "run": str(workdir),
        "checkpoint_step": step,
        "config_sha256": hashlib.sha256(to_json(config).encode()).hexdigest(),
        "weights": weights,
        "weights_sha256": _fingerprint(params),
        "seed": seed,
        "num": num,
        **dataclasses.asdict(config.sampling),
        "network_calls": table.num_rows,
        "show_chain": show_chain,
        "devices": parallel.describe_devices(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
        },
    }
    partial = _Partial(out, request)
    partial.claim(results, overwrite)
    with (
        runs.locked(partial.folder, "writing to"),
        stop_on_interrupt(print, sigterm=False) as stop,
    ):
        first, num_batches = partial.first_missing(), -(-num // batch)
        frames = even_frames(table.num_rows, _FRAMES) if show_chain else ()
        done = [first * table.num_rows]
        bar = ProgressBar("sampling", num_batches * table.num_rows, "calls", done[0])
        sampler = sampling.make_sampler(
            config,
            apply_fn,
            mesh,
            frames=frames,
            on_progress=lambda rows: bar.report(done[0] + int(rows)),
        )
        calls = f"{table.num_rows:,} network call{'s' if table.num_rows > 1 else ''}"
        bar.say(
            f"{config.sampling.sampler} with {num_steps:,} timesteps, which take {calls}; "
            f"compiling for batches of {batch}"
        )
        enough = -(-num // mesh.size) * mesh.size
        if 2 * enough <= batch:
            bar.say(
                f"{num} samples take as long as {batch}, so that --num changes no bit of "
                f"them; --batch_size {enough} takes less"
            )
        try:
            for i in range(first, num_batches):
                # A last batch that is not full is computed in full, so that the shape,
                # and with it the program and every bit of the samples, stay the same.
                indices = np.arange(i * batch, (i + 1) * batch, dtype=np.int32)
                samples, chain = sampler(params, table, jax.random.key(seed), indices)
                kept = min(batch, num - i * batch)
                if not np.isfinite(samples).all():
                    raise runs.RunFailed(
                        f"samples {i * batch} to {i * batch + kept - 1} are not finite; "
                        "try another sampler, or an earlier checkpoint"
                    )
                if show_chain and i == 0:
                    partial.save("chain", to_examples(np.asarray(chain)[:, :kept], shape))
                partial.save(f"{i:06d}", to_examples(np.asarray(samples)[:kept], shape))
                jax.effects_barrier()  # No report of this batch may come after this.
                done[0] += table.num_rows
                bar.report(done[0])
                if stop.wanted and i + 1 < num_batches:
                    bar.say(
                        f"{i + 1} of {num_batches} batches are in {partial.folder}; the "
                        "same command, without --overwrite, goes on from there"
                    )
                    raise KeyboardInterrupt
        finally:
            bar.close()
        partial.finish(num_batches, num, frames)
    print("wrote", *results)


def _fingerprint(params: Any) -> str:
    """Of the numbers themselves: a run can be trained anew under the same config."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _result(out: pathlib.Path, suffix: str) -> pathlib.Path:
    return out.with_name(out.name + suffix)


class _Partial:
    """The folder P.partial of a request that is being worked on."""

    def __init__(self, out: pathlib.Path, request: dict[str, Any]):
        self.out = out
        self.request = json.loads(json.dumps(request))  # As it is read back.
        self.folder = _result(out, ".partial")

    def claim(self, results: list[pathlib.Path], overwrite: bool) -> None:
        """Makes the folder, or goes on with it if it is of the same request.

        Raises:
          BadRequest: if a result exists, or the folder is of another request.
        """
        note = self.folder / "request.json"
        try:
            old = json.loads(note.read_text())
        except (OSError, ValueError):
            old = None
        finishing = (self.folder / _FINISHING).exists()
        if old == self.request and not overwrite and finishing:
            return  # Some results exist: it was stopped while they were written.
        existing = [path for path in results if path.exists()]
        if existing and not overwrite:
            raise BadRequest(
                f"--out {self.out}: {existing[0]} exists already; give another --out or "
                "--seed, or --overwrite to replace it"
            )
        if old == self.request and not overwrite:
            return
        # A kill can leave the folder without anything in it.
        if self.folder.is_dir() and set(os.listdir(self.folder)) - {".lock", "request.tmp"}:
            if old is None or not overwrite:
                what = (
                    "something else" if old is None else "the beginning of another request"
                )
                hint = "" if old is None else ", or --overwrite to delete it"
                raise BadRequest(
                    f"--out {self.out}: {self.folder} holds {what}; "
                    f"give another --out{hint}"
                )
            with runs.locked(self.folder, "writing to"):
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.request, indent=2) + "\n")
        unfinished.replace(note)

    def first_missing(self) -> int:
        """The first batch that is not on disk, whole."""
        i = 0
        while self._is_whole(self._path(f"{i:06d}")):
            i += 1
        return i

    def _is_whole(self, path: pathlib.Path) -> bool:
        try:
            np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return True

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
        # Streamed into the file, so that memory does not grow with the number; ZipInfo
        # without a date, so that the same samples are the same bytes.
        with (
            zipfile.ZipFile(unfinished, "w") as archive,
            archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file,
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
        (self.folder / _FINISHING).touch()
        picture = np.concatenate(pictured)[:_MAX_PICTURED]
        pictures.save_samples(_result(self.out, ".png"), picture)
        if frames:
            self._save_chain(frames)
        note = json.dumps(self.request, indent=2) + "\n"
        _result(self.out, ".json").write_text(note)
        unfinished.replace(_result(self.out, ".npz"))
        shutil.rmtree(self.folder)

    def _save_chain(self, frames: tuple[int, ...]) -> None:
        chain = np.load(self._path("chain"))
        shown = even_frames(len(frames) - 1, _STRIP_FRAMES)
        titles = [f"{frames[i]} of {frames[-1]} calls" for i in shown]
        pictures.save_strip(_result(self.out, "_chain.png"), chain[list(shown)], titles)
        pictures.save_animation(_result(self.out, "_chain.gif"), chain)

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.npy"
