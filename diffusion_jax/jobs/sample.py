"""Samples from a trained run, written batch by batch.

The noise of a sample depends on the seed and its index alone, so the same request continues
where it stopped (partial.py); at the end the parts become P.npz, P.png and P.json.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from diffusion_jax.config import Config, to_sha256
from diffusion_jax.data.kinds import Kind, kind_of
from diffusion_jax.experiment import build, build_sampler, validation
from diffusion_jax.jobs import auto_timesteps
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import pictures
from diffusion_jax.runs.weights import identity_of, load_from_run
from diffusion_jax.runtime import devices, environment, files, locks
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.interrupts import stop_on_interrupt
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.text import quoted, say
from diffusion_jax.samplers.chain import even_frames
from diffusion_jax.samplers.timesteps import AUTO

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
    step: int | None = None,
    show_chain: bool = False,
    overwrite: bool = False,
) -> None:
    """Draws `num` samples with a checkpoint and writes them to `out`.*.

    Args:
      workdir: the run.
      config: its config, with `sampling` as wanted.
      num: how many samples, from index 0 of the seed on.
      seed: of the noise.
      out: P of P.npz (arr_0: uint8 [num, H, W, C], or float32 points), P.png (the
        first 1,024 as a grid) and P.json (how they were made).
      weights: "ema" or "raw".
      step: of the checkpoint, of `checkpoint_choice.chosen_step`; the newest unless given.
      show_chain: also P_chain.png and P_chain.gif, noise becoming the first samples.
      overwrite: replace files that exist.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    environment.check()
    validation.check(config)
    batch, kind = config.sampling.batch_size, kind_of(config.data)
    with values_refused():
        devices.check_batch_size("batch_size", batch)
    schedule = build.make_schedule(config.process)
    provisional = build_sampler.before_choice(config.sampling)
    table = build_sampler.make_table(schedule, config.process, provisional)
    num_steps = len(build_sampler.make_timesteps(schedule, provisional))
    chain_suffixes = ("_chain.png", "_chain.gif") if show_chain else ()
    results = [result_path(out, s) for s in (".png", ".json", *chain_suffixes, ".npz")]
    for path in results:
        if run_folder.is_part(workdir, path):
            raise BadRequest(f"--out {out}: {path} belongs to the run; give another --out")
        if path.is_dir():
            raise BadRequest(f"--out {out}: {path} is a folder; give another --out")
    mesh = devices.make_mesh()
    _, apply_fn = build.make_network(config)
    loaded = load_from_run(workdir, config, weights, devices.replicated(mesh), step=step)
    say(f"weights: {loaded.kind} of step {loaded.step:,}")
    params, about = loaded.params, identity_of(loaded)
    request = {
        "run": str(workdir),
        "config_sha256": to_sha256(config),
        **about,
        "seed": seed,
        "num": num,
        **dataclasses.asdict(config.sampling),
        "network_calls": table.num_rows,
        "show_chain": show_chain,
        "devices": devices.describe_devices(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
        },
    }
    partial = Partial(out, request)
    if config.sampling.spacing == AUTO:
        auto_timesteps.check_can_choose(workdir, config)
    partial.claim(results, overwrite, "--out or --seed")
    with contextlib.ExitStack() as stack:
        stack.enter_context(locks.locked(partial.folder, "writing to"))
        if config.sampling.spacing == AUTO:
            beside = out.parent / run_folder.auto_timesteps_path(workdir).name
            config = auto_timesteps.with_timesteps(workdir, config, params, about, beside)
            table = build_sampler.make_table(schedule, config.process, config.sampling)
        stop = stack.enter_context(stop_on_interrupt(say, sigterm=False))
        first, num_batches = partial.first_missing(), -(-num // batch)
        frames = even_frames(table.num_rows, _FRAMES) if show_chain else ()
        done = [first * table.num_rows]
        bar = ProgressBar("sampling", num_batches * table.num_rows, "calls", done[0])
        sampler = build_sampler.make_sampler(
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
                    raise RunFailed(
                        f"samples {i * batch} to {i * batch + kept - 1} are not finite; "
                        f"try another sampler{_another_checkpoint(workdir, loaded.step)}"
                    )
                if show_chain and i == 0:
                    frames_kept = np.asarray(chain)[:, :kept]
                    partial.save("chain", kind.from_network(frames_kept))
                samples_kept = np.asarray(samples)[:kept]
                partial.save(f"{i:06d}", kind.from_network(samples_kept))
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
        note = {**partial.request, "timesteps": config.sampling.timesteps}
        _finish(partial, kind, note, num_batches, num, frames)
    say("wrote", *results)


def _another_checkpoint(workdir: pathlib.Path, step: int) -> str:
    """Return what to try, if the run has a checkpoint from before this step."""
    earlier = [s for s in run_folder.saved_steps(workdir) if s < step]
    if not earlier:
        return ""
    command = f"python sample.py --workdir {quoted(workdir)} --step {earlier[-1]}"
    return f", or an earlier checkpoint: {command}"


def _finish(
    partial: Partial,
    kind: Kind,
    note: dict[str, Any],
    num_batches: int,
    num: int,
    frames: tuple[int, ...],
) -> None:
    """Makes the result files out of the parts; the .npz, which counts, is last."""
    names = [f"{i:06d}" for i in range(num_batches)]
    first = partial.load(names[0])
    pictured: list[np.ndarray] = []
    with files.replacing(result_path(partial.out, ".npz")) as whole:
        # Streamed into the file, so that memory does not grow with the number; ZipInfo
        # without a date, so that the same samples are the same bytes.
        with (
            zipfile.ZipFile(whole, "w") as archive,
            archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file,
        ):
            header = {
                "descr": np.lib.format.dtype_to_descr(first.dtype),
                "fortran_order": False,
                "shape": (num, *first.shape[1:]),
            }
            np.lib.format.write_array_header_2_0(file, header)
            for part in map(partial.load, names):
                if sum(map(len, pictured)) < _MAX_PICTURED:
                    pictured.append(part)
                file.write(np.ascontiguousarray(part).tobytes())
        partial.mark_finishing()
        picture = kind.draw(np.concatenate(pictured)[:_MAX_PICTURED])
        pictures.save_png(result_path(partial.out, ".png"), picture)
        if frames:
            _save_chain(partial, kind, frames)
        text = json.dumps(note, indent=2) + "\n"
        files.write_whole(result_path(partial.out, ".json"), text)
    partial.remove()


def _save_chain(partial: Partial, kind: Kind, frames: tuple[int, ...]) -> None:
    chain = partial.load("chain")
    shown = even_frames(len(frames) - 1, _STRIP_FRAMES)
    titles = [f"{frames[i]} of {frames[-1]} calls" for i in shown]
    strip = kind.draw_strip(chain[list(shown)], titles)
    pictures.save_png(result_path(partial.out, "_chain.png"), strip)
    pictures.save_gif(result_path(partial.out, "_chain.gif"), kind.draw_frames(chain))
