"""Classifier-free guidance (Ho and Salimans 2022): one network with labels and without.

While it is trained, the label of an example is dropped now and then, so that the network
learns the score of all data as well. At sampling the two predictions of x_0,

    D = D_u + s (D_c - D_u),

are put together: s = 1 is the conditional model, s = 0 the unconditional one. The paper's
own scale is w = s - 1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.model import Model

LABEL, SCALE = "label", "guidance"  # Names in what a network is conditioned on.


def drop_labels(key: jax.Array, batch: Batch, num_classes: int, rate: float) -> Batch:
    """Return the batch with each label dropped with probability `rate` (algorithm 1).

    Args:
      key: of the choice.
      batch: its cond has "label", int32 [B].
      num_classes: the label of an example without one.
      rate: 0 .. 1.
    """
    label = batch.cond[LABEL]
    is_dropped = jax.random.bernoulli(key, rate, label.shape)
    kept = jnp.where(is_dropped, num_classes, label)
    return batch._replace(cond={**batch.cond, LABEL: kept})


def guided(model: Model, num_classes: int) -> Model:
    """Return a model whose predictions are guided, by one call of the network with 2B.

    What a network predicts determines x_0 by an affine map at each x_t and t, so that its
    outputs are put together as the x_0 are. A learned variance is that of the conditional
    prediction.

    Args:
      model: conditioned on "label", int32 [B].
      num_classes: the label of an example without one.

    Returns:
      A model whose cond has the scale s of each example as well, as "guidance" [B].
    """

    def apply_fn(
        params: Any, x_t: jax.Array, t: jax.Array, cond: Mapping[str, Any], **options: Any
    ) -> jax.Array:
        rest = {name: rows for name, rows in cond.items() if name != SCALE}
        label = rest[LABEL]
        none = jnp.full_like(label, num_classes)
        twice = {name: jnp.concatenate([rows, rows]) for name, rows in rest.items()}
        twice[LABEL] = jnp.concatenate([label, none])
        both = model.apply_fn(
            params, jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), twice, **options
        )
        with_label, without = jnp.split(both, 2)
        scale = cond[SCALE].reshape(-1, *[1] * (x_t.ndim - 1)).astype(both.dtype)
        channels = x_t.shape[-1]  # After these a learned variance.
        mean, base = with_label[..., :channels], without[..., :channels]
        return jnp.concatenate(
            [base + scale * (mean - base), with_label[..., channels:]], axis=-1
        )

    return dataclasses.replace(model, apply_fn=apply_fn)
