"""Results of an evaluation of the likelihood: P.json, P.csv, P.png, and a table."""

import json
from typing import Any

import numpy as np

from diffusion_jax.evaluation.bound import BatchTerms, rate_distortion, standard_error
from diffusion_jax.evaluation.timestep_scan import strata
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import pictures
from diffusion_jax.runtime import files
from diffusion_jax.runtime.text import say

_TABLE_ROWS = 10  # Rows of the table that is printed; the .csv has all.


def _figures(bits: np.ndarray) -> dict[str, Any]:
    error = standard_error(bits)
    return {
        "bits_per_dim": float(bits.mean()),
        "standard_error": error if np.isfinite(error) else None,
    }


def is_whole(figures: dict[str, Any]) -> bool:
    """Return whether a P.json holds what `in_words` says."""
    bits, error = (figures.get(name) for name in ("bits_per_dim", "standard_error"))
    return isinstance(bits, float) and isinstance(error, float | None)


def in_words(figures: dict[str, Any]) -> str:
    """The figure of a P.json, with its standard error."""
    error = figures["standard_error"]
    more = "" if error is None else f" +- {error:.4f} (standard error)"
    return f"bits/dim {figures['bits_per_dim']:.4f}{more}"


def _write_json(partial: Partial, figures: dict[str, Any]) -> None:
    note = json.dumps(figures, indent=2) + "\n"
    files.write_whole(result_path(partial.out, ".json"), note)


def write_bound(partial: Partial, terms: BatchTerms, chain: np.ndarray) -> dict[str, Any]:
    """Write all files of a bound; `chain` are its timesteps, rising."""
    curve = rate_distortion(terms, len(chain))
    figures = {
        **_figures(terms.bits),
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
    files.write_whole(result_path(partial.out, ".csv"), "\n".join([header, *lines]) + "\n")
    _write_json(partial, figures)
    partial.remove()
    _print_table(rows, figures)
    say("wrote", *(result_path(partial.out, s) for s in (".json", ".csv", ".png")))
    return figures


def _print_table(rows: list[tuple], figures: dict[str, Any]) -> None:
    say("    t   bits/dim so far   RMSE of x_0 (of 255)")
    shown = np.unique(np.linspace(0, len(rows) - 1, _TABLE_ROWS).round().astype(int))
    for i in shown:
        first, _, _, rate, rmse = rows[i]
        say(f"{first:5,} {rate:17.5f} {rmse:14.2f}")
    say(
        f"{in_words(figures)}: rate {figures['rate']:.4f}, of which L_T "
        f"{figures['prior_L_T']:.2g}, and distortion L_0 {figures['distortion_L_0']:.4f}"
    )


def write_flow(partial: Partial, bits: np.ndarray, of: str) -> dict[str, Any]:
    """Write P.json of the likelihood under the flow, of what `of` names."""
    figures = {**_figures(bits), "likelihood_of": of, **partial.request}
    partial.mark_finishing()
    _write_json(partial, figures)
    partial.remove()
    say(f"probability-flow ODE: {in_words(figures)}, of {of}")
    say("wrote", result_path(partial.out, ".json"))
    return figures
