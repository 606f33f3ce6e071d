"""The device mesh, and where arrays lie on it.

One `jax.jit` over a mesh serves one device and many, in one process or several: the batch
is split over both axes, "data" and "fsdp", and the compiler adds the sums over devices.
The state of a training run is whole on each device along "data" and split along "fsdp".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from diffusion_jax.runtime import cpu, processes
from diffusion_jax.runtime.text import say

AXES = ("data", "fsdp")  # Of the mesh.


def make_mesh(
    data: int = 0, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return the mesh of all devices of all processes, of the axes "data" and "fsdp".

    Args:
      data: size of "data"; 0 is what "fsdp" leaves.
      fsdp: size of "fsdp".
      devices: others than those of this run.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    if count % fsdp:
        near = max(n for n in range(1, fsdp) if not count % n)
        raise ValueError(
            f"parallel.fsdp ({fsdp}) must divide the number of devices, {count}; take "
            f"{near}"
        )
    if data not in (0, count // fsdp):
        raise ValueError(
            f"parallel.data ({data}) times parallel.fsdp ({fsdp}) must be the number of "
            f"devices, {count}; take data {count // fsdp}, or 0 for what fsdp leaves"
        )
    return jax.make_mesh(
        (count // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def platform_of(mesh: Mesh) -> str:
    """Return the platform of a mesh's devices: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_host(mesh: Mesh) -> Sharding | None:
    """Return a sharding off the devices' memory; None if that is not to be had.

    So it is where JAX has no CPU, and with several processes, of which each would hold
    the whole.
    """
    if processes.are_many():
        return None
    if platform_of(mesh) == "cpu":
        return replicated(mesh)
    try:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out.
        return None


def split_largest(mesh: Mesh, tree: Any) -> Any:
    """Return the shardings of a tree's arrays, each split over "fsdp" along one axis.

    It is the largest of the axes that can be divided, and the last of equals. An array
    without one is whole on every device.
    """
    size = mesh.shape["fsdp"]

    def split(array: Any) -> NamedSharding:
        axes = [i for i, n in enumerate(array.shape) if n and not n % size]
        if size == 1 or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (array.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(split, tree)


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array that is split over the devices along one axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a global batch that this process loads, rising."""
    here = split_batch(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in here.values() if index is not None]
    return np.unique(np.concatenate(rows))


def put_local(sharding: NamedSharding, local: np.ndarray) -> jax.Array:
    """A global array of which every process has loaded its own part."""
    return jax.make_array_from_process_local_data(sharding, local)


def put_rows(mesh: Mesh, batch: Any) -> Any:
    """Return a tree of arrays that every process has whole, their rows over the devices."""

    def put(rows: np.ndarray) -> jax.Array:
        sharding = split_batch(mesh)
        if not processes.are_many():
            return jax.device_put(rows, sharding)
        rows = np.asarray(rows)
        return jax.make_array_from_callback(rows.shape, sharding, lambda i: rows[i])

    return jax.tree.map(put, batch)


def put_filled(mesh: Mesh, batch: Any, size: int) -> Any:
    """Return a tree of arrays as `size` rows over the devices, by repeating those given."""
    return put_rows(
        mesh, jax.tree.map(lambda rows: rows[np.arange(size) % len(rows)], batch)
    )


def to_host(tree: Any) -> Any:
    """Return a tree of arrays in NumPy, whole in every process, one after the other."""

    def whole(array: Any) -> np.ndarray:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return np.asarray(array)
        if not array.is_fully_replicated:
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(whole, tree)


def whole_everywhere(mesh: Mesh, tree: Any) -> Any:
    """Return a tree of arrays whole on every device; those that are so stay themselves."""
    if mesh.shape["fsdp"] == 1:
        return tree
    return _gathering(mesh)(tree)


@functools.cache
def _gathering(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def describe_devices() -> str:
    """Return what is computed on."""
    devices = jax.devices()
    said = f"devices: {len(devices)} x {devices[0].device_kind}"
    if not processes.are_many():
        return said
    return f"{said}, of {jax.process_count()} processes"


def say_devices() -> None:
    """Print what is computed on; warn if an accelerator lies idle."""
    local = jax.local_device_count()
    say(describe_devices() + (f", {local} of them here" if processes.are_many() else ""))
    if jax.devices()[0].platform == "cpu" and not cpu.is_all_there_is():
        say(
            "warning: this machine seems to have a GPU or TPU that this jax cannot "
            'use; install the extra: pip install -e ".[cuda]" or ".[tpu]"'
        )


def say_mesh(mesh: Mesh) -> None:
    """Print how several devices share the work of training."""
    if mesh.size > 1:
        sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        say(f"mesh: {sizes}")


def check_batch_size(name: str, batch_size: int, count: int | None = None) -> None:
    """Raise ValueError unless every device gets the same number of rows.

    Args:
      name: of the batch size, for the message.
      batch_size: rows over all devices.
      count: of devices; if None, of all processes of this run.
    """
    count = count or jax.device_count()
    if batch_size % count:
        raise ValueError(
            f"{name} ({batch_size}) must be divisible by the number of devices, {count}; "
            f"take {max(1, batch_size // count) * count}"
        )
