"""The class of each sample that is drawn, which depends on the seed and its index alone."""

import difflib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.experiment import build_sampler
from diffusion_jax.runtime.errors import BadRequest

ALL = "all"
HELP = (
    "Class of the samples: numbers or names, such as 7 or cat,dog, taken in turn; all: "
    "every class in turn; default drawn as often as the data have them."
)


def check_has_labels(config: Config, flag: str) -> None:
    """Raise BadRequest for a flag, as it was given, of a run that has no labels."""
    if not config.data.labels:
        raise BadRequest(
            f"{flag}: the run was trained without labels; train one with "
            "--config.data.labels=true"
        )


def check_guidance(config: Config) -> None:
    """Raise BadRequest for --guidance by the labels of a run that has none."""
    sampling = config.sampling
    if build_sampler.needs_base(sampling) or sampling.guidance != 1:
        check_has_labels(config, f"--guidance {sampling.guidance:g}")


def check_not_dropped(text: str | None, config: Config) -> None:
    """Raise BadRequest for a --label that --guidance 0 leaves out."""
    if text is not None and config.sampling.guidance == 0:
        raise BadRequest(
            f"--label {text}: --guidance 0 draws without the label; leave out one of them"
        )


def parse(text: str | None, config: Config, names: Sequence[str]) -> tuple[int, ...]:
    """Return the classes that --label names; () without it.

    Args:
      text: of the flag.
      config: of the run.
      names: of its classes, if they have some.

    Raises:
      BadRequest: for a run without labels, or a class that it does not have.
    """
    if text is None:
        return ()
    total = config.data.num_classes
    check_has_labels(config, f"--label {text}")
    if text == ALL:
        return tuple(range(total))
    return tuple(_class_of(part.strip(), total, names) for part in text.split(","))


def _class_of(text: str, total: int, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < total:
        return int(text)
    is_number = text.lstrip("-").isdecimal()
    near = [] if is_number else difflib.get_close_matches(text[:99], names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = f", or a name: {', '.join(names[:20])}" if names else ""
    raise BadRequest(f"--label {text}: must be in 0 .. {total - 1}{known}{hint}")


def of_samples(
    chosen: Sequence[int], counts: Sequence[int], seed: int, indices: np.ndarray
) -> np.ndarray:
    """Return the class of each sample, int32 [N].

    Args:
      chosen: classes that are taken in turn; without any they are drawn.
      counts: examples of each class in the training data, by which they are drawn.
      seed: of the samples.
      indices: int [N], of the samples.
    """
    if chosen:
        return np.asarray(chosen, np.int32)[indices % len(chosen)]
    # As in `training.train_state.init_state`: clear of training's and sampling's.
    key = jax.random.fold_in(jax.random.key(seed), 2**32 - 6)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices))
    uniform = np.asarray(jax.vmap(jax.random.uniform)(keys), np.float64)
    ends = np.cumsum(counts) / np.sum(counts)
    found = np.searchsorted(ends, uniform, side="right")
    return np.minimum(found, len(counts) - 1).astype(np.int32)
