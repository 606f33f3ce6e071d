"""The device mesh, and where arrays lie on it.

One `jax.jit` over a mesh serves one device and many: the state is replicated, the batch
is split over the axis "data", and the compiler adds the sums over devices.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from diffusion_jax.runtime import cpu
from diffusion_jax.runtime.text import say


def make_mesh() -> Mesh:
    """All devices of all processes along "data"; "model" has size 1."""
    return jax.make_mesh(
        (jax.device_count(), 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_host(mesh: Mesh) -> Sharding:
    """Return a sharding off the devices' memory, or on it if JAX has no CPU."""
    if mesh.devices.flat[0].platform == "cpu":
        return replicated(mesh)
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out.
        return replicated(mesh)


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array that is split over the devices along one axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def local_rows(batch_size: int) -> slice:
    """Return the rows of a global batch that this process loads."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def put_local(sharding: NamedSharding, local: np.ndarray) -> jax.Array:
    """A global array of which every process has loaded its own part."""
    return jax.make_array_from_process_local_data(sharding, local)


def put_filled(mesh: Mesh, batch: Any, size: int) -> Any:
    """Return a tree of arrays as `size` rows over the devices, by repeating those given."""

    def put(rows: np.ndarray) -> jax.Array:
        return jax.device_put(rows[np.arange(size) % len(rows)], split_batch(mesh))

    return jax.tree.map(put, batch)


def describe_devices() -> str:
    """Return what this process computes on."""
    devices = jax.devices()
    return f"devices: {len(devices)} x {devices[0].device_kind}"


def say_devices() -> None:
    """Print what this process computes on; warn if an accelerator lies idle."""
    say(describe_devices())
    if jax.devices()[0].platform == "cpu" and not cpu.is_all_there_is():
        say(
            "warning: this machine seems to have a GPU or TPU that this jax cannot "
            'use; install the extra: pip install -e ".[cuda]" or ".[tpu]"'
        )


def check_batch_size(name: str, batch_size: int) -> None:
    """Raise ValueError unless every device gets the same number of rows."""
    count = jax.device_count()
    if batch_size % count:
        raise ValueError(
            f"{name} ({batch_size}) must be divisible by the number of devices, {count}; "
            f"take {max(1, batch_size // count) * count}"
        )
