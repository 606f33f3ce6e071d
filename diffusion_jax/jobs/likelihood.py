"""The likelihood of a trained run over a data set, in files.

The t and the noise of an example depend on the seed and its number alone, so an interrupted
evaluation continues (batches.py), batch by batch; at the end the parts become P.json, and
for the bound also P.csv and P.png.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import Config, hashes_of
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.data.sources import DataSet
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.model import Model
from diffusion_jax.diffusion.schedules import respaced
from diffusion_jax.evaluation.bound import (
    BatchTerms,
    Bound,
    combined,
)
from diffusion_jax.evaluation.ode_likelihood import CALLS_PER_STEP, Flow
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.experiment.setup import load_data, make_plan
from diffusion_jax.jobs import auto_timesteps
from diffusion_jax.jobs.batches import Selection, over_examples, select
from diffusion_jax.jobs.likelihood_report import in_words, is_whole, write_bound, write_flow
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.jobs.shards import Shard
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import check_data_there, check_same_data
from diffusion_jax.runs.weight_files import Weights
from diffusion_jax.runs.weights import identity_of, load_from_run
from diffusion_jax.runtime import devices, locks, processes
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import say
from diffusion_jax.samplers.timesteps import AUTO

SPLITS = ("held_out", "train")


@dataclasses.dataclass
class Request:
    """A request for an evaluation.

    Attributes:
      split: "held_out" or "train".
      max_examples: of it; 0 is all. A fixed choice.
      weights: of `runs.weights.check_kind`.
      step: of the checkpoint, of `checkpoint_choice.chosen_step`; None is the newest.
      seed: of t and noise.
      num_timesteps_sampled: of the bound: M of `evaluation.bound`; 0 is every timestep.
      steps, spacing: of the bound: of a chain over fewer timesteps; 0 is all T.
      ode_steps: of the flow.
      shard: the part of the examples that is measured, alone; None is all.
      merge: measure nothing, and make the results out of all shards.
    """

    split: str = "held_out"
    max_examples: int = 0
    weights: str = "ema"
    step: int | None = None
    seed: int = 0
    num_timesteps_sampled: int = 0
    steps: int = 0
    spacing: str = "trailing"
    ode_steps: int = 50
    shard: Shard | None = None
    merge: bool = False


class _Subject(NamedTuple):
    """A model with its weights, and the examples that it is evaluated on."""

    config: Config
    model: Model
    weights: Weights
    mesh: jax.sharding.Mesh
    examples: Selection
    about: dict[str, Any]


def prepare(
    workdir: pathlib.Path,
    config: Config,
    request: Request,
    *,
    bound: pathlib.Path | None = None,
    flow: pathlib.Path | None = None,
    overwrite: bool = False,
    data: DataSet | None = None,
) -> list[Callable[[], dict[str, Any]]]:
    """Check all that is wanted of a run's newest checkpoint, so that it can begin.

    Args:
      workdir: the run.
      config: its config.
      request: what to evaluate.
      bound: for the variational bound with all its terms: P of P.json (the figures, and
        how they came about), P.csv (a row for each stratum of timesteps) and P.png (the
        curves). Without it there is no bound.
      flow: for the likelihood under the probability-flow ODE: P of P.json.
      overwrite: replace files that exist.
      data: the examples of the run, if they are in memory already.

    Returns:
      A function for each of the two that is wanted, which does it and returns what P.json
      holds; if P.json is of the very same request, it only reports that.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    chain, num_strata = np.empty(0), 0
    results: dict[pathlib.Path, list[pathlib.Path]] = {}
    if bound is not None:
        chain, num_strata = _checked_chain(workdir, config, request)
        results[bound] = _results(workdir, bound, (".png", ".csv", ".json"))
    if flow is not None:
        results[flow] = _results(workdir, flow, (".json",))
    subject = _subject(workdir, config, request, data)
    jobs: list[tuple[Partial, Callable[[], dict[str, Any]]]] = []
    if bound is not None:
        about = {
            **subject.about,
            "num_timesteps_sampled": num_strata,
            "steps": len(chain),
            "spacing": request.spacing if request.steps else "all",
        }
        partial = _partial(bound, about, request, subject)
        run = functools.partial(
            _bound, workdir, request, subject, partial, chain, num_strata
        )
        jobs.append((partial, run))
    if flow is not None:
        about = {**subject.about, "ode_steps": request.ode_steps}
        partial = _partial(flow, about, request, subject)
        run = functools.partial(_flow, request, subject, partial)
        jobs.append((partial, run))
    # None is claimed before all of them are whole.
    return [
        _claimed(partial, results[partial.out], overwrite, run) for partial, run in jobs
    ]


def try_out(workdir: pathlib.Path, config: Config, data: DataSet) -> bool:
    """Evaluate the bound of a batch at two timesteps for a smoke run, if it applies."""
    if not kind_of(config.data).has_levels:
        return False
    few = min(2, config.process.num_timesteps)
    request = Request(max_examples=config.data.batch_size, num_timesteps_sampled=few)
    out = run_folder.evaluations_path(workdir) / "smoke"
    for job in prepare(workdir, config, request, bound=out, overwrite=True, data=data):
        job()
    return True


def _checked_chain(
    workdir: pathlib.Path, config: Config, request: Request
) -> tuple[np.ndarray, int]:
    """Return the bound's timesteps, as far as they are known, and the number of strata."""
    kind = kind_of(config.data)
    if not kind.has_levels:
        raise BadRequest(
            f"--likelihood is for images on 256 levels, but the run in {workdir} is of "
            f"{kind.name}; --ode evaluates their density"
        )
    if (request.shard or request.merge) and request.spacing == AUTO:
        raise BadRequest("--shard and --merge: --spacing auto is chosen by one process")
    chain = _chain(config, request)
    total = len(chain)
    num_strata = request.num_timesteps_sampled or total
    if not 1 <= num_strata <= total:
        name = "which is process.num_timesteps"
        if request.steps:
            name = "the different timesteps of --steps"
        raise BadRequest(
            f"--num_timesteps_sampled {num_strata} must be in 1 .. {total}, {name}"
        )
    return chain, num_strata


def _partial(
    out: pathlib.Path, about: dict[str, Any], request: Request, subject: _Subject
) -> Partial:
    partial = Partial(out, about, request.shard)
    if request.merge and _finished(partial) is None:
        partial.merge(subject.examples.num_batches)
    return partial


def _finished(partial: Partial) -> dict[str, Any] | None:
    """Return the contents of P.json, if it has the whole result of this request."""
    found = None if partial.folder.exists() else partial.finished()
    return found if found is not None and is_whole(found) else None


def _claimed(
    partial: Partial,
    results: list[pathlib.Path],
    overwrite: bool,
    run: Callable[[], dict[str, Any]],
) -> Callable[[], dict[str, Any]]:
    """Return `run`, or a function that reports that it is done already."""
    found = None if overwrite else _finished(partial)
    if not processes.of_first(found is not None):
        partial.claim(results, overwrite, "--out")
        return run

    def done() -> dict[str, Any]:
        result = found or {}  # The first process has found it.
        if result:
            path = result_path(partial.out, ".json")
            say(f"{path} has the result of this request already: {in_words(result)}")
        return result

    return done


def _bound(
    workdir: pathlib.Path,
    request: Request,
    subject: _Subject,
    partial: Partial,
    chain: np.ndarray,
    num_strata: int,
) -> dict[str, Any]:
    config = subject.config
    with locks.locked(partial.folder, "writing to"):
        if request.steps and request.spacing == AUTO:
            chain = auto_timesteps.choose(
                workdir,
                config,
                subject.weights,
                request.steps,
                variance=config.process.variance,
                clip=True,
                beside=partial.out.parent / run_folder.auto_timesteps_path(workdir).name,
            )
        chain = chain[::-1].astype(np.int32)
        model = _over(subject.model, chain) if request.steps else subject.model
        bound = Bound(model, subject.mesh, num_strata, seed=request.seed)

        def measure(batch: Batch, indices: np.ndarray, on_progress: Any) -> np.ndarray:
            terms = bound.terms(
                subject.weights.params, batch, indices, subject.examples.size, on_progress
            )
            return _packed(terms)

        rows = over_examples(
            partial,
            "likelihood",
            subject.examples,
            num_strata,
            measure,
        )
        if not rows:
            return {}
        terms = combined([_unpacked(row, num_strata) for row in rows])
        return write_bound(partial, terms, chain)


def _over(model: Model, chain: np.ndarray) -> Model:
    """The model of the process that is seen at these timesteps alone, rising."""

    def apply_fn(params, x_t, i, *arguments, **options):
        return model.apply_fn(params, x_t, jnp.asarray(chain)[i], *arguments, **options)

    process = respaced(model.process, chain[::-1])
    return dataclasses.replace(model, process=process, apply_fn=apply_fn)


def _flow(request: Request, subject: _Subject, partial: Partial) -> dict[str, Any]:
    kind = kind_of(subject.config.data)
    flow = Flow(
        subject.model,
        subject.mesh,
        request.ode_steps,
        dequantize=kind.has_levels,
        seed=request.seed,
    )

    def measure(batch: Batch, indices: np.ndarray, on_progress: Any) -> np.ndarray:
        return flow.bits(
            subject.weights.params, batch, indices, subject.examples.size, on_progress
        )

    with locks.locked(partial.folder, "writing to"):
        calls = CALLS_PER_STEP * request.ode_steps
        rows = over_examples(partial, "ode", subject.examples, calls, measure)
        if not rows:
            return {}
        bits = np.concatenate(rows)
        of = "x_0, by way of x at t = 0" if kind.has_levels else "x at t = 0"
        return write_flow(partial, bits, of)


def _chain(config: Config, request: Request) -> np.ndarray:
    """The timesteps of the chain, as far as they are known before they are chosen."""
    total = config.process.num_timesteps
    if not request.steps:
        return np.arange(total - 1, -1, -1.0)
    if not 2 <= request.steps <= total:
        raise BadRequest(
            f"--steps {request.steps} must be in 2 .. {total}, which is "
            "process.num_timesteps"
        )
    wanted = dataclasses.replace(
        config.sampling, timesteps=(), steps=request.steps, spacing=request.spacing
    )
    schedule = build.make_schedule(config.process)
    chain = build_sampler.make_timesteps(schedule, build_sampler.before_choice(wanted))
    if (chain % 1).any():
        raise BadRequest(
            f"--spacing {request.spacing} has times between the timesteps, where the bound "
            "has no terms; take another one"
        )
    return np.unique(chain)[::-1]  # ddim_quadratic repeats some.


def _results(
    workdir: pathlib.Path, out: pathlib.Path, suffixes: tuple[str, ...]
) -> list[pathlib.Path]:
    results = [result_path(out, suffix) for suffix in suffixes]
    for path in results:
        if run_folder.is_part(workdir, path) or path.is_dir():
            what = "is a folder" if path.is_dir() else "belongs to the run"
            raise BadRequest(f"--out {out}: {path} {what}; give another --out")
    return results


def _subject(
    workdir: pathlib.Path, config: Config, request: Request, data: DataSet | None
) -> _Subject:
    check_data_there(workdir, config)
    plan = make_plan(config, data)
    mesh = devices.make_mesh()
    weights = load_from_run(
        workdir, config, request.weights, devices.replicated(mesh), step=request.step
    )
    say(f"weights: {weights.kind} of step {weights.step:,}")
    plan = load_data(plan)
    check_same_data(workdir, plan.config, plan.data)
    split = plan.data.split(request.split)
    if not len(split):
        raise BadRequest(f"--split {request.split} of {config.data.source} has no examples")
    most = request.max_examples or len(split)
    examples = select(kind_of(config.data), split, most, config.data.batch_size, mesh)
    about = {
        "run": str(workdir),
        **identity_of(weights),
        **hashes_of(config),
        "split": request.split,
        "num_examples": len(examples.chosen),
        "batch_size": examples.size,
        "variance": config.process.variance,
        "seed": request.seed,
        "devices": devices.describe_devices(),
    }
    return _Subject(
        config,
        plan.model,
        weights,
        mesh,
        examples,
        about,
    )


def _packed(terms: BatchTerms) -> np.ndarray:
    return np.concatenate([terms.terms, terms.squared_errors, [terms.prior], terms.bits])


def _unpacked(row: np.ndarray, num_strata: int) -> BatchTerms:
    terms, errors, rest = np.split(row, [num_strata, 2 * num_strata])
    return BatchTerms(rest[1:], float(rest[0]), terms, errors)
