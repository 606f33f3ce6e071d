"""The likelihood of a trained run over a data set, in files.

The t and the noise of an image depend on the seed and its number alone, so an interrupted
evaluation continues (measurement.py), batch by batch; at the end the parts become P.json,
and of the bound also P.csv and P.png.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment, parallel, runs, sampling, step_choice
from diffusion_jax.config import Config, to_json
from diffusion_jax.data.sources import Source, fixed_choice
from diffusion_jax.evaluation.bound import (
    BatchTerms,
    Bound,
    combined,
    rate_distortion,
    standard_error,
)
from diffusion_jax.evaluation.flow import CALLS_PER_STEP, Flow
from diffusion_jax.evaluation.timestep_scan import strata
from diffusion_jax.measurement import batch_size, over_images
from diffusion_jax.partial import Partial, result_path
from diffusion_jax.reporting import pictures
from diffusion_jax.samplers.steps import AUTO
from diffusion_jax.schedules import Schedule, respaced
from diffusion_jax.training.plan import load_data, make_plan
from diffusion_jax.training.weights import fingerprint, load_from_run
from diffusion_jax.validation import BadRequest

SPLITS = ("held_out", "train")
_TABLE_ROWS = 10  # Of the table that is printed; the .csv has all.


@dataclasses.dataclass
class Request:
    """What is to be evaluated.

    Attributes:
      split: "held_out" or "train".
      max_examples: of it; 0 is all. A fixed choice.
      weights: of `training.weights.check_kind`.
      seed: of t and noise.
      num_timesteps_sampled: of the bound: M of `evaluation.bound`; 0 is every timestep.
      steps, spacing: of the bound: of a chain over fewer timesteps; 0 is all T.
      ode_steps: of the flow.
    """

    split: str = "held_out"
    max_examples: int = 0
    weights: str = "ema"
    seed: int = 0
    num_timesteps_sampled: int = 0
    steps: int = 0
    spacing: str = "trailing"
    ode_steps: int = 50


class _Subject(NamedTuple):
    """What is evaluated, and on what."""

    config: Config
    schedule: Schedule
    apply_fn: Callable[..., jax.Array]
    params: Any
    mesh: jax.sharding.Mesh
    images: Source
    chosen: np.ndarray
    size: int
    about: dict[str, Any]


def prepare_bound(
    workdir: pathlib.Path,
    config: Config,
    request: Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
) -> Callable[[], dict[str, Any]]:
    """The variational bound of a run's newest checkpoint, with all its terms.

    Args:
      workdir: the run.
      config: its config.
      request: of what.
      out: P of P.json (the figures, and how they came about), P.csv (a row for each
        stratum of timesteps) and P.png (the curves).
      overwrite: replace files that exist.

    Returns:
      A function that does it and returns what P.json says; if P.json is of the very same
      request, it only says so.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    if not config.data.image_size:
        raise BadRequest(
            f"--likelihood: the run in {workdir} is of points; the bound has L_0 of images "
            "on 256 levels (--ode has the density of points)"
        )
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
    results = _results(workdir, out, (".png", ".csv", ".json"))
    subject = _subject(workdir, config, request)
    about = {
        **subject.about,
        "num_timesteps_sampled": num_strata,
        "steps": total,
        "spacing": request.spacing if request.steps else "all",
    }
    partial = Partial(out, about)

    def run() -> dict[str, Any]:
        return _bound(workdir, request, subject, partial, chain, num_strata)

    return _claimed(partial, results, overwrite, run)


def _claimed(
    partial: Partial,
    results: list[pathlib.Path],
    overwrite: bool,
    run: Callable[[], dict[str, Any]],
) -> Callable[[], dict[str, Any]]:
    """`run`, or what says that it is done already."""
    found = None if overwrite or partial.folder.exists() else partial.finished()
    if found is None:
        partial.claim(results, overwrite, "--out")
        return run

    def done() -> dict[str, Any]:
        path = result_path(partial.out, ".json")
        print(f"{path} is of the same request already: {_in_words(found)}")
        return found

    return done


def _bound(
    workdir: pathlib.Path,
    request: Request,
    subject: _Subject,
    partial: Partial,
    chain: np.ndarray,
    num_strata: int,
) -> dict[str, Any]:
    config, about = subject.config, subject.about
    with runs.locked(partial.folder, "writing to"):
        if request.steps and request.spacing == AUTO:
            chain = step_choice.choose(
                workdir,
                config,
                subject.params,
                {k: about[k] for k in ("checkpoint_step", "weights", "weights_sha256")},
                request.steps,
                variance_type=config.process.variance,
                clip=True,
            )
        chain = chain[::-1].astype(np.int32)
        apply_fn, schedule = subject.apply_fn, subject.schedule
        if request.steps:
            schedule = respaced(schedule, chain[::-1])

            def apply_fn(params, x_t, i, *arguments, **options):
                t = jnp.asarray(chain)[i]
                return subject.apply_fn(params, x_t, t, *arguments, **options)

        bound = Bound(
            config, apply_fn, schedule, subject.mesh, num_strata, seed=request.seed
        )

        def measure(x0: np.ndarray, indices: np.ndarray, on_progress: Any) -> np.ndarray:
            return _packed(
                bound.terms(subject.params, x0, indices, subject.size, on_progress)
            )

        rows = over_images(
            partial,
            "likelihood",
            subject.images,
            subject.chosen,
            subject.size,
            num_strata,
            measure,
        )
        terms = combined([_unpacked(row, num_strata) for row in rows])
        return _finish(partial, terms, chain)


def prepare_flow(
    workdir: pathlib.Path,
    config: Config,
    request: Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
) -> Callable[[], dict[str, Any]]:
    """The likelihood under the probability-flow ODE; arguments as above, P.json alone."""
    results = _results(workdir, out, (".json",))
    subject = _subject(workdir, config, request)
    about = {**subject.about, "ode_steps": request.ode_steps}
    partial = Partial(out, about)

    def run() -> dict[str, Any]:
        return _flow(request, subject, partial)

    return _claimed(partial, results, overwrite, run)


def _flow(request: Request, subject: _Subject, partial: Partial) -> dict[str, Any]:
    config = subject.config
    flow = Flow(
        config,
        subject.apply_fn,
        subject.schedule,
        subject.mesh,
        request.ode_steps,
        seed=request.seed,
    )

    def measure(x0: np.ndarray, indices: np.ndarray, on_progress: Any) -> np.ndarray:
        return flow.bits(subject.params, x0, indices, subject.size, on_progress)

    with runs.locked(partial.folder, "writing to"):
        bits = np.concatenate(
            over_images(
                partial,
                "ode",
                subject.images,
                subject.chosen,
                subject.size,
                CALLS_PER_STEP * request.ode_steps,
                measure,
            )
        )
        of = "x_0, by way of x at t = 0" if config.data.image_size else "x at t = 0"
        figures = {**_mean(bits), "likelihood_of": of, **partial.request}
        partial.mark_finishing()
        _write_json(partial, figures)
        partial.remove()
    print(f"probability-flow ODE: {_in_words(figures)}, of {of}")
    print("wrote", result_path(partial.out, ".json"))
    return figures


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
    schedule = experiment.make_schedule(config.process)
    chain = sampling.make_timesteps(schedule, sampling.before_choice(wanted))
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
        if runs.is_part(workdir, path) or path.is_dir():
            raise BadRequest(f"--out {out}: {path} is taken; give another --out")
    return results


def _subject(workdir: pathlib.Path, config: Config, request: Request) -> _Subject:
    plan = make_plan(config)
    mesh = parallel.make_mesh()
    params, _, step = load_from_run(
        workdir, config, request.weights, parallel.replicated(mesh)
    )
    data = load_data(plan).data
    images = data.held_out if request.split == "held_out" else data.train
    if not len(images):
        raise BadRequest(f"--split {request.split} of {config.data.source} holds no images")
    most = request.max_examples or len(images)
    chosen = np.sort(fixed_choice(len(images), most))
    size = batch_size(len(chosen), config.data.batch_size, mesh)
    about = {
        "run": str(workdir),
        "checkpoint_step": step,
        "config_sha256": hashlib.sha256(to_json(config).encode()).hexdigest(),
        "split": request.split,
        "weights": request.weights,
        "weights_sha256": fingerprint(params),
        "num_examples": len(chosen),
        "batch_size": size,
        "variance": config.process.variance,
        "seed": request.seed,
        "devices": parallel.describe_devices(),
    }
    return _Subject(
        config, plan.schedule, plan.apply_fn, params, mesh, images, chosen, size, about
    )


def _packed(terms: BatchTerms) -> np.ndarray:
    return np.concatenate([terms.terms, terms.squared_errors, [terms.prior], terms.bits])


def _unpacked(row: np.ndarray, num_strata: int) -> BatchTerms:
    terms, errors, rest = np.split(row, [num_strata, 2 * num_strata])
    return BatchTerms(rest[1:], float(rest[0]), terms, errors)


def _mean(bits: np.ndarray) -> dict[str, Any]:
    error = standard_error(bits)
    return {
        "bits_per_dim": float(bits.mean()),
        "standard_error": error if np.isfinite(error) else None,
    }


def _in_words(figures: dict[str, Any]) -> str:
    error = figures["standard_error"]
    more = "" if error is None else f" +- {error:.4f} (standard error)"
    return f"bits/dim {figures['bits_per_dim']:.4f}{more}"


def _write_json(partial: Partial, figures: dict[str, Any]) -> None:
    note = json.dumps(figures, indent=2) + "\n"
    result_path(partial.out, ".json").write_text(note)


def _finish(partial: Partial, terms: BatchTerms, chain: np.ndarray) -> dict[str, Any]:
    """Writes the files; `chain` are the timesteps, rising."""
    curve = rate_distortion(terms, len(chain))
    figures = {
        **_mean(terms.bits),
        "prior_L_T": terms.prior,
        "rate": float(terms.prior + terms.terms[1:].sum()),
        "distortion_L_0": float(terms.terms[0]),
        "rmse_of_the_last_step": float(curve.rmse[-1]),
        **partial.request,
        "timesteps": [] if partial.request["spacing"] == "all" else chain[::-1].tolist(),
    }
    edges = strata(len(chain), len(terms.terms))
    header = "t_first,t_last,bits_per_dim,rate_before,rmse"
    rows = [
        (
            chain[edges[j]],
            chain[edges[j + 1] - 1],
            terms.terms[j],
            curve.rate[-1 - j],
            curve.rmse[-1 - j],
        )
        for j in reversed(range(len(terms.terms)))
    ]
    lines = [f"{a},{b},{c:.9g},{d:.9g},{e:.6g}" for a, b, c, d, e in rows]
    partial.mark_finishing()
    picture = result_path(partial.out, ".png")
    pictures.save_rate_distortion(picture, chain[curve.t], curve.rate, curve.rmse)
    result_path(partial.out, ".csv").write_text("\n".join([header, *lines]) + "\n")
    _write_json(partial, figures)
    partial.remove()
    _print_table(rows, figures)
    print("wrote", *(result_path(partial.out, s) for s in (".json", ".csv", ".png")))
    return figures


def _print_table(rows: list[tuple], figures: dict[str, Any]) -> None:
    print("    t   bits/dim so far   RMSE of x_0 (of 255)")
    shown = np.unique(np.linspace(0, len(rows) - 1, _TABLE_ROWS).round().astype(int))
    for i in shown:
        first, _, _, rate, rmse = rows[i]
        print(f"{first:5,} {rate:17.5f} {rmse:14.2f}")
    print(
        f"{_in_words(figures)}: rate {figures['rate']:.4f}, of which L_T "
        f"{figures['prior_L_T']:.2g}, and distortion L_0 {figures['distortion_L_0']:.4f}"
    )
