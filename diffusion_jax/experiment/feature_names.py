"""Names of feature networks, and of the figures that are made with them."""

import re

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.kind import Kind
from diffusion_jax.data.kinds import PICTURES, kind_of
from diffusion_jax.networks.efficientnet_lite import NUM_FEATURES
from diffusion_jax.runtime.checks import nearest
from diffusion_jax.runtime.errors import BadRequest

EFFICIENTNET = "efficientnet-lite0"
NUM_COMPONENTS = 20
USUAL = f"pca{NUM_COMPONENTS}"
_PCA = re.compile("pca([1-9][0-9]{0,3})")
_TINY = 32  # Pixels from which on images in colour are taken for natural ones.
_FIELD = "training.quality_features"


def network_name(name: str, kind: Kind, shape: tuple[int, ...], flag: str) -> str:
    """Return the name of a network, as it stands in the names of its metrics.

    Args:
      name: "pcaN", "efficientnet-lite0", or "" for the one that suits the examples.
      kind, shape: of the examples.
      flag: that gave the name, for messages.

    Raises:
      BadRequest: for another name, or a network that does not take such examples.
    """
    is_natural = kind is PICTURES and shape[-1] == 3 and min(shape[:2]) >= _TINY
    most = int(np.prod(shape))
    name = name or (EFFICIENTNET if is_natural else f"pca{min(NUM_COMPONENTS, most)}")
    if match := _PCA.fullmatch(name):
        if int(match[1]) > most:
            raise BadRequest(
                f"{flag} {name}: an example has {most} numbers, and no more components"
            )
        return name
    if name != EFFICIENTNET:
        raise BadRequest(
            f"{flag} {name!r} is unknown; {nearest(name, (EFFICIENTNET, USUAL))}"
        )
    check_takes(name, kind, shape, flag)
    return name


def is_known(name: str) -> bool:
    """Return whether a name is that of a network of this module."""
    return name == EFFICIENTNET or _PCA.fullmatch(name) is not None


def check_takes(name: str, kind: Kind, shape: tuple[int, ...], flag: str) -> None:
    """Raise BadRequest for examples that a network of natural images does not take."""
    if kind is not PICTURES or shape[-1] not in (1, 3):
        raise BadRequest(
            f"{flag} {name} is for images, grey or in colour, and these are {kind.name} of "
            f"{list(shape)}; take {USUAL}"
        )


def network_of(config: Config) -> str:
    """Return the name of the network of `training.quality_every`.

    Raises:
      BadRequest: if it cannot be told, or does not take the examples.
    """
    name, data = config.training.quality_features, config.data
    if data.image_size and not data.channels and not name:
        raise BadRequest(
            f"{_FIELD} must be given where data.channels is 0: {USUAL} or {EFFICIENTNET}"
        )
    shape = (*data.shape[:-1], data.shape[-1] or 3)
    return network_name(name, kind_of(data), shape, _FIELD)


def metric_names(config: Config) -> dict[str, str]:
    """Return the names that FD and KID have in metrics.jsonl, of `training.quality_every`.

    They have the network and the number of samples: "fd_pca20_n1000".

    Raises:
      BadRequest: as `network_of`, or if the network has more features than there are
        samples.
    """
    training, name = config.training, network_of(config)
    size = NUM_FEATURES if name == EFFICIENTNET else int(name.removeprefix("pca"))
    if training.quality_samples <= size:
        raise BadRequest(
            f"training.quality_samples ({training.quality_samples}) must be more than the "
            f"{size:,} features of {name}"
        )
    end = f"{name}_n{training.quality_samples}"
    return {"FD": f"fd_{end}", "KID": f"kid_{end}"}
