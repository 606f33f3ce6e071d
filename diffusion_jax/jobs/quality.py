"""The quality of samples: their features against those of a reference, in files.

Samples are drawn batch by batch, and their features are kept until the figures are there,
so that an interrupted evaluation continues and parts can be computed anywhere (shards.py).
Features of the reference stay for the next evaluation.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.own_examples import OwnExamples, read_examples
from diffusion_jax.data.sources import DataSet, fingerprint
from diffusion_jax.evaluation import quality
from diffusion_jax.evaluation.extractor import BATCH, Extractor
from diffusion_jax.evaluation.feature_networks import FeatureNetwork
from diffusion_jax.evaluation.moments import Moments
from diffusion_jax.evaluation.quality import MOST_PAIRED, FeatureSet, Figure, Sets
from diffusion_jax.experiment import feature_names
from diffusion_jax.jobs import feature_choice, quality_report, sample
from diffusion_jax.jobs.feature_sets import (
    Cache,
    ExampleSet,
    Parts,
    extract,
    features_of,
    logits_of,
)
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import load_plan
from diffusion_jax.runtime import devices, environment, first_process, locks, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say
from diffusion_jax.samplers.timesteps import AUTO

_ALL = 2**62  # More examples than any set has.
_SHOWN = 64  # Samples beside the nearest examples of the reference.
_PICTURED = "pictured"  # The part with these samples.


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for the quality of samples.

    Attributes:
      features: which network; see `feature_choice.choose`.
      inception: file of the weights of Inception-v3.
      samples: an archive or folder of samples; "" draws them.
      reference: an archive or folder; "" is the data of the run.
      split: of the run's data: "train" or "held_out".
      max_examples: of the reference; 0 is all. A fixed choice.
      num_seeds: sets of samples that are drawn.
      drawn: how many are drawn with each seed, from its own on, and how.
    """

    features: str = ""
    inception: pathlib.Path | None = None
    samples: str = ""
    reference: str = ""
    split: str = "train"
    max_examples: int = 0
    num_seeds: int = 1
    drawn: sample.Request = dataclasses.field(default_factory=lambda: sample.Request(2000))


class _Reference(NamedTuple):
    """Examples that samples are compared with.

    Attributes:
      kind, shape: of the examples.
      examples: those of the reference.
      held_out: examples that the run was not trained on, where `examples` are those that
        it was trained on.
      to_fit: examples that principal components are made of.
    """

    kind: Kind
    shape: tuple[int, ...]
    examples: ExampleSet
    held_out: ExampleSet | None
    to_fit: ExampleSet


class _Samples(NamedTuple):
    """A set of samples.

    Attributes:
      partial: where their features are kept.
      job: draws them; None for those of an archive.
      examples: those of an archive.
      num: how many.
      num_batches: of their features.
      step: of the checkpoint that draws them.
    """

    partial: Partial
    job: sample.Job | None
    examples: ExampleSet | None
    num: int
    num_batches: int
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A reference, and the network by which samples are compared with it.

    Attributes:
      workdir: the run, if there is one.
      reference: what samples are compared with.
      caches: where features of the reference are kept, and those of its held-out examples.
      extractor: of features.
      about: what decides the figures beside the samples.
    """

    workdir: pathlib.Path | None
    reference: _Reference
    caches: Sequence[Cache]
    extractor: Extractor
    about: dict[str, Any]

    @functools.cached_property
    def features(self) -> tuple[FeatureSet, FeatureSet | None] | None:
        """Features of the reference, and of its held-out examples if it has some.

        All processes compute what is not kept; only the first gets the features.
        """
        filled = [cache.filled(self.extractor) for cache in self.caches]
        if not first_process.is_here():
            return None
        known = self._moments(filled[0])
        reference = FeatureSet(filled[0], self.caches[0].num, known)
        if len(filled) == 1:
            return reference, None
        return reference, FeatureSet(filled[1], self.caches[1].num)

    def _moments(self, parts: Parts) -> Moments:
        """Return the moments of the reference, which are computed once and kept."""
        cache, size = self.caches[0], self.extractor.network.num_features
        kept = cache.kept("moments")
        if kept is not None and kept.shape == (size + 1, size) and np.isfinite(kept).all():
            return Moments(cache.num, kept[0], kept[1:])
        found = FeatureSet(parts, cache.num).moments
        cache.keep("moments", np.stack([found.mean, *found.scatter]))
        return found


def prepare(
    workdir: pathlib.Path | None,
    config: Config | None,
    request: Request,
    *,
    folder: pathlib.Path,
    overwrite: bool = False,
) -> Comparison:
    """Return the reference of a request and its network, checked.

    Args:
      workdir, config: the run; None compares two archives.
      request: what to evaluate.
      folder: for the features of the reference, which are kept.
      overwrite: replace features of another reference.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    environment.check()
    if config is not None and config.data.low_res and not request.samples:
        raise BadRequest(
            "--quality: the run refines smaller images; draw samples with sample.py "
            "--upscale or --cascade, and give their .npz with --samples"
        )
    data = None
    if workdir is not None and config is not None and not request.reference:
        data = load_plan(workdir, config).data
    reference = _reference(config, data, request)
    network = feature_choice.choose(
        request.features,
        request.inception,
        reference.kind,
        reference.shape,
        reference.to_fit,
    )
    num = len(reference.examples.order)
    more = "a larger --max_examples" if request.max_examples else ""
    _check_enough("the reference", num, network, more)
    about = {
        "kind": "quality",
        "network": network.name,
        "network_sha256": network.sha256,
        "reference": reference.examples.name,
        "reference_examples": reference.examples.about,
        "num_reference": num,
    }
    caches = [
        Cache(folder, examples, network)
        for examples in (reference.examples, reference.held_out)
        if examples is not None
    ]
    for cache in caches:
        cache.check(overwrite)
    extractor = Extractor(network, devices.make_mesh())
    return Comparison(workdir, reference, caches, extractor, about)


def compare(
    comparison: Comparison,
    config: Config | None,
    request: Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
) -> Callable[[], dict[str, Any]]:
    """Check a request for the quality of samples, so that it can begin.

    Args:
      comparison: of `prepare`.
      config: of the run, with `sampling` as wanted.
      request: what to evaluate.
      out: P of P.json (the figures, and how they came about) and P.png (the first samples
        beside the nearest examples of the reference).
      overwrite: replace files that exist.

    Returns:
      A function that does it and returns the contents of P.json; {} for a shard, and in
      all processes except the first. It raises RunFailed for samples that are not finite,
      and KeyboardInterrupt after Ctrl-C, at the end of a batch, which is kept.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    sets = _sample_sets(comparison, config, request, out)
    network = comparison.extractor.network
    more = "" if request.samples else f"--num {network.num_features + 1} or more"
    _check_enough("the set of samples", sets[0].num, network, more)
    seeds = [each.partial.request.get("seed") for each in sets]
    whole = Partial(out, {**sets[0].partial.request, "seeds": seeds})
    job = _Job(comparison, request, sets, whole, overwrite)
    found = None if overwrite else whole.finished()
    if not processes.of_first(found is not None):
        job.check()
        return job.run

    def done() -> dict[str, Any]:
        if found:
            say(f"{result_path(out, '.json')} has the result of this request already:")
            quality_report.print_figures(found)
        return found or {}

    return done


def _check_enough(what: str, num: int, network: FeatureNetwork, more: str) -> None:
    """Refuse a set that is too small for a network; `more` says how it gets larger."""
    size = network.num_features
    ways = [more] if more else []
    if num > 1:
        smaller = min(feature_names.NUM_COMPONENTS, num - 1)
        ways.append(f"fewer features, such as --features pca{smaller}")
    try:
        quality.check_enough(what, num, size)
    except ValueError as error:
        raise BadRequest(f"{error}; take {' or '.join(ways or ['more'])}") from error


def _reference(config: Config | None, data: DataSet | None, request: Request) -> _Reference:
    most = request.max_examples or _ALL
    if request.reference:
        found = read_examples(request.reference, "--reference")
        examples = _own(found, request.reference, most)
        to_fit = examples._replace(num=_ALL)
        return _Reference(found.kind, found.shape, examples, None, to_fit)
    assert config is not None and data is not None
    about = {"data": config.data.source, "fingerprint": fingerprint(data)}

    def split(name: str, num: int) -> ExampleSet:
        source = data.split(name).source
        return ExampleSet(source, num, {**about, "split": name}, name)

    is_of_training = request.split == "train"
    return _Reference(
        kind_of(config.data),
        config.data.shape,
        split(request.split, most),
        split("held_out", MOST_PAIRED) if is_of_training else None,
        split("train", _ALL),
    )


def _own(found: OwnExamples, path: str, most: int) -> ExampleSet:
    name = pathlib.Path(path).name
    return ExampleSet(found.source, most, {"name": name, "sha256": found.identity}, name)


def _sample_sets(
    comparison: Comparison, config: Config | None, request: Request, out: pathlib.Path
) -> list[_Samples]:
    """Return each set of samples: one of an archive, or one for each seed."""
    workdir, reference, about = comparison.workdir, comparison.reference, comparison.about
    if request.samples:
        found = read_examples(request.samples, "--samples")
        _check_shape(f"--samples {request.samples}", found.shape, reference)
        examples = _own(found, request.samples, _ALL)
        num = len(examples.order)
        note = {**about, "samples": examples.about, "num_samples": num}
        partial = Partial(out, note, request.drawn.shard)
        return [_Samples(partial, None, examples, num, -(-num // BATCH))]
    assert workdir is not None and config is not None
    if config.sampling.spacing == AUTO:
        raise BadRequest(
            "--spacing auto is chosen by sample.py; give --timesteps, as it prints them"
        )
    _check_shape(f"the run in {workdir}", config.data.shape, reference)
    sets = []
    for i in range(request.num_seeds):
        seed = request.drawn.seed + i
        drawn = dataclasses.replace(request.drawn, seed=seed)
        own = out if request.num_seeds == 1 else result_path(out, f"_seed{seed}")
        job, loaded = sample.prepare(workdir, config, drawn, own)
        note = {**job.partial.request, **about, "num_samples": drawn.num}
        job = job._replace(partial=Partial(own, note, drawn.shard))
        num_batches = job.num_batches
        sets.append(_Samples(job.partial, job, None, drawn.num, num_batches, loaded.step))
    return sets


def _check_shape(what: str, shape: tuple[int, ...], reference: _Reference) -> None:
    if tuple(shape) != tuple(reference.shape):
        raise BadRequest(
            f"{what} has examples of the shape {list(shape)}, and the reference of "
            f"{list(reference.shape)}; nothing is resized here"
        )


class _Job(NamedTuple):
    """An evaluation, with the sets of samples, and P with what P.json says of them all."""

    comparison: Comparison
    request: Request
    sets: Sequence[_Samples]
    whole: Partial
    overwrite: bool

    @property
    def _results(self) -> list[pathlib.Path]:
        return [result_path(self.whole.out, suffix) for suffix in (".png", ".json")]

    def check(self) -> None:
        """Refuse what cannot be written; take the parts of all shards for a merge."""
        workdir = self.comparison.workdir
        for path in self._results:
            if (workdir and run_folder.is_part(workdir, path)) or path.is_dir():
                what = "is a folder" if path.is_dir() else "belongs to the run"
                raise BadRequest(f"--out: {path} {what}; give another --out")
        for each in self.sets:
            if self.request.drawn.merge:
                more = (_PICTURED,) if each.job else ()
                each.partial.merge(each.num_batches, more)
            each.partial.check(self._results, self.overwrite, "--out")

    def run(self) -> dict[str, Any]:
        """Do it; see `compare`."""
        for each in self.sets:
            each.partial.claim(self._results, self.overwrite, "--out")
        with contextlib.ExitStack() as held:
            for each in self.sets:
                held.enter_context(locks.locked(each.partial.folder, "writing to"))
            for each in self.sets:
                self._fill(each)
            if self.request.drawn.shard:
                say(self.sets[0].partial.said_of_shard())
                return {}
            return self._finish()

    def _fill(self, each: _Samples) -> None:
        """Compute the features of a set that are not there yet."""
        if self.request.drawn.merge:
            return
        if each.examples is not None:
            extract(each.partial, self.comparison.extractor, each.examples)
            return
        assert each.job is not None and self.comparison.workdir is not None
        save = functools.partial(_save, self.comparison.extractor)
        try:
            sample.draw(each.job, save)
        except sample.NotFinite as error:
            sample.blame_prior(each.job, error)
            workdir = self.comparison.workdir
            raise sample.failed(str(error), workdir, each.step) from error

    def _finish(self) -> dict[str, Any]:
        """Compare what is there, and write the results; the first process does it."""
        features = self.comparison.features
        if features is None:
            return {}
        network, each_set = self.comparison.extractor.network, []
        for each in self.sets:
            say(f"comparing {each.num:,} samples with the reference")
            parts = features_of(each.partial, each.num_batches, network)
            logits = logits_of(each.partial, each.num_batches, network)
            sets = Sets(FeatureSet(parts, each.num), *features, logits)
            try:
                each_set.append(quality.figures(sets, network.name))
            except ValueError as error:
                raise BadRequest(f"network {network.name}: {error}") from error
        figures = each_set[0] if len(each_set) == 1 else _over_seeds(each_set)
        report = quality_report.Report(figures, each_set, self._picture(features[0]))
        return quality_report.write(self.whole, [s.partial for s in self.sets], report)

    def _picture(self, reference: FeatureSet) -> Any:
        """Return the first samples beside the nearest examples of the reference."""
        first, comparison = self.sets[0], self.comparison
        kind, examples = comparison.reference.kind, comparison.reference.examples
        parts = features_of(first.partial, 1, comparison.extractor.network)
        if first.examples is not None:
            shown = first.examples.source[first.examples.order[:_SHOWN]]
        else:
            shown = first.partial.load(_PICTURED)
        distances, indices = quality.nearest_of(next(iter(parts))[:_SHOWN], reference)
        near_first = np.argsort(distances)
        there = examples.source[examples.order[indices[near_first]]]
        return kind.draw_side_by_side(
            {"samples, nearest first": shown[near_first], "nearest in the reference": there}
        )


def _save(
    extractor: Extractor, job: sample.Job, i: int, samples: jax.Array, frames: jax.Array
) -> None:
    """Save the features of batch i of the samples, and the first samples."""
    del frames
    kind = kind_of(job.config.data)
    own = kind.from_network(sample.wanted_samples(job, i, samples))
    if i == 0:
        job.partial.save(_PICTURED, own[:_SHOWN])
    job.partial.save(f"{i:06d}", extractor(own))


def _over_seeds(each: Sequence[dict[str, Figure]]) -> dict[str, Figure]:
    """Return means over seeds, and their standard errors by the spread."""
    found = {}
    for name, first in each[0].items():
        values = np.array([figures[name].value for figures in each])
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        found[name] = first._replace(value=float(values.mean()), standard_error=error)
    return found
