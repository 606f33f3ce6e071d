"""Pictures that are drawn while a run trains: sample grids and trajectories."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.data.kinds import kind_of
from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.batch import LOW_RES
from diffusion_jax.diffusion.forward_process import q_trajectory
from diffusion_jax.experiment.setup import Plan
from diffusion_jax.runs import events, pictures
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.ema import average_names
from diffusion_jax.runtime import devices
from diffusion_jax.runtime.interrupts import Stop, Stopped
from diffusion_jax.runtime.progress import ProgressBar
from diffusion_jax.runtime.stopwatch import Stopwatch
from diffusion_jax.runtime.text import say
from diffusion_jax.training.drawing import Drawing, held_out_cond
from diffusion_jax.training.train_state import TrainState

SAMPLE_GRID = "sample grid"  # The sampling of one, on a stopwatch.
_STRIP_FRAMES = 10
_AGREE = 0.02  # Mean difference of two sets of samples, over the range from -1 to 1.


def preview_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of the picture of the samples at this step."""
    return run_folder.samples_path(workdir) / f"step_{step:06d}.png"


def strip_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of the strip of the chain of these samples, if it is kept."""
    return run_folder.samples_path(workdir) / f"step_{step:06d}_chain.png"


class Previews:
    """Pictures drawn with the params of a run, each batch split over its mesh."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        mesh: jax.sharding.Mesh,
        stop: Stop,
        bar: ProgressBar,
        stopwatch: Stopwatch,
    ):
        """Make the sampler, which is compiled for the first picture.

        Args:
          plan: of the run.
          workdir: the run's folder.
          mesh: the devices.
          stop: ends a picture that is being drawn when a stop is wanted.
          bar: of the training; the progress of a picture is shown below it.
          stopwatch: gets the seconds of each sample grid.
        """
        self._stopwatch = stopwatch
        self._plan, self._config, self._workdir = plan, plan.config, workdir
        self._mesh, self._stop, self._bar = mesh, stop, bar
        self._kind = kind_of(plan.config.data)
        self._drawing = Drawing(plan, mesh, stop, plan.preview, _STRIP_FRAMES)

    def draw(self, state: TrainState, step: int) -> None:
        """Draw samples/step_N.png, and reverse.png: noise becoming samples.

        Beside step_N.png are the further files that the kind of example has.

        With `training.keep_strips`, samples/step_N_chain.png is what reverse.png is now.

        The samples are drawn with the main average; while those of the raw weights differ
        clearly, they are shown beside them. Nothing is drawn if the run was stopped.
        """
        average = average_names(self._config.ema)[0]
        calls = self._drawing.table.num_rows
        both = devices.whole_everywhere(self._mesh, (state.params, state.emas[average]))
        try:
            with (
                self._stopwatch.timed(SAMPLE_GRID),
                self._bar.part("drawing", 2 * calls, "calls") as bar,
            ):
                raw, _ = self._samples(both[0], bar, 0)
                ema, frames = self._samples(both[1], bar, calls)
        except Stopped:
            return
        if not np.isfinite(ema).all():
            said = f"the samples at step {step:,} are not finite and are not drawn"
            say(said)
            events.add(self._workdir, events.WARNING, step, said)
            return
        shown = self._drawing.frames
        titles = [f"{done} of {shown[-1]} steps" for done in shown]
        strip = self._save_strip("reverse.png", frames, titles)
        if self._config.training.keep_strips:
            pictures.save_png(strip_path(self._workdir, step), strip)
        path, samples = preview_path(self._workdir, step), self._kind.from_network(ema)
        further = {s: path.with_name(path.stem + s) for s in self._kind.suffixes}
        self._kind.save(further, samples)
        # This picture comes last: where it exists, all of them do.
        if not np.isfinite(raw).all() or np.abs(raw - ema).mean() < 2 * _AGREE:
            drawn = {"samples": ema}
        else:
            drawn = {"raw weights": raw, "moving average": ema}
        picture = self._picture(drawn)
        pictures.save_png(path, picture)

    def _picture(self, drawn: dict[str, np.ndarray]) -> Image.Image:
        """Return a picture of samples, by their names, with what they refine beside."""
        samples = {name: self._kind.from_network(x) for name, x in drawn.items()}
        sets = self._given | samples
        if len(sets) == 1:
            return self._kind.draw(next(iter(sets.values())))
        return self._kind.draw_side_by_side(sets)

    def _samples(
        self, params: Any, bar: ProgressBar, done: int
    ) -> tuple[np.ndarray, np.ndarray]:
        indices = np.arange(self._drawing.size, dtype=np.int32)
        samples, frames = self._drawing.draw(
            params, indices, self._cond, lambda n: bar.report(done + n)
        )
        wanted = self._plan.preview.batch_size
        return samples[:wanted], frames[:, :wanted]

    @functools.cached_property
    def _cond(self) -> dict[str, np.ndarray]:
        """The conditions of the samples: the classes in turn, or those of examples."""
        data, indices = self._config.data, np.arange(self._drawing.size, dtype=np.int32)
        if data.low_res:
            return held_out_cond(self._plan, indices)
        return {guidance.LABEL: indices % data.num_classes} if data.labels else {}

    @functools.cached_property
    def _given(self) -> dict[str, np.ndarray]:
        """Images that the samples refine, by their name in a picture; {} without such."""
        if not self._config.data.low_res:
            return {}
        held_out = self._plan.data.split("held_out")
        wanted = np.arange(self._plan.preview.batch_size) % len(held_out)
        return {"given": held_out[wanted].cond[LOW_RES]}

    def draw_data(self) -> None:
        """Draw data.png: the first examples to train on, as many as a sample grid has."""
        train = self._plan.data.split("train")
        wanted = np.arange(min(self._plan.preview.batch_size, len(train)))
        picture = self._kind.draw(np.asarray(train[wanted].x))
        pictures.save_png(self._workdir / "data.png", picture)

    def draw_forward(self) -> None:
        """Draw forward.png: a few clean examples noised by steps of q(x_t | x_{t-1})."""
        process, train = self._plan.model.process, self._plan.data.split("train")
        wanted = np.arange(min(self._kind.num_forward, len(train)))
        batch = jax.tree.map(jnp.asarray, train[wanted])
        x0 = self._kind.network_batch(batch).x
        shown = np.linspace(0, process.num_timesteps, _STRIP_FRAMES).round().astype(int)

        @jax.jit
        def noised(x0: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(0), 2**32 - 3)  # As in `init_state`.
            return q_trajectory(process, key, x0, (shown[1:] - 1).tolist())

        frames = np.concatenate([np.asarray(x0)[None], np.asarray(noised(x0))])
        titles = [f"t = {t}" for t in shown]
        self._save_strip("forward.png", frames, titles)

    def _save_strip(self, name: str, frames: np.ndarray, titles: list[str]) -> Image.Image:
        strip = self._kind.draw_strip(self._kind.from_network(frames), titles)
        pictures.save_png(self._workdir / name, strip)
        return strip
