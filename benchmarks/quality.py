"""Figures of the metrics of quality: what they cost, the floor, and damaged images.

    python benchmarks/quality.py cost
    python benchmarks/quality.py damaged DIR

DIR has the prepared CIFAR-10 of tensorflow-datasets. FD-efficientnet-lite0 is computed
between 3,000 test images and 5,000 others: the floor, which depends on both numbers. Then
the 3,000 are blurred, compressed as JPEG, or given noise. With a copy of the set that was
compressed before, no figure can be compared with a published one.
"""

import io
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator

import jax
import numpy as np
from PIL import Image, ImageFilter
from record import ROOT, Figure, record

from diffusion_jax.config import DataConfig
from diffusion_jax.data import sources
from diffusion_jax.evaluation import feature_networks
from diffusion_jax.evaluation.extractor import BATCH, Extractor
from diffusion_jax.evaluation.moments import moments_of
from diffusion_jax.evaluation.quality import FeatureSet, Sets, frechet, kernel
from diffusion_jax.networks import inception
from diffusion_jax.runtime import devices

sys.path.insert(0, str(ROOT / "tests"))
from feature_weights import INCEPTION, random_tensors

NUM, NUM_REFERENCE = 3000, 5000
ROUNDS = 5


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def inception_of_random_weights() -> feature_networks.FeatureNetwork:
    shapes = json.loads(str(np.load(INCEPTION)["shapes"]))
    params = inception.params_of(random_tensors(shapes))
    network = inception.Inception(jax.default_backend())

    def apply(params, x):
        return feature_networks.Features(*network.apply({"params": params}, x))

    return feature_networks.FeatureNetwork("inception", "", 2048, 1008, params, apply)


def cost() -> Iterator[Figure]:
    """Moments beside features, and the memory of moments of many features."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8)
    for network in (inception_of_random_weights(), feature_networks.efficientnet_lite0()):
        extract, name = Extractor(network, devices.make_mesh()), network.name
        rows = extract(images)[:, : network.num_features]
        many = np.tile(rows, (1024 // BATCH, 1))
        shares = []
        for _ in range(ROUNDS):
            of_features = seconds(lambda: extract(images)) / BATCH  # noqa: B023
            shares.append(seconds(lambda: moments_of(many)) / len(many) / of_features)  # noqa: B023
        yield f"{name}: moments over features, time", statistics.median(shares), "<= 0.02"
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for num in (20_000, 80_000):
            path = f"{folder}/{num}.npy"
            there = np.lib.format.open_memmap(path, "w+", np.float32, (num, 256))
            for begin in range(0, num, 1000):
                there[begin : begin + 1000] = np.random.default_rng(begin).normal(
                    size=(1000, 256)
                )
            mapped = np.load(path, mmap_mode="r")
            blocks = [mapped[i : i + BATCH] for i in range(0, num, BATCH)]
            tracemalloc.start()
            FeatureSet(blocks, num).moments  # noqa: B018
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        yield (
            "memory of moments, 80,000 over 20,000 features",
            peaks[1] / peaks[0],
            "<= 1.05",
        )


def blurred(image: Image.Image, strength: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(strength))


def compressed(image: Image.Image, strength: float) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(strength))
    return Image.open(file).convert("RGB")


def noised(image: Image.Image, strength: float) -> Image.Image:
    x = np.asarray(image, float)
    seed = int(x.sum())  # Each image has noise of its own, always the same.
    noise = np.random.default_rng(seed).normal(scale=strength, size=x.shape)
    return Image.fromarray(np.clip(np.rint(x + noise), 0, 255).astype(np.uint8))


DAMAGES = {
    "Gaussian blur, radius": (blurred, (0.5, 1.0, 2.0)),
    "JPEG, quality": (compressed, (50, 25, 10)),
    "Gaussian noise, levels": (noised, (5, 10, 20)),
}


def damaged() -> Iterator[Figure]:
    config = DataConfig(
        source="tfds:cifar10", path=sys.argv[2], image_size=(32,), channels=3
    )
    test = sources.open_data_set(config, prepare=False).held_out
    order = np.random.default_rng(0).permutation(len(test))
    images = test[order[:NUM]]
    network = feature_networks.efficientnet_lite0()
    extract = Extractor(network, devices.make_mesh())

    def features(x: np.ndarray) -> FeatureSet:
        return FeatureSet([extract(x)[:, : network.num_features]], len(x))

    reference = features(test[order[NUM : NUM + NUM_REFERENCE]])

    def compared(name: str, x: np.ndarray) -> Iterator[Figure]:
        sets = Sets(features(x), reference)
        for figure, found in {**frechet(sets), **kernel(sets)}.items():
            title = f"{figure}-{network.name}: {name}"
            yield title, found.value, ""
            if found.standard_error is not None:
                yield f"{title}, standard error", found.standard_error, ""

    yield from compared("other images, undamaged", images)
    for name, (damage, strengths) in DAMAGES.items():
        for strength in strengths:
            changed = [damage(Image.fromarray(x), strength) for x in images]
            yield from compared(
                f"{name} {strength:g}", np.stack(list(map(np.asarray, changed)))
            )


if __name__ == "__main__":
    record({"cost": cost, "damaged": damaged}[sys.argv[1]])
