"""Download a tensorflow-datasets set and write it as array_record files, once.

    python -m diffusion_jax.data.prepare cifar10 [DATA_DIR]

This is the only step that needs TensorFlow; train.py runs it where it is needed, as a
process of its own. A set that is there already is left as it is.
"""

import os
import sys

from diffusion_jax.data.tfds_sets import plain_place
from diffusion_jax.runtime.text import shown

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def prepare(name: str, data_dir: str | None = None) -> None:
    """Prepare a set of images by its name in TFDS's notation.

    Raises:
      ValueError: if it is not a set of images.
      Exception: whatever TFDS raises for an unknown set, or one that cannot be fetched.
    """
    import tensorflow_datasets as tfds

    if data_dir and "://" not in data_dir:
        os.makedirs(os.path.expanduser(data_dir), exist_ok=True)
    builder = tfds.builder(
        name, data_dir=plain_place(data_dir or ""), file_format="array_record"
    )
    features = builder.info.features or {}
    if not any(type(f) is tfds.features.Image for f in features.values()):
        raise ValueError(f"{name} is not a set of images: it has {', '.join(features)}")
    builder.download_and_prepare()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        prepare(*sys.argv[1:])
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        sys.exit(shown(f"error: {type(error).__name__}: {lines[0]}"))
