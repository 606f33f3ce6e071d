"""Samples from a trained run, written batch by batch.

The noise of a sample depends on the seed and its index alone, so the same request continues
where it stopped (resumable.py); at the end the parts become P.npz, P.png and P.json.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.config import Config, hashes_of
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import DataSet
from diffusion_jax.diffusion.batch import LOW_RES
from diffusion_jax.diffusion.conditioning_augmentation import augmented_samples
from diffusion_jax.diffusion.model import Model
from diffusion_jax.experiment import build, build_sampler, validation
from diffusion_jax.jobs import auto_timesteps, guiding, labels, origins
from diffusion_jax.jobs.origins import NOISE, Given, Origin
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.jobs.shards import Shard
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import pictures
from diffusion_jax.runs.record import class_counts
from diffusion_jax.runs.weight_files import Weights
from diffusion_jax.runs.weights import identity_of, load_from_run
from diffusion_jax.runtime import (
    devices,
    environment,
    files,
    first_process,
    locks,
    processes,
)
from diffusion_jax.runtime.checks import values_refused
from diffusion_jax.runtime.errors import BadRequest, RunFailed
from diffusion_jax.runtime.interrupts import stop_on_interrupt
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.text import command, quoted, say
from diffusion_jax.samplers import chain
from diffusion_jax.samplers.chain import even_frames
from diffusion_jax.samplers.table import SamplerTable
from diffusion_jax.samplers.timesteps import AUTO

_STRIP_FRAMES = 10
_FRAMES = 3 * (_STRIP_FRAMES - 1) + 1  # Frames of animations; every third is in the strip.
_MAX_PICTURED = 1024  # Images in the grid; the .npz holds all.


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for samples.

    Attributes:
      num: how many, from index 0 of the seed on.
      seed: of the noise.
      weights: which weights; see `runs.weights.check_kind`.
      step: of the checkpoint, of `checkpoint_choice.chosen_step`; None is the newest.
      show_chain: also P_chain.png and P_chain.gif, noise becoming the first samples.
      shard: the part of the samples that is drawn, alone; None is all.
      merge: draw nothing, and make the results out of all shards.
      label: classes, of `labels.parse`, for a run with labels.
      guide: another run that guides.
      prior: a file with a function that guides.
      origin: what the chains start from.
      stage: of a cascade; the noise of each stage is its own.
    """

    num: int
    seed: int = 0
    weights: str = "ema"
    step: int | None = None
    show_chain: bool = False
    shard: Shard | None = None
    merge: bool = False
    label: tuple[int, ...] = ()
    guide: guiding.Guide | None = None
    prior: guiding.PriorFile | None = None
    origin: Origin = NOISE
    stage: int = 0

    @property
    def key(self) -> jax.Array:
        """Return the PRNG key of all noise of its samples."""
        key = jax.random.key(self.seed)
        # As in `init_state`.
        return jax.random.fold_in(key, 2**32 - 8 - self.stage) if self.stage else key


class Job(NamedTuple):
    """A request that was checked, and what it takes to meet it."""

    request: Request
    config: Config
    model: Model
    table: SamplerTable
    params: Any
    mesh: jax.sharding.Mesh
    partial: Partial
    guiding: guiding.Guiding
    counts: Sequence[int] = ()

    @property
    def is_without_class(self) -> bool:
        """Return whether the network has classes, and the samples are of none."""
        request = self.request
        return self.config.data.labels and not (request.origin.is_noise or request.label)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Return the classes of these samples, int32 [N]."""
        if self.is_without_class:
            return np.full(len(indices), self.config.data.num_classes, np.int32)
        return labels.of_samples(
            self.request.label, self.counts, self.request.seed, indices
        )

    def cond(self, indices: np.ndarray) -> dict[str, Any]:
        """Return what the chains of these samples are conditioned on."""
        classes = self.labels(indices) if self.config.data.labels else None
        cond = guiding.cond_of(
            self.config, self.guiding, self.request.prior, classes, len(indices)
        )
        cond |= self.request.origin.cond(indices)
        if LOW_RES not in cond:
            return cond
        level = self.config.sampling.aug_level
        return augmented_samples(self.request.key, cond, level, indices)

    def samples(self, indices: np.ndarray) -> chain.Samples:
        """Return these samples, with where their chains start."""
        start = self.request.origin.start(self.table, indices)
        return chain.Samples(self.request.key, indices, start)

    @property
    def params_of_chain(self) -> Any:
        """Return the params, of the run or also of its guide, as the chain takes them."""
        guide = self.guiding.params
        return self.params if guide is None else (self.params, guide)

    @property
    def options(self) -> chain.ChainOptions:
        """Return the options of the chain."""
        options = build_sampler.chain_options(self.config, self.frames)
        return options._replace(
            hook=self.request.origin.hook(options.hook),
            guidance=self.guiding.guidance,
            prior=self.guiding.prior,
        )

    @property
    def num_batches(self) -> int:
        return -(-self.request.num // self.config.sampling.batch_size)

    @property
    def frames(self) -> tuple[int, ...]:
        if not self.request.show_chain:
            return ()
        return even_frames(self.table.num_rows, _FRAMES)


# save(job, i, samples of batch i, frames of their chains)
SaveBatch = Callable[[Job, int, jax.Array, jax.Array], None]


def generate(
    workdir: pathlib.Path,
    config: Config,
    request: Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
    keep_finished: bool = False,
) -> bool:
    """Draw samples with a checkpoint and write them to `out`.*.

    Args:
      workdir: the run.
      config: its config, with `sampling` as wanted.
      request: which samples.
      out: P of P.npz (arr_0: uint8 [num, H, W, C], or float32 points), P.png (the
        first 1,024 as a grid), P.json (how they were made), and what `Kind.save` writes.
      overwrite: replace files that exist.
      keep_finished: leave them as they are if they are of this very request.

    Returns:
      Whether Ctrl-C came while the last batch was drawn, when there was nothing to stop.

    Raises:
      BadRequest: before anything is compiled or written.
      RunFailed: for samples that are not finite.
      KeyboardInterrupt: after Ctrl-C, at the end of a batch, which is kept.
    """
    environment.check()
    check_has_low_res(config, request)
    results = results_of(workdir, out, request, config)
    auto = _chooses_timesteps(config, request)
    job, loaded = prepare(workdir, config, request, out)
    partial = job.partial
    if keep_finished and not overwrite and processes.of_first(is_finished(partial)):
        say(f"{result_path(out, '.npz')} has these samples already")
        return False
    if job.is_without_class:
        say("without --label, the samples are of no class")
    if request.merge:
        partial.merge(job.num_batches, ("chain",) if request.show_chain else ())
    if auto:
        auto_timesteps.check_can_choose(workdir, config)
    partial.claim(results, overwrite, "--out or --seed")
    with locks.locked(partial.folder, "writing to"):
        if auto:
            beside = out.parent / run_folder.auto_timesteps_path(workdir).name
            config = auto_timesteps.with_timesteps(workdir, job.config, loaded, beside)
            table = build_sampler.make_table(job.model, config.sampling)
            job = job._replace(config=config, table=table)
        try:
            stopping = not request.merge and draw(_ready(job))
        except NotFinite as error:
            blame_prior(job, error)
            raise failed(str(error), workdir, loaded.step) from error
        if request.shard:
            say(partial.said_of_shard())
            return stopping
        with processes.together():
            if first_process.is_here():
                finish(job)
    say("wrote", *results)
    return stopping


def prepare(
    workdir: pathlib.Path, config: Config, request: Request, out: pathlib.Path
) -> tuple[Job, Weights]:
    """Return a request that was checked, and its weights. Arguments as of `generate`.

    Timesteps that are chosen automatically are not chosen yet; nothing is written.

    Raises:
      BadRequest: before anything is compiled.
    """
    validation.check(config)
    with values_refused():
        devices.check_batch_size("batch_size", config.sampling.batch_size)
    model, mesh, origin = build.make_model(config), devices.make_mesh(), request.origin
    sampling = origin.sampling(config.sampling, model)
    config = dataclasses.replace(config, sampling=sampling)
    table = origin.table(model, build_sampler.before_choice(sampling))
    whole = devices.replicated(mesh)
    loaded = load_from_run(workdir, config, request.weights, whole, step=request.step)
    say(f"weights: {loaded.kind} of step {loaded.step:,}")
    guided = guiding.make(config, model, request.guide, request.prior, whole)
    about = {**identity_of(loaded), **guided.about}
    note = note_of(workdir, config, request, about, table)
    partial = Partial(out, note, request.shard)
    counts = class_counts(workdir) if config.data.labels else []
    job = Job(request, config, model, table, loaded.params, mesh, partial, guided, counts)
    check_prior(job)
    return job, loaded


def is_finished(partial: Partial) -> bool:
    """Return whether the results of a request are there, and whole."""
    is_there = result_path(partial.out, ".npz").is_file() and not partial.folder.exists()
    return is_there and partial.finished() is not None


def check_has_low_res(config: Config, request: Request) -> None:
    """Refuse a run that refines images where none were given."""
    if config.data.low_res and LOW_RES not in request.origin.cond(np.zeros(1, np.int32)):
        origin = request.origin
        flag = f"--{origin.flag}: " if isinstance(origin, Given) else ""
        raise BadRequest(
            f"{flag}the run makes {config.data.shape[0]}x{config.data.shape[1]} images out "
            "of smaller ones: give these with --upscale, or the run that draws them with "
            "--cascade"
        )


def _chooses_timesteps(config: Config, request: Request) -> bool:
    auto = config.sampling.spacing == AUTO
    if auto and (request.shard or request.merge):
        raise BadRequest(
            "--shard and --merge need timesteps that are known; give --timesteps in place "
            "of --spacing auto, as it prints them"
        )
    return auto


def try_out(workdir: pathlib.Path, config: Config, data: DataSet) -> bool:
    """Draw one batch for a smoke run; True, as there are samples of every run."""
    num = config.sampling.batch_size
    request = Request(num=num, origin=origins.held_out(config.data, data, num))
    out = run_folder.samples_path(workdir) / "smoke"
    if generate(workdir, config, request, out=out, overwrite=True):
        raise KeyboardInterrupt
    return True


def results_of(
    workdir: pathlib.Path, out: pathlib.Path, request: Request, config: Config
) -> list[pathlib.Path]:
    """The files and folders that will be written, none of which belongs to the run."""
    of_chain = ("_chain.png", "_chain.gif") if request.show_chain else ()
    suffixes = (".png", ".json", *kind_of(config.data).suffixes, *of_chain, ".npz")
    results = [result_path(out, suffix) for suffix in suffixes]
    for suffix, path in zip(suffixes, results, strict=True):
        if run_folder.is_part(workdir, path):
            raise BadRequest(f"--out {out}: {path} belongs to the run; give another --out")
        is_folder = path.is_dir() and not path.is_symlink()
        if "." in suffix and path.is_dir():
            raise BadRequest(f"--out {out}: {path} is a folder; give another --out")
        if "." not in suffix and not is_folder and os.path.lexists(path):
            raise BadRequest(f"--out {out}: {path} is not a folder; give another --out")
        for given in request.origin.inputs:
            if given.resolve() in (path.resolve(), *path.resolve().parents):
                raise BadRequest(
                    f"--out {out}: {path} would be among what was given, {given}; give "
                    "another --out"
                )
    return results


def note_of(
    workdir: pathlib.Path,
    config: Config,
    request: Request,
    about: dict[str, Any],
    table: SamplerTable,
) -> dict[str, Any]:
    """Return everything that the samples depend on, as it is written to P.json."""
    sampling = dataclasses.asdict(config.sampling)
    if not config.data.low_res:
        del sampling["aug_level"]
    return {
        "run": str(workdir),
        **hashes_of(config),
        **about,
        **kind_of(config.data).about,
        "seed": request.seed,
        "num": request.num,
        **({"label": request.label} if config.data.labels else {}),
        **request.origin.about,
        **sampling,
        "network_calls": table.num_calls,
        "show_chain": request.show_chain,
        "devices": devices.describe_devices(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")
        },
    }


class NotFinite(Exception):
    """Samples that are not finite; str() says which.

    Attributes:
      batch: the number of their batch.
    """

    def __init__(self, text: str, batch: int):
        super().__init__(text)
        self.batch = batch


def check_prior(job: Job) -> None:
    prior, file = job.guiding.prior, job.request.prior
    if prior is not None and file is not None:
        cond = job.cond(np.arange(job.config.sampling.batch_size))
        guiding.check_prior(file.path, prior, job.table, job.config.data.shape, cond)


def blame_prior(job: Job, error: NotFinite) -> None:
    """Raise BadRequest, with the step, for a function whose gradient was not finite."""
    file, size = job.request.prior, job.config.sampling.batch_size
    if file is None:
        return
    indices = np.arange(size, dtype=np.int32) + error.batch * size
    where = guiding.first_step_not_finite(
        job.model,
        job.params_of_chain,
        job.table,
        job.samples(indices),
        job.cond(indices),
        job.options,
        job.config.data.shape,
    )
    if job.partial.missing(job.num_batches).start == 0:
        job.partial.remove()
    raise BadRequest(
        f"--prior {file.path}: its gradient made x no longer finite at {where}; make "
        "--prior_scale smaller, or the function safe"
    ) from error


def _ready(job: Job) -> Job:
    """Return the job with an origin whose chains can start, if batches are missing."""

    def encode(pictures: np.ndarray, indices: np.ndarray) -> np.ndarray:
        origin = origins.encoding_of(pictures)
        table = origin.table(job.model, job.config.sampling)
        options = job.options._replace(frames=())
        sampler = build_sampler.make_sampler(job.config, job.model, job.mesh, options)
        rows = np.arange(job.config.sampling.batch_size) % len(pictures)
        samples = chain.Samples(
            jax.random.key(0), indices[rows].astype(np.int32), origin.start(table, rows)
        )
        samples, cond = _put(job, samples, job.cond(indices[rows]))
        latents = devices.to_host(sampler(job.params_of_chain, table, samples, cond)[0])
        return latents[: len(pictures)]

    request = job.request
    if not len(job.partial.missing(job.num_batches)):
        return job
    origin = request.origin.ready(encode, job.table, job.config.data.shape)
    return job._replace(request=dataclasses.replace(request, origin=origin))


def _put(job: Job, samples: chain.Samples, cond: dict[str, Any]) -> tuple[Any, Any]:
    """Return samples, and what they are conditioned on, with their rows on the devices."""
    rows = devices.put_rows(job.mesh, (samples.indices, samples.start, cond))
    return chain.Samples(samples.key, rows[0], rows[1]), rows[2]


def draw(job: Job, save: SaveBatch | None = None) -> bool:
    """Draw the batches that are not there yet, and save each as a part.

    Args:
      job: whose folder is claimed and locked.
      save: saves a batch; by default `save_batch`.

    Returns:
      As `generate`.

    Raises:
      NotFinite, KeyboardInterrupt: as `generate`.
    """
    save = save or save_batch
    calls, partial = job.table.num_calls, job.partial
    left = partial.missing(job.num_batches)
    done = [left.start * calls]
    with stop_on_interrupt(say, sigterm=False) as stop:
        bar = ProgressBar("sampling", left.stop * calls, "calls", done[0])
        sampler = build_sampler.make_sampler(
            job.config,
            job.model,
            job.mesh,
            job.options,
            on_progress=lambda rows: bar.report(done[0] + int(rows)),
        )
        _say_what_it_takes(job, bar)
        try:
            for i in left:
                save(job, i, *draw_batch(job, sampler, i))
                jax.effects_barrier()  # No report of this batch may come after this.
                done[0] += calls
                bar.report(done[0])
                stop.update()
                if stop.wanted and i + 1 < left.stop:
                    bar.say(
                        f"{i + 1} of {job.num_batches} batches are in {partial.folder}; "
                        "the same command, without --overwrite, goes on from there"
                    )
                    raise KeyboardInterrupt
        finally:
            bar.close()
    return bool(stop.wanted)


def draw_batch(
    job: Job, sampler: build_sampler.Sampler, i: int
) -> tuple[jax.Array, jax.Array]:
    """Return the samples of batch i, and the frames of their chains."""
    batch = job.config.sampling.batch_size
    # A last batch that is not full is computed in full, so that the shape, and with it
    # the program and every bit of the samples, stay the same.
    indices = np.arange(i * batch, (i + 1) * batch, dtype=np.int32)
    samples, cond = _put(job, job.samples(indices), job.cond(indices))
    return sampler(job.params_of_chain, job.table, samples, cond)


def _say_what_it_takes(job: Job, bar: ProgressBar) -> None:
    sampling, num_rows = job.config.sampling, job.table.num_rows
    num_steps = len(build_sampler.make_timesteps(job.model.process, sampling))
    calls = f"{num_rows:,} network call{'s' if num_rows > 1 else ''}"
    bar.say(
        f"{sampling.sampler} with {num_steps:,} timesteps, which take {calls}; "
        f"compiling for batches of {sampling.batch_size}"
    )
    num = job.request.num
    enough = -(-num // job.mesh.size) * job.mesh.size
    if 2 * enough <= sampling.batch_size:
        bar.say(
            f"{num} samples take as long as {sampling.batch_size}, because a batch is "
            f"always computed in full; --batch_size {enough} takes less"
        )


def save_batch(job: Job, i: int, samples: jax.Array, frames: jax.Array) -> None:
    """Save the samples of batch i that are wanted, and the frames of the first batch.

    Raises:
      NotFinite: for samples that are not finite.
    """
    kind, own = kind_of(job.config.data), wanted_samples(job, i, samples)
    if job.request.show_chain and i == 0:
        own_frames = devices.to_host(frames)
        job.partial.save("chain", kind.from_network(own_frames[:, : len(own)]))
    job.partial.save(f"{i:06d}", job.request.origin.stored(kind, own))


def wanted_samples(job: Job, i: int, samples: jax.Array) -> np.ndarray:
    """Return those samples of batch i that are wanted, as the network gives them.

    Raises:
      NotFinite: for samples that are not finite.
    """
    batch = job.config.sampling.batch_size
    kept = min(batch, job.request.num - i * batch)
    own = devices.to_host(samples)
    if not np.isfinite(own).all():
        said = f"samples {i * batch} to {i * batch + kept - 1} are not finite"
        raise NotFinite(said, i)
    return own[:kept]


def failed(said: str, workdir: pathlib.Path, step: int) -> RunFailed:
    """Return the error of samples that are not finite, of a checkpoint."""
    return RunFailed(f"{said}; try another sampler{_another_checkpoint(workdir, step)}")


def _another_checkpoint(workdir: pathlib.Path, step: int) -> str:
    """Return what to try, if the run has a checkpoint from before this step."""
    earlier = [s for s in run_folder.saved_steps(workdir) if s < step]
    if not earlier:
        return ""
    arguments = f"--workdir {quoted(workdir)} --step {earlier[-1]}"
    return f", or an earlier checkpoint: {command('sample')} {arguments}"


def finish(job: Job, **more: Any) -> None:
    """Make the result files out of the parts; the .npz, which counts, is last.

    Args:
      job: all batches of which are there.
      more: what P.json holds beside the request.
    """
    partial, num = job.partial, job.request.num
    names = [f"{i:06d}" for i in range(job.num_batches)]
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
            file.close()
            has_classes = job.config.data.labels and not job.is_without_class
            if has_classes and job.config.sampling.guidance:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                    np.lib.format.write_array(file, job.labels(np.arange(num)))
        partial.mark_finishing()
        kind = kind_of(job.config.data)
        shown = np.concatenate(pictured)[:_MAX_PICTURED]
        classes = len(job.request.label)  # In turn, a row each.
        picture = job.request.origin.draw(kind, shown, classes if classes > 1 else 0)
        pictures.save_png(result_path(partial.out, ".png"), picture)
        kind.save({s: result_path(partial.out, s) for s in kind.suffixes}, shown)
        if job.frames:
            _save_chain(partial, kind, job.frames)
        note = {**partial.request, "timesteps": job.config.sampling.timesteps, **more}
        text = json.dumps(note, indent=2) + "\n"
        files.write_whole(result_path(partial.out, ".json"), text)
    partial.remove()


def _save_chain(partial: Partial, kind: Kind, frames: tuple[int, ...]) -> None:
    states = partial.load("chain")
    shown = even_frames(len(frames) - 1, _STRIP_FRAMES)
    titles = [f"{frames[i]} of {frames[-1]} calls" for i in shown]
    strip = kind.draw_strip(states[list(shown)], titles)
    pictures.save_png(result_path(partial.out, "_chain.png"), strip)
    pictures.save_gif(result_path(partial.out, "_chain.gif"), kind.draw_frames(states))
