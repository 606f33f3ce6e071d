"""Our feature networks beside those of PyTorch: the same features, and how fast.

    make bench-features

Inception has random weights, the same for both, as its real ones are not in any package;
EfficientNet-Lite0 has its real ones. First both are shown to give the same features. Then
each side has a process of its own, and they take turns (see compare.py). While other work
runs, threads wait for each other, those of PyTorch more than those of XLA. `--one-core`
compares on one core; its CPU seconds depend little on other work.

    .venv-parity/bin/python benchmarks/against/feature_networks.py --fixtures

writes what the tests compare with, to tests/fixtures.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import features_theirs as theirs
import jax
import numpy as np
import torch
from record import Figure, record
from worker import Worker

from diffusion_jax.networks import efficientnet_lite, inception, resizing
from diffusion_jax.runtime import torch_files
from feature_weights import EFFICIENTNET, FIXTURES, INCEPTION, random_images, random_tensors

ROUNDS, BATCH, SIZE = 3, 32, 32
VARIANTS = ("eager", "channels_last", "compile channels_last")


def write_fixtures() -> None:
    """Write what torch says, for tests without torch."""
    network = theirs.torch_fidelity()
    shapes = theirs.shapes_of(network)
    images = random_images(2, 32, 40)
    x = (theirs.resized(images, inception.SIZE) - 128) / 128
    features = theirs.features_of_pytorch_fid(shapes, x)
    with torch.no_grad():
        logits = network(torch.tensor(images).permute(0, 3, 1, 2))[1]
    np.savez_compressed(
        INCEPTION, features=features, logits=logits, shapes=json.dumps(shapes)
    )
    images = random_images(2, 64, 48)
    function = theirs.efficientnet(random=True)
    shapes = theirs.shapes_of(function.network)
    with torch.no_grad():
        features, logits = function(torch.tensor(images).permute(0, 3, 1, 2))
    np.savez_compressed(
        EFFICIENTNET, features=features, logits=logits, shapes=json.dumps(shapes)
    )
    grid = torch.arange(6).reshape(2, 3)
    tensors = {
        "half": grid.half() / 4,
        "bfloat16": torch.tensor([0.5, -3.0, 2.0**90], dtype=torch.bfloat16),
        "transposed": grid.double().T,
        "part": grid.int()[:, 2],
        "parameter": torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])),
        "count": torch.tensor(7),
    }
    for form in ("zip", "legacy"):
        path = FIXTURES / f"torch_{form}.pth"
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")


def gap(ours: object, of_torch: torch.Tensor) -> float:
    """The largest difference, in units of the largest of theirs."""
    expected = of_torch.numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def resizes() -> Iterator[Figure]:
    for size in (8, 32, 64, 299, 512):
        images = random_images(2, size, size)
        found = resizing.bilinear(images, (inception.SIZE, inception.SIZE))
        expected = theirs.resized(images, inception.SIZE).permute(0, 2, 3, 1).numpy()
        most = float(np.abs(np.asarray(found) - expected).max())
        yield f"resize from {size} to 299, largest difference in pixels", most, "<= 1e-4"


def features() -> Iterator[Figure]:
    network = theirs.torch_fidelity()
    shapes = theirs.shapes_of(network)
    params = {"params": inception.params_of(random_tensors(shapes))}
    for size in (32, 299):
        images = random_images(4, size, size)
        ours = jax.jit(inception.Inception("cpu").apply)(params, images)
        with torch.no_grad():
            expected = network(torch.tensor(images).permute(0, 3, 1, 2))
        alive = float((expected[0] > 0.01).float().mean())
        name = f"Inception, {size}x{size}"
        yield f"{name}: features that are not 0", alive, ">= 0.5"
        yield f"{name}: torch-fidelity's features", gap(ours[0], expected[0]), "<= 1e-5"
        yield f"{name}: torch-fidelity's logits", gap(ours[1], expected[1]), "<= 1e-5"
        x = (theirs.resized(images, inception.SIZE) - 128) / 128
        expected = theirs.features_of_pytorch_fid(shapes, x)
        yield f"{name}: pytorch-fid's features", gap(ours[0], expected), "<= 1e-5"
    tensors = torch_files.read_tensors(theirs.efficientnet_weights())
    params = {"params": efficientnet_lite.params_of(tensors)}
    images = random_images(4, 64, 48)
    ours = jax.jit(efficientnet_lite.EfficientNetLite0("cpu").apply)(params, images)
    with torch.no_grad():
        expected = theirs.efficientnet()(torch.tensor(images).permute(0, 3, 1, 2))
    yield "EfficientNet-Lite0: their features", gap(ours[0], expected[0]), "<= 1e-5"
    yield "EfficientNet-Lite0: their logits", gap(ours[1], expected[1]), "<= 1e-5"


def speed(where: str = "") -> Iterator[Figure]:
    for name in ("inception", "efficientnet-lite0"):
        network = name + where
        ours, best, mine = Worker("features_ours.py"), [], []
        with tempfile.TemporaryDirectory() as folder:
            asked = {"network": name, "batch": BATCH, "size": SIZE, "folder": folder}
            ours.ask(do="prepare", weights=str(theirs.efficientnet_weights()), **asked)
            for variant in VARIANTS:
                side = Worker("features_theirs.py")
                said = side.ask(do="prepare", variant=variant, **asked)
                assert said["gap"] < 1e-5, (network, variant, said)
                pairs = []
                for _ in range(ROUNDS):
                    pairs.append([x.ask(do="time", repeats=1) for x in (ours, side)])
                side.close()
                mine += [pair[0] for pair in pairs]
                best.append(
                    statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
                )
                rate = BATCH / statistics.median(pair[1]["seconds"] for pair in pairs)
                cpu = statistics.median(pair[1]["cpu"] for pair in pairs) / BATCH
                yield f"{network}: {variant}, images/s", rate, ""
                yield f"{network}: {variant}, CPU seconds per image", cpu, ""
                yield f"{network}: ours over {variant}, images/s", best[-1], ""
        ours.close()
        rate = BATCH / statistics.median(turn["seconds"] for turn in mine)
        cpu = statistics.median(turn["cpu"] for turn in mine) / BATCH
        yield f"{network}: ours, images/s", rate, ""
        yield f"{network}: ours, CPU seconds per image", cpu, ""
        yield f"{network}: ours over the best of theirs, images/s", min(best), ">= 0.8"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixtures", action="store_true", help="write those of the tests")
    parser.add_argument("--one-core", action="store_true", help="only the speed, on one")
    options = parser.parse_args()
    parts: list[Any] = [resizes, features, speed]
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        parts = [functools.partial(speed, ", one core")]
    if options.fixtures:
        write_fixtures()
    else:
        names = ("torch", "torch-fidelity", "pytorch-fid", "efficientnet-lite-pytorch")
        record(*parts, **{name: importlib.metadata.version(name) for name in names})
