"""The pictures of docs/, from runs/digits, runs/digits_conditional and runs/swiss_roll.

docs/images/samplers.png: the same eight seeds by each method in 10, 20 and 50 timesteps.
docs/images/langevin.png: the swiss roll by annealed Langevin, DDPM and DDIM.
docs/images/conditional_digits.png: each class at four scales of guidance, the same seeds.
docs/images/inpainting.png: digits whose lower half is painted again, a row for each.
docs/images/priors.png: the same seeds with each prior of examples/.

`python benchmarks/pictures.py conditional_digits priors` draws these two alone.
"""

import dataclasses
import os
import sys

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from record import ROOT

from diffusion_jax.config import SamplingConfig
from diffusion_jax.data.embedded import labelled_digits
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.jobs import guiding, origins
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.weights import load_from_run
from diffusion_jax.runtime import devices
from diffusion_jax.samplers.chain import Samples, start_chain

IMAGES = ROOT / "docs" / "images"
SHOWN = 8
COUNTS = (10, 20, 50)
METHODS = {
    "DDPM": {"sampler": "ddpm"},
    "DDPM, fixed large": {"sampler": "ddpm", "variance": "fixed_large"},
    "DDIM": {"sampler": "ddim"},
    "DDIM, eta 0.5": {"sampler": "ddim", "eta": 0.5},
    "DPM-Solver++ 2M": {"sampler": "dpmpp_2m"},
    "DPM-Solver++ 2M SDE": {"sampler": "dpmpp_2m", "eta": 1.0},
    "DPM-Solver++ 3M": {"sampler": "dpmpp_3m"},
    "UniPC": {"sampler": "unipc"},
    "Euler, churn 5": {"sampler": "euler", "churn": 5.0},
    "Heun": {"sampler": "heun"},
    "DDIM + Langevin": {"sampler": "ddim", "langevin_steps": 1},
}


class Run:
    """A trained run, to draw from in many ways."""

    def __init__(self, name: str):
        folder = ROOT / "runs" / name
        self.config = run_folder.read_config(folder)
        self.mesh = devices.make_mesh()
        whole = devices.replicated(self.mesh)
        self.params, _, _ = load_from_run(folder, self.config, "ema", whole)
        self.model = build.make_model(self.config)
        self.sampler = build_sampler.make_sampler(self.config, self.model, self.mesh)

    def guided(self, indices: np.ndarray, labels=None, prior=None, **fields) -> np.ndarray:
        """Samples of these indices of seed 0, by label or with a `guiding.PriorFile`."""
        sampling = SamplingConfig(**fields)
        config = dataclasses.replace(self.config, sampling=sampling)
        whole = devices.replicated(self.mesh)
        made = guiding.make(config, self.model, None, prior, whole)
        options = build_sampler.chain_options(config)
        options = options._replace(guidance=made.guidance, prior=made.prior)
        sampler = build_sampler.make_sampler(config, self.model, self.mesh, options)
        table = build_sampler.make_table(self.model, sampling)
        cond = guiding.cond_of(config, made, prior, labels, len(indices))
        samples = Samples(jax.random.key(0), indices)
        return np.asarray(sampler(self.params, table, samples, cond)[0])

    def draw(self, count: int, **fields) -> tuple[np.ndarray, int]:
        """(samples of seed 0, network calls of each)."""
        table = build_sampler.make_table(self.model, SamplingConfig(**fields))
        found, _ = self.sampler(
            self.params, table, Samples(jax.random.key(0), np.arange(count)), {}
        )
        return np.asarray(found), table.num_rows


def samplers() -> None:
    """Rows of digits: a method each, three groups of columns."""
    run = Run("digits")
    figure = Figure(figsize=(10, 0.5 * len(METHODS) + 0.6), layout="constrained")
    grid = figure.subplots(len(METHODS), len(COUNTS), squeeze=False)
    for row, (name, fields) in zip(grid, METHODS.items(), strict=True):
        for axes, count in zip(row, COUNTS, strict=True):
            images, calls = run.draw(SHOWN, steps=count, **fields)
            line = np.concatenate(list(images[..., 0]), axis=1)
            axes.imshow(line, cmap="gray", vmin=-1, vmax=1, aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            label = "" if calls == count else f"{calls} calls"
            axes.set_xlabel(label, fontsize=7, labelpad=1)
            if axes is row[0]:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axes, count in zip(grid[0], COUNTS, strict=True):
        axes.set_title(f"{count} timesteps", fontsize=10)
    FigureCanvasAgg(figure).print_png(IMAGES / "samplers.png")


def langevin() -> None:
    """2,000 points by each method, from the same noise."""
    run = Run("swiss_roll")
    shown = {
        "annealed Langevin": {"sampler": "langevin", "langevin_steps": 20},
        "DDPM": {"sampler": "ddpm"},
        "DDIM": {"sampler": "ddim"},
    }
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    row = figure.subplots(1, 1 + len(shown))
    one = SamplingConfig(sampler="ddim", steps=1)
    steps = build_sampler.make_table(run.model, one)
    noise = start_chain(steps, Samples(jax.random.key(0), np.arange(2000)), (2,)).x
    panels = [("noise", np.asarray(noise))]
    for name, fields in shown.items():
        points, calls = run.draw(2000, steps=100, **fields)
        panels.append((f"{name}, {calls:,} calls", points))
    for axes, (title, points) in zip(row, panels, strict=True):
        axes.scatter(*points.T, s=1.5, lw=0)
        axes.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[])
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=9)
    FigureCanvasAgg(figure).print_png(IMAGES / "langevin.png")


def block_of(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images [N, H, W, 1] as one, in rows of `columns`, with a dark frame each."""
    framed = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    rows = len(framed) // columns
    block = framed.reshape(rows, columns, *framed.shape[1:]).transpose(0, 2, 1, 3)
    return block.reshape(rows * framed.shape[1], -1)


def blocks(images: dict[str, np.ndarray], columns: int) -> Figure:
    """Return a figure with a titled block of `columns` columns for each set of images."""
    rows = len(next(iter(images.values()))) // columns
    size = (0.3 * (columns + 0.4) * len(images), 0.3 * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(images), squeeze=False)[0]
    for axes, (title, found) in zip(grid, images.items(), strict=True):
        axes.imshow(block_of(found, columns), cmap="gray", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
    return figure


def conditional_digits() -> None:
    """A row for each class and a block of columns for each scale."""
    run, columns = Run("digits_conditional"), 8
    labels = np.repeat(np.arange(10, dtype=np.int32), columns)
    indices = np.tile(np.arange(columns), 10)  # The same seeds for each class as well.
    images = {
        f"s = {scale:g}" + ("" if scale else ", without the class"): run.guided(
            indices, labels, steps=250, guidance=scale
        )
        for scale in (0.0, 1.0, 2.0, 4.0)
    }
    FigureCanvasAgg(blocks(images, columns)).print_png(IMAGES / "conditional_digits.png")


def inpainting() -> None:
    """A row for each of eight real digits: what is known of it, and seven samples."""
    run, columns = Run("digits_conditional"), 7
    digits = labelled_digits()[0][-8:]
    is_known = np.arange(8)[:, None] < np.array([4] * 8)
    origin = origins.Inpaint("inpaint", "", digits, is_known)
    sampling = SamplingConfig(steps=100)
    config = dataclasses.replace(run.config, sampling=sampling)
    options = build_sampler.chain_options(config)
    options = options._replace(hook=origin.hook(options.hook))
    sampler = build_sampler.make_sampler(config, run.model, run.mesh, options)
    table = origin.table(run.model, sampling)
    indices = np.arange(len(digits) * columns)
    samples = Samples(jax.random.key(0), indices, origin.start(table, indices))
    cond = {**origin.cond(indices), "label": np.full(len(indices), 10, np.int32)}
    found = np.asarray(sampler(run.params, table, samples, cond)[0])
    found = found.reshape(columns, len(digits), 8, 8, 1).swapaxes(0, 1)
    given = np.asarray(PICTURES.to_network(origin.shown(PICTURES, np.arange(8))))
    images = {"known": given, "samples": found.reshape(-1, 8, 8, 1)}
    figure = Figure(figsize=(0.3 * (columns + 2.4), 2.7), layout="constrained")
    grid = figure.subplots(1, 2, width_ratios=[1, columns])
    for axes, (title, shown) in zip(grid, images.items(), strict=True):
        axes.imshow(block_of(shown, len(shown) // 8), cmap="gray", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=7)
    FigureCanvasAgg(figure).print_png(IMAGES / "inpainting.png")


def priors() -> None:
    """The same 40 seeds without a prior, and with each of examples/."""
    run, indices = Run("digits"), np.arange(40)
    os.environ["DIGIT"], os.environ["HELD_OUT"] = "7", "0"
    shown = {
        "without": None,
        "digit 7": "classifier",
        "known means of 2x2": "low_resolution",
        "mirror image": "symmetry",
    }
    images = {}
    for title, name in shown.items():
        file = ROOT / "examples" / f"{name}_prior.py"
        prior = guiding.PriorFile(file, 2.0 if name == "classifier" else 1.0)
        images[title] = run.guided(indices, prior=prior if name else None, steps=250)
    FigureCanvasAgg(blocks(images, 8)).print_png(IMAGES / "priors.png")


if __name__ == "__main__":
    every = (samplers, langevin, conditional_digits, inpainting, priors)
    for draw in every:
        if draw.__name__ in (sys.argv[1:] or [f.__name__ for f in every]):
            draw()
