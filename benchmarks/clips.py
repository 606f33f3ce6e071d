"""Figures of the clips of moving digits: how they move, and whether a digit stays itself.

Needs the run moving_digits (`python train.py --config moving_digits`); without a run,
`python benchmarks/clips.py data` gives the figures of the data themselves and of clips
that are wrong on purpose. 500 samples are drawn as the config says, of all digits in turn.

Motion: the centroid of a frame is the mean place of its pixels, weighted by their levels
(those below 16, the faintest ink of a real digit, count as 0); the displacement is the
length of the way of the centroid from one frame to the next. Its mean and its standard
deviation are over all pairs of frames of all clips, bounces included, and are given as
ratios to those of all clips to train on.

Label: a support vector machine, fitted to real training digits, sees each frame alone, as
the 10 by 10 pixels around the centroid. A clip keeps its label if all of its frames get the
same one. The machine is fitted to each digit at the nine places up to one pixel from the
centre, since the centroid of a sample is rounded.
"""

import functools
import sys
from collections.abc import Iterator

import numpy as np
from record import ROOT, Figure, record
from run_samples import drawn

from diffusion_jax.config import DataConfig
from diffusion_jax.data import embedded, sources
from diffusion_jax.jobs import sample
from diffusion_jax.runs import folder as run_folder

RUN, NUM = "moving_digits", 500
FAINTEST, HALF = 16, 5
WITHIN, KEPT = "0.85 to 1.15", ">= 0.9"


def centroids(clips: np.ndarray) -> np.ndarray:
    """Return the mean places (y, x) of the ink of uint8 [..., H, W, 1]; [..., 2]."""
    ink = np.where(clips[..., 0] < FAINTEST, 0, clips[..., 0]).astype(float)
    total = np.maximum(ink.sum((-2, -1)), 1)
    y = (ink.sum(-1) * np.arange(ink.shape[-2])).sum(-1) / total
    x = (ink.sum(-2) * np.arange(ink.shape[-1])).sum(-1) / total
    return np.stack([y, x], axis=-1)


def displacements(clips: np.ndarray) -> np.ndarray:
    """Return the lengths of the ways of the centroids of [N, F, H, W, 1]; [N, F - 1]."""
    return np.linalg.norm(np.diff(centroids(clips), axis=1), axis=-1)


def cut_out(frames: np.ndarray) -> np.ndarray:
    """Return the pixels around the centroids of uint8 [N, H, W, 1]; float64 [N, 100]."""
    places = np.floor(centroids(frames) + 0.5).astype(int)
    around = np.pad(frames[..., 0], ((0, 0), (HALF, HALF), (HALF, HALF)))
    cut = [
        image[y : y + 2 * HALF, x : x + 2 * HALF]
        for image, (y, x) in zip(around, places, strict=True)
    ]
    return np.reshape(cut, (len(cut), -1)) / 16


@functools.cache
def machine():
    """Return a support vector machine fitted to the training digits."""
    from sklearn.svm import SVC

    images, labels = embedded.labelled_digits()
    num = embedded.NUM_HELD_OUT_DIGITS
    framed = np.pad(images[:-num], ((0, 0), (4, 4), (4, 4), (0, 0)))
    cut = cut_out(framed).reshape(-1, 2 * HALF, 2 * HALF)
    shifted = [np.roll(cut, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    fitted = SVC(C=10, gamma=0.001)
    fitted.fit(np.reshape(shifted, (9 * len(cut), -1)), np.tile(labels[:-num], 9))
    return fitted


def labels_of(clips: np.ndarray) -> np.ndarray:
    """Return the label of each frame of uint8 [N, F, H, W, 1]; int [N, F]."""
    frames = clips.reshape(-1, *clips.shape[2:])
    return machine().predict(cut_out(frames)).reshape(clips.shape[:2])


def about(what: str, clips: np.ndarray, real: np.ndarray) -> Iterator[Figure]:
    """Compare clips with those to train on."""
    found, wanted = displacements(clips), displacements(real)
    yield f"mean displacement, {what} / data", found.mean() / wanted.mean(), WITHIN
    yield f"its standard deviation, {what} / data", found.std() / wanted.std(), WITHIN
    seen = labels_of(clips)
    kept = (seen == seen[:, :1]).all(1).mean()
    yield f"clips of one label, {what}", kept, KEPT


def data(seed: int = 0) -> Iterator[Figure]:
    """Held-out clips, which must meet the targets; and wrong ones, which must not."""
    config = DataConfig(source="moving_digits", image_size=(12,), num_frames=8)
    found = sources.open_data_set(config, seed)
    real, held_out = np.asarray(found.train), np.asarray(found.held_out)
    wanted = displacements(real)
    yield "mean displacement of the data, pixels per frame", wanted.mean(), ""
    yield "its standard deviation", wanted.std(), ""
    yield from about("held out", held_out, real)
    right = labels_of(held_out) == found.held_out_labels[:, None]
    yield "frames of held-out clips whose label is right", right.mean(), ">= 0.95"
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(8), (200, 1)), axis=1)
    in_another_order = np.take_along_axis(held_out, order[..., None, None, None], axis=1)
    for name, value, _ in about("frames shuffled", in_another_order, real):
        yield name, value, ""
    of_others = np.stack([np.roll(held_out[:, f], f, axis=0) for f in range(8)], axis=1)
    for name, value, _ in about("frames of other clips", of_others, real):
        yield name, value, ""


def data_of_run() -> np.ndarray:
    """Return the clips that the run was trained on."""
    config = run_folder.read_config(ROOT / "runs" / RUN)
    return np.asarray(sources.open_data_set(config.data, config.seed).train)


def samples() -> Iterator[Figure]:
    """Samples of the run moving_digits, of all digits in turn."""
    clips = drawn(RUN, sample.Request(NUM, label=tuple(range(10))))
    yield from about("samples", clips, data_of_run())
    asked = labels_of(clips) == np.arange(NUM)[:, None] % 10
    yield "frames of the class asked for", asked.mean(), ""


def without_class() -> Iterator[Figure]:
    """Samples of the same run, drawn without the class."""
    clips = drawn(RUN, sample.Request(NUM), guidance=0.0)
    for name, value, _ in about("samples without the class", clips, data_of_run()):
        yield name, value, ""


if __name__ == "__main__":
    parts = {"data": data, "samples": samples, "without_class": without_class}
    record(*[parts[name] for name in sys.argv[1:] or parts])
