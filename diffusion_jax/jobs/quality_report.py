"""Results of an evaluation of quality: P.json, P.png, and a table."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from diffusion_jax.config import SamplingConfig
from diffusion_jax.evaluation.quality import Figure
from diffusion_jax.jobs.resumable import Partial, result_path
from diffusion_jax.runs import pictures
from diffusion_jax.runtime import files
from diffusion_jax.runtime.text import say


class Report(NamedTuple):
    """Results of an evaluation.

    Attributes:
      figures: by their names; means where there are several seeds.
      of_seeds: those of each seed.
      picture: samples beside the nearest examples of the reference.
    """

    figures: dict[str, Figure]
    of_seeds: Sequence[dict[str, Figure]]
    picture: Image.Image


def write(whole: Partial, parts: Sequence[Partial], report: Report) -> dict[str, Any]:
    """Write P.png and P.json, delete the folders of the parts, and print the figures.

    Args:
      whole: has P, and what P.json says beside the figures.
      parts: where features of samples were kept.
      report: what was found.

    Returns:
      The contents of P.json.
    """
    several = len(report.of_seeds) > 1
    note: dict[str, Any] = {
        **whole.request,
        "error_bar": "of the mean over seeds" if several else "over other examples",
        "figures": {name: figure._asdict() for name, figure in report.figures.items()},
    }
    if several:
        note["figures_by_seed"] = [
            {name: figure.value for name, figure in each.items()}
            for each in report.of_seeds
        ]
    for part in parts:
        part.mark_finishing()
    paths = [result_path(whole.out, suffix) for suffix in (".png", ".json")]
    pictures.save_png(paths[0], report.picture)
    files.write_whole(paths[1], json.dumps(note, indent=2) + "\n")
    for part in parts:
        part.remove()
    print_figures(note)
    say("wrote", *paths)
    return note


def print_figures(note: dict[str, Any]) -> None:
    """Print the figures of a P.json with all that they are of."""
    say(_about(note))
    figures = note["figures"]
    width = max(map(len, figures), default=0)
    for name, figure in figures.items():
        error = figure["standard_error"]
        bar = "no error bar" if error is None else f"+- {error:.2g}"
        num = f"{figure['num_samples']:,}"
        if figure["num_reference"]:
            num += f" against {figure['num_reference']:,}"
        say(f"{name:<{width}}  {figure['value']:>10.5g} {bar:<14} n {num}")


def _about(note: dict[str, Any]) -> str:
    network = f"network {note['network']} (SHA-256 {note['network_sha256'][:12]}...)"
    reference = f"reference: {note['num_reference']:,} examples, {note['reference']}"
    if "samples" in note:
        return f"samples: {note['samples']['name']}; {reference}; {network}"
    seeds = ", ".join(map(str, note["seeds"]))
    how = f"{note['sampler']}, {note['steps']:,} steps, seed {seeds}, "
    how += f"weights {note['weights']} of step {note['checkpoint_step']:,}"
    usual = SamplingConfig()
    for field in ("eta", "churn", "variance", "spacing", "threshold", "guidance"):
        if note.get(field, getattr(usual, field)) != getattr(usual, field):
            how += f", {field} {note[field]}"
    if note.get("label"):
        how += f", classes {', '.join(map(str, note['label']))}"
    return f"samples: {note['num_samples']:,} by {how}; {reference}; {network}"
