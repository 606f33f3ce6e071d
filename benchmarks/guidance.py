"""Figures of guidance on the digits, read by a support vector machine, and of its cost.

Needs the runs digits_conditional and digits, and the classifier of the examples:

    python train.py --config digits_conditional
    python train.py --config digits
    python examples/digit_classifier.py

The machine is fitted to the real training digits. All samples are those of DDPM in 100
timesteps. The two ratios of time need no run, but a machine that does nothing else:
`python benchmarks/guidance.py cost` measures them alone; the others are `labels`, `priors`.
"""

import os
import sys
from collections.abc import Iterator

import numpy as np
from record import ROOT, Figure, record
from run_samples import drawn
from samplers import KEY, prepared, ratio

from diffusion_jax.data.embedded import NUM_HELD_OUT_DIGITS, labelled_digits
from diffusion_jax.experiment import build_sampler
from diffusion_jax.jobs import guiding, sample
from diffusion_jax.runtime import devices
from diffusion_jax.samplers import methods
from diffusion_jax.samplers.chain import Samples

DIGITS = tuple(range(10))
ASKED = 7
STEPS = 100


def machine():
    """Return a support vector machine fitted to the training digits, and its accuracy."""
    from sklearn.svm import SVC

    images, labels = labelled_digits()
    rows = images.reshape(len(images), -1) / 16
    fitted = SVC(C=10, gamma=0.001)
    fitted.fit(rows[:-NUM_HELD_OUT_DIGITS], labels[:-NUM_HELD_OUT_DIGITS])
    held_out = slice(-NUM_HELD_OUT_DIGITS, None)
    return fitted, float(fitted.score(rows[held_out], labels[held_out]))


def told(images: np.ndarray) -> np.ndarray:
    """Return the digits that the machine sees in uint8 [N, 8, 8, 1]."""
    return machine()[0].predict(images.reshape(len(images), -1) / 16)


def labels() -> Iterator[Figure]:
    """Digits asked for by class, and all of them."""
    yield "held-out digits told by the SVM", machine()[1], ">= 0.97"
    for scale, target in ((1.0, ">= 0.85"), (2.0, ">= 0.98")):
        request = sample.Request(1000, label=DIGITS)
        images = drawn("digits_conditional", request, guidance=scale, steps=STEPS)
        agrees = told(images) == np.arange(1000) % 10
        yield f"digits asked for, of 1,000, s = {scale:g}", agrees.mean(), target
    request = sample.Request(1000)
    images = drawn("digits_conditional", request, guidance=0.0, steps=STEPS)
    shares = np.bincount(told(images), minlength=10) / 1000
    real = labelled_digits()[1][:-NUM_HELD_OUT_DIGITS]
    distance = np.abs(shares - np.bincount(real) / len(real)).sum() / 2
    yield "share of the rarest digit, of 1,000, s = 0", shares.min(), ">= 0.04"
    yield "total variation of the digits from the data's, s = 0", distance, "<= 0.12"


def priors() -> Iterator[Figure]:
    """The priors of the examples, on the run without labels.

    The wanted differences are about the mean of |d| for d with the variance that each
    example states: 0.05 of a pixel and its mirror image, 0.01 of twice a mean.
    """
    example = ROOT / "examples"
    os.environ["DIGIT"], os.environ["HELD_OUT"] = str(ASKED), "0"

    def with_prior(name: str, scale: float, num: int) -> np.ndarray:
        prior = guiding.PriorFile(example / f"{name}_prior.py", scale) if scale else None
        return drawn("digits", sample.Request(num, prior=prior), guidance=1.0, steps=STEPS)

    for scale in (0.0, 1.0, 2.0, 4.0):
        found = told(with_prior("classifier", scale, 500)) == ASKED
        target = ">= 0.9" if scale == 2 else ""
        yield f"digit {ASKED} of 500, classifier_prior, s = {scale:g}", found.mean(), target
    wanted = _means(labelled_digits()[0][-1:])
    for scale in (0.0, 1.0):
        error = np.abs(_means(with_prior("low_resolution", scale, 128)) - wanted).mean()
        target = "<= 0.05" if scale else ""
        yield f"error of 2x2 means, low_resolution_prior, s = {scale:g}", error, target
    for scale in (0.0, 1.0):
        images = with_prior("symmetry", scale, 128) / 127.5
        difference = np.abs(images - images[:, :, ::-1]).mean()
        target = "<= 0.18" if scale else ""
        yield f"|x - its mirror image|, symmetry_prior, s = {scale:g}", difference, target


def _means(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4)) / 127.5


def cost() -> Iterator[Figure]:
    """Chains of 100 steps, the network of the digits with labels, batch 64."""
    config, model, params, make_table = prepared("digits_conditional")
    config.data.num_classes = 10
    table, mesh, samples = make_table(100), devices.make_mesh(), Samples(KEY, np.arange(64))
    label = np.arange(64, dtype=np.int32) % 10

    def chain(guidance: float, interval: tuple[float, ...] = ()):
        config.sampling.guidance = guidance
        config.sampling.guidance_interval = interval
        made = guiding.make(config, model, None, None, devices.replicated(mesh))
        options = build_sampler.chain_options(config)._replace(guidance=made.guidance)
        sampler = build_sampler.make_sampler(config, model, mesh, options)
        cond = guiding.cond_of(config, made, None, label, 64)
        rows = methods.with_interval(table, *interval) if interval else table
        return lambda: sampler(params, rows, samples, cond)

    level = table.level
    half = float(np.median(np.sqrt(level.sigma_squared / level.alpha_squared)))
    plain, guided, limited = chain(1.0), chain(2.0), chain(2.0, (0.0, half))
    what = "over unguided, digits, batch 64, 100 steps"
    yield f"guided {what}", ratio(guided, plain, 15), "<= 2.05"
    yield f"guided in half of the steps {what}", ratio(limited, plain, 15), "<= 1.6"


if __name__ == "__main__":
    every = (cost, labels, priors)
    wanted = sys.argv[1:] or [part.__name__ for part in every]
    record(*(part for part in every if part.__name__ in wanted))
