"""The bound on the likelihood of a trained run over a data set, in files.

The t and the noise of an image depend on the seed and its number alone, so an interrupted
evaluation continues (partial.py), batch by batch; at the end the parts become P.json,
P.csv and P.png.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment, parallel, runs
from diffusion_jax.config import Config, to_json
from diffusion_jax.data.sources import fixed_choice
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.evaluation.bound import (
    BatchTerms,
    Bound,
    combined,
    rate_distortion,
    standard_error,
    strata,
)
from diffusion_jax.interrupts import Stopped, stop_on_interrupt
from diffusion_jax.partial import Partial, result_path
from diffusion_jax.reporting import pictures
from diffusion_jax.reporting.progress import ProgressBar
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
      num_timesteps_sampled: M of `evaluation.bound`; 0 is every timestep.
      weights: of `training.weights.check_kind`.
      seed: of t and noise.
    """

    split: str = "held_out"
    max_examples: int = 0
    num_timesteps_sampled: int = 0
    weights: str = "ema"
    seed: int = 0


def assess(
    workdir: pathlib.Path,
    config: Config,
    request: Request,
    *,
    out: pathlib.Path,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Bits per dimension of a run's newest checkpoint, with all terms.

    Args:
      workdir: the run.
      config: its config.
      request: of what.
      out: P of P.json (the figures, and how they came about), P.csv (a row for each
        stratum of timesteps) and P.png (the curves).
      overwrite: replace files that exist.

    Returns:
      What P.json says.

    Raises:
      BadRequest: before anything is compiled or written.
    """
    total = config.process.num_timesteps
    num_strata = request.num_timesteps_sampled or total
    if not config.data.image_size:
        raise BadRequest(
            f"--likelihood: the run in {workdir} is of points; the bound has L_0 of images "
            "on 256 levels"
        )
    if not 1 <= num_strata <= total:
        raise BadRequest(
            f"--num_timesteps_sampled {num_strata} must be in 1 .. {total}, which is "
            "process.num_timesteps"
        )
    results = [result_path(out, s) for s in (".png", ".csv", ".json")]
    for path in results:
        if runs.is_part(workdir, path) or path.is_dir():
            raise BadRequest(f"--out {out}: {path} is taken; give another --out")
    plan = make_plan(config)
    mesh = parallel.make_mesh()
    params, _, step = load_from_run(
        workdir, config, request.weights, parallel.replicated(mesh)
    )
    data = load_data(plan).data
    images = data.held_out if request.split == "held_out" else data.train
    most = request.max_examples or len(images)
    chosen = np.sort(fixed_choice(len(images), most))
    num_batches = -(-len(chosen) // config.data.batch_size)
    size = -(-len(chosen) // num_batches)
    size = -(-size // mesh.size) * mesh.size
    num_batches = -(-len(chosen) // size)
    about = {
        "run": str(workdir),
        "checkpoint_step": step,
        "config_sha256": hashlib.sha256(to_json(config).encode()).hexdigest(),
        **dataclasses.asdict(request),
        "weights_sha256": fingerprint(params),
        "num_timesteps_sampled": num_strata,
        "num_examples": len(chosen),
        "batch_size": size,
        "variance": config.process.variance,
        "devices": parallel.describe_devices(),
    }
    partial = Partial(out, about)
    partial.claim(results, overwrite, "--out")
    _, apply_fn = experiment.make_network(config)
    bound = Bound(config, apply_fn, plan.schedule, mesh, num_strata, seed=request.seed)
    with (
        runs.locked(partial.folder, "writing to"),
        stop_on_interrupt(print, sigterm=False) as stop,
    ):
        first = partial.first_missing()
        bar = ProgressBar(
            "likelihood", num_batches * num_strata, "calls", first * num_strata
        )
        bar.say(
            f"{len(chosen):,} images of split {request.split}, {num_strata:,} network "
            f"calls each, {size} at a time; compiling"
        )

        def progress(i: int):
            def report(done: int) -> None:
                bar.report(i * num_strata + done)
                stop.check()

            return report

        try:
            for i in range(first, num_batches):
                here = chosen[i * size : (i + 1) * size]
                x0 = np.asarray(to_model_range(jnp.asarray(images[here])))
                terms = bound.terms(params, x0, here, size, progress(i))
                partial.save(f"{i:06d}", _packed(terms))
        except Stopped:
            bar.say(
                f"{i} of {num_batches} batches are in {partial.folder}; the same command, "
                "without --overwrite, goes on from there"
            )
            raise KeyboardInterrupt from None
        finally:
            bar.close()
        parts = [
            _unpacked(partial.load(f"{i:06d}"), num_strata) for i in range(num_batches)
        ]
        return _finish(partial, combined(parts), total)


def _packed(terms: BatchTerms) -> np.ndarray:
    return np.concatenate([terms.terms, terms.squared_errors, [terms.prior], terms.bits])


def _unpacked(row: np.ndarray, num_strata: int) -> BatchTerms:
    terms, errors, rest = np.split(row, [num_strata, 2 * num_strata])
    return BatchTerms(rest[1:], float(rest[0]), terms, errors)


def _finish(partial: Partial, terms: BatchTerms, total: int) -> dict[str, Any]:
    curve = rate_distortion(terms, total)
    mean, error = float(terms.bits.mean()), standard_error(terms.bits)
    figures = {
        "bits_per_dim": mean,
        "standard_error": error if np.isfinite(error) else None,
        "prior_L_T": terms.prior,
        "rate": float(terms.prior + terms.terms[1:].sum()),
        "distortion_L_0": float(terms.terms[0]),
        "rmse_of_the_last_step": float(curve.rmse[-1]),
        **partial.request,
    }
    edges = strata(total, len(terms.terms))
    header = "t_first,t_last,bits_per_dim,rate_before,rmse"
    rows = [
        (edges[j], edges[j + 1] - 1, terms.terms[j], curve.rate[-1 - j], curve.rmse[-1 - j])
        for j in reversed(range(len(terms.terms)))
    ]
    lines = [f"{a},{b},{c:.9g},{d:.9g},{e:.6g}" for a, b, c, d, e in rows]
    partial.mark_finishing()
    pictures.save_rate_distortion(result_path(partial.out, ".png"), *curve)
    result_path(partial.out, ".csv").write_text("\n".join([header, *lines]) + "\n")
    note = json.dumps(figures, indent=2) + "\n"
    result_path(partial.out, ".json").write_text(note)
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
    error = figures["standard_error"]
    more = "" if error is None else f" +- {error:.4f}"
    print(
        f"bits/dim {figures['bits_per_dim']:.4f}{more} (standard error): rate "
        f"{figures['rate']:.4f}, of which L_T {figures['prior_L_T']:.2g}, and distortion "
        f"L_0 {figures['distortion_L_0']:.4f}"
    )
