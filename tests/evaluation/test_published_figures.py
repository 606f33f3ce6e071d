"""The figures that torch-fidelity publishes for itself, where its weights and data are.

    DIFFUSION_JAX_INCEPTION=weights-inception-2015-12-05-6726825d.pth \\
    DIFFUSION_JAX_CIFAR10=cifar-10-batches-bin \\
    python -m pytest -m slow tests/evaluation/test_published_figures.py

The second is the folder of the "binary version" of the lossless CIFAR-10. 5,000 examples of
each split are drawn by RandomState(2020).
"""

import os
import pathlib

import numpy as np
import pytest

from diffusion_jax.evaluation import feature_networks
from diffusion_jax.evaluation.extractor import Extractor
from diffusion_jax.evaluation.quality import FeatureSet, Sets, figures
from helpers import mesh_of

PLACES = ("DIFFUSION_JAX_INCEPTION", "DIFFUSION_JAX_CIFAR10")
NUM = 5000
SPLITS = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["test_batch.bin"],
}


def subset(folder, split):
    """Return examples of a split, whose files have a label and 3 planes in each record."""
    bytes_ = b"".join((folder / name).read_bytes() for name in SPLITS[split])
    records = np.frombuffer(bytes_, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    chosen = np.random.RandomState(2020).choice(len(records), NUM, replace=False)
    return records[chosen, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_the_self_check_of_torch_fidelity():
    """FID 10.3233274, precision 0.6852 and recall 0.6908 of 5,000 against 5,000.

    Its KID, -2.908e-5 with a spread of 1.023e-4, and its score, 10.75 with 0.58, depend on
    the subsets that it draws.
    """
    paths = [os.environ.get(name) for name in PLACES]
    if not all(paths):
        pytest.skip(f"{' and '.join(PLACES)} do not name the weights and the data")
    network = feature_networks.inception(pathlib.Path(paths[0]))
    assert network.sha256 == feature_networks.INCEPTION_SHA256
    extract, size = Extractor(network, mesh_of(1)), network.num_features
    train, test = (extract(subset(pathlib.Path(paths[1]), split)) for split in SPLITS)
    found = figures(
        Sets(
            FeatureSet([train[:, :size]], NUM),
            FeatureSet([test[:, :size]], NUM),
            logits=[train[:, size:]],
        ),
        "inception",
    )
    assert found["FD-inception"].value == pytest.approx(10.3233274, abs=1e-3)
    assert found["precision-inception"].value == pytest.approx(0.6852, abs=1e-3)
    assert found["recall-inception"].value == pytest.approx(0.6908, abs=1e-3)
    assert found["KID-inception"].value == pytest.approx(-2.908e-5, abs=4 * 1.023e-4)
    assert found["IS-inception"].value == pytest.approx(10.75051, abs=0.58)
