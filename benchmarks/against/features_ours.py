"""Our side: the feature networks as the metrics run them."""

import pathlib
import sys
from typing import Any

import jax
import numpy as np
from worker import serve

from diffusion_jax.networks import efficientnet_lite, inception
from diffusion_jax.runtime import cpu, torch_files

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "tests"))
from feature_weights import INCEPTION, random_images, random_tensors, read_expected


def prepare(network: str, batch: int, size: int, weights: str, folder: str) -> Any:
    """Features of random images."""
    if network == "efficientnet-lite0":
        tensors = torch_files.read_tensors(pathlib.Path(weights))
        module: Any = efficientnet_lite.EfficientNetLite0(jax.default_backend())
        params = efficientnet_lite.params_of(tensors)
    else:
        module = inception.Inception(jax.default_backend())
        params = inception.params_of(random_tensors(read_expected(INCEPTION)[0]))
    images = random_images(batch, size, size)
    program = jax.jit(module.apply, compiler_options=cpu.compiler_options())
    arguments = jax.device_put(({"params": params}, images))
    np.save(pathlib.Path(folder, "ours.npy"), np.asarray(program(*arguments)[0]))
    return lambda: jax.block_until_ready(program(*arguments)), {}


if __name__ == "__main__":
    cpu.keep_memory()
    serve(prepare, lambda: None)
