"""The feature network that flags name."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.data.kind import Kind
from diffusion_jax.evaluation import feature_networks
from diffusion_jax.evaluation.feature_networks import FeatureNetwork, Features
from diffusion_jax.experiment import build_features, feature_names
from diffusion_jax.experiment.feature_names import EFFICIENTNET, USUAL
from diffusion_jax.jobs import python_file
from diffusion_jax.jobs.feature_sets import ExampleSet
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.files import check_regular, read_bytes
from diffusion_jax.runtime.hashing import sha256

INCEPTION = "inception"
HELP = (
    f"Network whose features are compared: {EFFICIENTNET}, {INCEPTION} (with --inception), "
    f"pcaN for N principal components such as {USUAL}, or a Python file with a function "
    "features(images) -> [B, D]. Default: by the images."
)
INCEPTION_HELP = (
    "File with the weights of Inception-v3 for FID, as pytorch-fid and torch-fidelity "
    "distribute them."
)
_FUNCTION = "features"


def choose(
    name: str,
    inception: pathlib.Path | None,
    kind: Kind,
    shape: tuple[int, ...],
    to_fit: ExampleSet,
) -> FeatureNetwork:
    """Return the network that the flags name.

    Args:
      name: of --features; "" takes the network of --inception, or one that suits the
        examples.
      inception: the file of --inception.
      kind, shape: of the examples.
      to_fit: examples that principal components are made of.

    Raises:
      BadRequest: for another name, a network that does not take such examples, or a file
        that cannot be used.
    """
    if name == INCEPTION and inception is None:
        raise BadRequest("--features inception needs --inception, the file of its weights")
    if inception is not None:
        if name not in ("", INCEPTION):
            raise BadRequest(f"--inception {inception} and --features {name}: give one")
        feature_names.check_takes(INCEPTION, kind, shape, "--features")
        try:
            return feature_networks.inception(inception)
        except BadRequest as error:
            raise BadRequest(f"--inception: {error}") from error
    if name.endswith(".py"):
        return _of_file(name, to_fit)
    name = feature_names.network_name(name, kind, shape, "--features")
    return build_features.make_network(name, to_fit.source, to_fit.order)


def _of_file(name: str, examples: ExampleSet) -> FeatureNetwork:
    """Return the function of a file, tried on an example."""
    path = pathlib.Path(name).expanduser()
    if feature_names.is_known(path.stem) or path.stem == INCEPTION:
        raise BadRequest(
            f"--features {name}: {path.stem} is the name of another network; rename the "
            "file"
        )
    try:
        check_regular(path)
    except OSError as error:
        raise BadRequest(f"--features {name}: {error.strerror or error}") from error
    module = python_file.load("--features", name, path)
    function = getattr(module, _FUNCTION, None)
    if not callable(function):
        raise BadRequest(f"--features {name} must define {_FUNCTION}(images) -> [B, D]")

    def apply(params: Any, x: jax.Array) -> Features:
        del params
        return Features(jnp.asarray(function(x), jnp.float32), None)

    two = examples.source[examples.order[:2]]
    try:
        found = jax.eval_shape(apply, (), jax.ShapeDtypeStruct(two.shape, two.dtype))
    except jax.errors.TracerArrayConversionError as error:
        raise BadRequest(
            f"--features {name}: {_FUNCTION} must compute by jax.numpy, and not by NumPy"
        ) from error
    except Exception as error:
        raise python_file.refusal("--features", name, path, error) from error
    shape = found.features.shape
    if len(shape) != 2 or shape[0] != len(two) or not shape[1]:
        raise BadRequest(
            f"--features {name}: {_FUNCTION} gives {list(shape)} for {len(two)} images, "
            f"and must give [{len(two)}, D]"
        )
    digest = sha256([read_bytes(path)])
    return FeatureNetwork(path.stem, digest, shape[1], 0, (), apply)
