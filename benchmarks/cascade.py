"""Figures of a cascade on MNIST, 8x8 to 32x32, and of its conditioning augmentation.

Needs three runs (`make bench-cascade` trains those that are missing):

    python train.py --config mnist8
    python train.py --config mnist8to32
    python train.py --config mnist8to32 --config.loss.aug_level=0 \
        --config.sampling.aug_level=0 --workdir runs/mnist8to32_plain

`python benchmarks/cascade.py upscaled` refines 1,000 held-out digits, and `augmentation`
1,000 samples of the run mnist8. FD is the Frechet distance to 9,000 other held-out digits,
in the 64 features of the last hidden layer of a classifier, which is fitted here to digits
that are trained on. Standard errors are over the samples of a set, by halves.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from record import ROOT, Figure, record
from run_samples import drawn

from diffusion_jax.data import sources
from diffusion_jax.data.low_res import reduced
from diffusion_jax.evaluation.frechet_distance import (
    FrechetDistance,
    standard_error_by_halves,
)
from diffusion_jax.evaluation.moments import merged, moments_of
from diffusion_jax.jobs import sample
from diffusion_jax.jobs.origins import Upscale
from diffusion_jax.runs import folder as run_folder

BASE, REFINING, PLAIN = "mnist8", "mnist8to32", "mnist8to32_plain"
NUM = 1000
BASE_STEPS = 100  # Timesteps of DDPM for the samples of the run mnist8.
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
NUM_FITTED = 20_000
EPOCHS = 8
BLOCK = 100  # Samples of a block, of which halves are made.


class Digits(NamedTuple):
    """Real digits: those that are trained on, 1,000 that are held out, and 9,000 others."""

    train: np.ndarray
    labels: np.ndarray
    chosen: np.ndarray
    others: np.ndarray
    other_labels: np.ndarray


@functools.cache
def digits() -> Digits:
    """Return the digits of the run that refines, uint8 [N, 32, 32, 1]."""
    config = run_folder.read_config(ROOT / "runs" / REFINING).data
    config = dataclasses.replace(config, labels=True)
    data = sources.into_memory(sources.open_data_set(config, prepare=False), config)
    assert data.labels is not None and data.held_out_labels is not None
    held_out = np.asarray(data.held_out)
    order = np.random.default_rng(0).permutation(len(held_out))
    mine, others = order[:NUM], order[NUM:]
    return Digits(
        np.asarray(data.train),
        data.labels,
        held_out[mine],
        held_out[others],
        data.held_out_labels[others],
    )


@functools.cache
def classifier():
    """Return a classifier of two hidden layers, fitted to real digits in seconds."""
    from sklearn.neural_network import MLPClassifier

    chosen = np.random.default_rng(1).permutation(len(digits().train))[:NUM_FITTED]
    fitted = MLPClassifier((128, 64), random_state=0, learning_rate_init=1e-3)
    for _ in range(EPOCHS):
        rows = inputs(digits().train[chosen])
        fitted.partial_fit(rows, digits().labels[chosen], classes=np.arange(10))
    return fitted


def inputs(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / np.float32(255)


def features(images: np.ndarray) -> np.ndarray:
    """Return the last hidden layer of the classifier, [N, 64]."""
    fitted, x = classifier(), inputs(images)
    for kernel, bias in list(zip(fitted.coefs_, fitted.intercepts_, strict=True))[:-1]:
        x = np.maximum(x @ kernel + bias, 0)
    return x


@functools.cache
def distance_to_real() -> FrechetDistance:
    return FrechetDistance(moments_of(features(digits().others)))


def distance(images: np.ndarray) -> tuple[float, float]:
    """Return FD of 1,000 images, and its standard error."""
    rows = features(images)
    blocks = [moments_of(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
    error = standard_error_by_halves(blocks, distance_to_real())
    return distance_to_real()(merged(*blocks)), error


def refined(run: str, low_res: np.ndarray, level: float) -> np.ndarray:
    """Return the image that a run makes of each low-resolution one."""
    origin = Upscale("upscale", "low_res", low_res)
    return drawn(run, sample.Request(NUM, origin=origin), aug_level=level)


def low_res_of(images: np.ndarray) -> np.ndarray:
    return reduced(images, (8, 8))


def bicubic(low_res: np.ndarray) -> np.ndarray:
    """Return images of 32x32 by bicubic interpolation, as Pillow does it."""
    large = [
        Image.fromarray(x[..., 0]).resize((32, 32), Image.Resampling.BICUBIC)
        for x in low_res
    ]
    return np.stack([np.asarray(x) for x in large])[..., None]


def nearest_of_training(low_res: np.ndarray) -> np.ndarray:
    """Return the training digit whose low resolution is nearest to each given one."""
    train, found = digits().train, []
    rows = low_res_of(train).reshape(len(train), -1).astype(np.float32)
    norms = np.square(rows).sum(axis=1)
    for wanted in np.array_split(low_res.reshape(len(low_res), -1), 20):
        found.append(np.argmin(norms - 2 * wanted.astype(np.float32) @ rows.T, axis=1))
    return train[np.concatenate(found)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of the mean squared error over all, in dB."""
    error = np.square(a.astype(float) - b.astype(float)).mean()
    return float(10 * np.log10(255**2 / error))


def told_apart() -> Iterator[Figure]:
    """Share of held-out digits that the classifier tells: the distance rests on it."""
    share = classifier().score(inputs(digits().others), digits().other_labels)
    yield "held-out digits told by the classifier", float(share), ">= 0.95"


def upscaled() -> Iterator[Figure]:
    """Held-out digits, refined, beside what needs no network."""
    yield from told_apart()
    low_res = low_res_of(digits().chosen)
    nearest = nearest_of_training(low_res)
    limits = {}
    for name, images in (
        ("bicubic", bicubic(low_res)),
        ("bicubic of the nearest training digit's low resolution", None),
        ("nearest training digit by low resolution", nearest),
        ("the held-out digits themselves", digits().chosen),
    ):
        images = bicubic(low_res_of(nearest)) if images is None else images
        limits[name], error = distance(images)
        yield f"FD: {name}", limits[name], ""
        yield f"FD: {name}, standard error", error, ""
    most = min(value for name, value in limits.items() if name.startswith("bicubic"))
    for level in (0.0, 0.1):
        images = refined(REFINING, low_res, level)
        found, error = distance(images)
        name = f"held-out digits refined, level {level:g}"
        yield f"FD: {name}", found, f"< {most:.4g}"
        yield f"FD: {name}, standard error", error, ""
        agrees = psnr(low_res_of(images), low_res)
        yield f"PSNR of the low resolution: {name}", agrees, "" if level else ">= 20"


def augmentation() -> Iterator[Figure]:
    """Samples of the base run, refined with and without conditioning augmentation."""
    yield from told_apart()
    low_res = drawn(BASE, sample.Request(NUM), steps=BASE_STEPS)
    plain, error = distance(refined(PLAIN, low_res, 0.0))
    yield "FD: cascade, trained without noise", plain, ""
    yield "FD: cascade, trained without noise, standard error", error, ""
    for level in LEVELS:
        found, error = distance(refined(REFINING, low_res, level))
        wanted = f"< {plain:.4g}" if level == 0.1 else ""
        yield f"FD: cascade, level {level:g}", found, wanted
        yield f"FD: cascade, level {level:g}, standard error", error, ""


if __name__ == "__main__":
    every = (upscaled, augmentation)
    wanted = sys.argv[1:] or [part.__name__ for part in every]
    record(*(part for part in every if part.__name__ in wanted))
