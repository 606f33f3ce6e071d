"""Arrays in an .npz of the field's form: arr_0 the examples, arr_1 their labels."""

import os
import pathlib
import zipfile

import numpy as np
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data.images import fit
from diffusion_jax.validation import BadRequest


def read_npz(
    path: str, field: str, config: DataConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """The examples and labels of a file; what `sample.py` writes is of this form.

    Args:
      path: of the file.
      field: of the config that names it, for messages.
      config: decides whether images or points are wanted, and the shape of images.

    Returns:
      uint8 [N, H, W, C] or float32 [N, D]; and int32 [N], or None if it has no arr_1.

    Raises:
      BadRequest: if there is no such file, or it holds something else.
    """
    where = f"{field} ({path!r})"
    if not path:
        raise BadRequest(f"{field} is empty; give the file: --config.{field}=FILE.npz")
    file = pathlib.Path(os.path.expanduser(path))
    if not file.is_file():
        raise BadRequest(f"{where}: there is no such file")
    if not zipfile.is_zipfile(file):
        raise BadRequest(f"{where} is not an .npz; write it with np.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = list(archive)
            examples = archive["arr_0"] if "arr_0" in names else None
            labels = archive["arr_1"] if "arr_1" in names else None
    except Exception as error:  # Whatever NumPy makes of damaged or hostile bytes.
        raise BadRequest(f"{where} cannot be read as an .npz: {error}") from error
    if examples is None:
        raise BadRequest(f"{where} has no arr_0; it has {', '.join(names) or 'nothing'}")
    if not all(isinstance(x, np.ndarray) for x in (examples, labels) if x is not None):
        raise BadRequest(
            f"{where}: arr_0 and arr_1 must be arrays, as np.savez writes them"
        )
    kind, ndim = (np.uint8, 4) if config.image_size else (np.float32, 2)
    if (examples.dtype, examples.ndim) != (kind, ndim) or not examples.size:
        wanted = "images, uint8 [N, H, W, C]" if ndim == 4 else "points, float32 [N, D]"
        raise BadRequest(
            f"{where}: arr_0 is {examples.dtype} {list(examples.shape)}, but must be "
            f"{wanted}, and not empty"
        )
    if labels is not None:
        if labels.shape != (len(examples),) or labels.dtype.kind not in "iu":
            raise BadRequest(
                f"{where}: arr_1 is {labels.dtype} {list(labels.shape)}, but must hold "
                f"one whole number for each of the {len(examples)} examples"
            )
        labels = labels.astype(np.int32)
    if ndim == 4:
        examples = _fitted(examples, where, config)
    return examples, labels


def _fitted(images: np.ndarray, where: str, config: DataConfig) -> np.ndarray:
    channels = images.shape[-1]
    if channels not in (1, 3) and channels != config.channels:
        raise BadRequest(f"{where}: arr_0 has {channels} channels, not 1 or 3")
    height, width = (*config.image_size, *config.image_size)[:2]
    shape = (height, width, config.channels or channels)
    if images.shape[1:] == shape:
        return images
    if channels not in (1, 3) or shape[-1] not in (1, 3):
        raise BadRequest(f"{where}: arr_0 has {images.shape[1:]}, the config {shape}")
    flat = images[..., 0] if channels == 1 else images
    return np.stack([fit(Image.fromarray(x), shape, config.resize) for x in flat])
