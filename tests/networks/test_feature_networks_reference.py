"""Inception and EfficientNet-Lite0 beside those of torch, whose results are in fixtures.

The weights are random; `make bench-features` compares real ones. See feature_weights.py.
"""

import math

import jax
import numpy as np
import pytest

from diffusion_jax.networks import efficientnet_lite, inception
from feature_weights import (
    EFFICIENTNET,
    INCEPTION,
    random_images,
    random_tensors,
    read_expected,
)

NETWORKS = {
    "inception": (inception, inception.Inception, INCEPTION, (2, 32, 40)),
    "efficientnet": (
        efficientnet_lite,
        efficientnet_lite.EfficientNetLite0,
        EFFICIENTNET,
        (2, 64, 48),
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A module, its network, the shapes of its tensors in torch, and what torch found."""
    module, network, path, images = NETWORKS[request.param]
    shapes, expected = read_expected(path)
    return module, network("cpu"), shapes, expected, random_images(*images)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_features_and_logits_are_those_of_torch(case):
    module, network, shapes, expected, images = case
    params = module.params_of(random_tensors(shapes))
    features, logits = jax.jit(network.apply)({"params": params}, images)
    assert expected["features"].std() > 0.01  # They have not vanished.
    assert_close(features, expected["features"])
    assert_close(logits, expected["logits"])
    assert features.dtype == logits.dtype == np.float32


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def test_numbers_of_parameters():
    """Keras publishes 21,768,352 for Inception without its last layer and without scales of
    batch norm; timm 4.65 million for EfficientNet-Lite0 with them.
    """
    found = {
        name: module.params_of(random_tensors(read_expected(path)[0]))
        for name, (module, _, path, _) in NETWORKS.items()
    }
    assert count({**found["inception"], "fc": {}}) == 21_768_352
    small = found["efficientnet"]
    num_scales = count([x for x in jax.tree.leaves(small) if x.ndim == 1]) - 1000
    assert round((count(small) + num_scales) / 1e6, 2) == 4.65


@pytest.mark.parametrize("network", NETWORKS)
def test_other_weights_are_refused_by_a_name(network):
    module, _, path, _ = NETWORKS[network]
    shapes, _ = read_expected(path)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    module.params_of({k: x for k, x in zeros.items() if not k.endswith("tracked")})
    for name in (list(zeros)[0], list(zeros)[-1]):
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            module.params_of({k: x for k, x in zeros.items() if k != name})
        with pytest.raises(ValueError, match=f"tensor '{name}' has the shape"):
            module.params_of({**zeros, name: np.zeros((7, *shapes[name]), np.float32)})
    with pytest.raises(ValueError, match="1 further tensors, such as 'AuxLogits.fc.bias'"):
        module.params_of({**zeros, "AuxLogits.fc.bias": np.zeros(3, np.float32)})
