"""The networks, and the two plain functions that the rest of the project sees of them.

Linen stays inside this folder: outside, a network is `init_fn` and `apply_fn`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.networks.mlp import MLP
from diffusion_jax.networks.unet import UNet

__all__ = ["MLP", "UNet", "as_functions"]


def as_functions(
    module: nn.Module,
    shape: tuple[int, ...],
    cond_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Callable[[jax.Array], Any], Callable[..., jax.Array]]:
    """A Linen module as pure functions over a plain tree of parameters.

    Args:
      module: takes (x_t, t, cond, *, train) and returns an array of the shape of x_t, or
        of twice its channels with a learned variance.
      shape: shape of one example, such as (32, 32, 3).
      cond_shapes: shape, for one example, of each condition that the module needs to make
        its params.

    Returns:
      init_fn(key) -> params, and
      apply_fn(params, x_t, t, cond, *, train, key) -> prediction, where `key` drives the
      dropout and may be None if `train` is False, and `cond` has what the examples are
      conditioned on, by name: the class of each as "label", for one.
    """

    def init_fn(key: jax.Array) -> Any:
        x_t, t = jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32)
        cond = {name: jnp.zeros((1, *s)) for name, s in (cond_shapes or {}).items()}
        return module.init(key, x_t, t, cond, train=False)["params"]

    def apply_fn(
        params: Any,
        x_t: jax.Array,
        t: jax.Array,
        cond: Any = None,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        rngs = {"dropout": key} if train and key is not None else {}
        prediction: Any = module.apply(
            {"params": params}, x_t, t, cond, train=train, rngs=rngs
        )
        return prediction

    return init_fn, apply_fn
