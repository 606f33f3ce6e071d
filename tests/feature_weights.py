"""Weights and images of feature networks by a rule, the same with and without torch.

NumPy promises that the streams of RandomState stay as they are.
"""

import json
import pathlib
import zlib

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
INCEPTION = FIXTURES / "inception_features.npz"
EFFICIENTNET = FIXTURES / "efficientnet_lite0_features.npz"


def random_tensors(shapes):
    """Return tensors by name, such that activations of a network keep their size.

    Args:
      shapes: of the tensors, by name.
    """
    tensors = {}
    for name, shape in shapes.items():
        stream = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.array(0)
        elif len(shape) > 1:
            scale = np.sqrt(2 / np.prod(shape[1:]))
            tensors[name] = np.float32(scale * stream.standard_normal(shape))
        elif name.endswith(("running_var", ".weight")):
            tensors[name] = np.float32(stream.uniform(0.5, 1.5, shape))
        else:
            tensors[name] = np.float32(0.1 * stream.standard_normal(shape))
    return tensors


def random_images(num, height, width):
    """Return uint8 [num, height, width, 3]."""
    stream = np.random.RandomState(0)
    return stream.randint(0, 256, (num, height, width, 3)).astype(np.uint8)


def read_expected(path):
    """Return the shapes of a network's tensors and its results, from a fixture.

    `make bench-features` writes it again, from the networks of torch.
    """
    with np.load(path) as file:
        found = {name: file[name] for name in file}
    return json.loads(str(found.pop("shapes"))), found
