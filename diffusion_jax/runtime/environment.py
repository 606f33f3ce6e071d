"""Settings of the process that change what is computed, checked before anything else."""

import os
from typing import Any

import jax

from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason

# Values that each setting may have, and why no others.
_SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_enable_x64": ((False,), "all arrays must be of 32 bits, as in checkpoints"),
    "jax_default_prng_impl": (("threefry2x32",), "a seed would give other samples"),
    "jax_threefry_partitionable": ((True,), "a seed would give other samples"),
    "jax_numpy_dtype_promotion": (("standard",), "the optimiser mixes types"),
    "jax_transfer_guard": ((None, "allow", "log"), "a run needs implicit transfers"),
}


def check() -> None:
    """Refuse settings under which a run would fail later, or not be what it says.

    Raises:
      BadRequest: naming the variable of the environment, or the option of jax.
    """
    for name, (accepted, why) in _SETTINGS.items():
        value = getattr(jax.config, name)
        if value not in accepted:
            raise BadRequest(f"{_named(name, value)} cannot be used: {why}; unset it")
    try:
        jax.devices()
    except Exception as error:  # A bare AssertionError where there is no GPU.
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms:
            raise BadRequest(
                f"JAX_PLATFORMS={platforms}: jax finds no such device here "
                f"({reason(error)}); unset it, or set it to cpu"
            ) from error
        raise BadRequest(
            f"jax cannot use the devices of this machine ({reason(error)}); "
            "set JAX_PLATFORMS=cpu to do without them"
        ) from error


def _named(option: str, value: object) -> str:
    variable = option.upper()
    if variable in os.environ:
        return f"{variable}={os.environ[variable]}"
    return f"{option} ({value})"
