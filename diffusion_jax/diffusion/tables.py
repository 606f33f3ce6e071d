"""Tables: of a process, read on the device; and of functions by their names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def read(table: np.ndarray, t: Any, dtype: Any) -> jax.Array:
    """Return table[t] in a dtype; NaN where t is out of range."""
    # jnp indexing would wrap t = -1 around to T - 1 and clamp t = T, both in silence.
    return (
        jnp.asarray(table, dtype)
        .at[t]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )


def names_with(
    functions: Mapping[str, Callable[..., Any]], argument: str
) -> tuple[str, ...]:
    """Return the names of those functions that have an argument of this name."""
    return tuple(
        name for name, f in functions.items() if argument in inspect.signature(f).parameters
    )
