"""Slices of accelerators that a program can be compiled for without one of them.

A slice is named by its chips: "v5e:16x16" is a TPU slice of that topology, "h100:8" one
host with 8 GPUs, "h100:2x8" two such hosts. A chip alone ("v4", "h100") is the smallest
slice of it.
"""

import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from diffusion_jax.runtime.checks import nearest
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.text import reason

_SHAPE = re.compile(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){0,2}")
_MOST_CHIPS = 2**14


class Chip(NamedTuple):
    """Figures of one chip, from its maker; units are bytes, and units per second.

    Attributes:
      memory: of the chip.
      bf16_flops, f32_flops: peak FLOP/s of matrix products of bfloat16, and of float32 at
        JAX's default precision: one pass of bfloat16 on a TPU, TF32 on a GPU; dense.
      memory_bandwidth: between the chip and its memory.
      link_bandwidth: one way, of one link to a neighbour (TPU), or to all other GPUs of
        the host together (GPU).
      network_bandwidth: one way, of one GPU's network card to other hosts; 0 for a TPU.
      source: of these figures.
      shapes: examples of the shape of a slice; the first is the smallest slice.
      ring: an axis of a TPU slice is closed to a ring if this divides its size.
      target: name of the TPU's configuration in XLA, or XLA's description of the GPU, a
        GpuTargetConfigProto as text.
    """

    memory: float
    bf16_flops: float
    f32_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    source: str
    shapes: tuple[str, ...]
    ring: int
    target: str


class Slice(NamedTuple):
    """Chips that one program is compiled for.

    Attributes:
      name: "v5e:16x16".
      kind: of its chips, a name of `CHIPS`.
      shape: chips along each axis of a TPU slice, or (hosts, GPUs per host).
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """Figures of one of its chips."""
        return CHIPS[self.kind]

    @property
    def num_chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        """True if the chips are TPUs, False if they are GPUs."""
        return not self.chip.network_bandwidth

    @property
    def allreduce_bandwidth(self) -> float:
        """Bytes per second that each chip can send in an all-reduce, at most.

        TPU: one link for each axis, two where the axis is closed to a ring. GPU: the links
        within a host, or what all network cards of a host carry together if that is less.
        """
        chip = self.chip
        if self.is_tpu:
            axes = [size for size in self.shape if size > 1]
            return chip.link_bandwidth * sum(1 + (n % chip.ring == 0) for n in axes)
        hosts, per_host = self.shape
        between = per_host * chip.network_bandwidth if hosts > 1 else math.inf
        return min(chip.link_bandwidth if per_host > 1 else math.inf, between)


def _tpu(
    name: str, gigabytes: float, teraflops: float, memory: float, links: float
) -> Chip:
    """Return a TPU.

    Args:
      name: of its page.
      gigabytes: of its memory.
      teraflops: of bfloat16.
      memory: GB/s of its memory.
      links: GB/s of all its links together, both ways.
    """
    is_flat = name in ("v5e", "v6e")  # A slice has two axes, otherwise three.
    return Chip(
        memory=gigabytes * 1e9,
        bf16_flops=teraflops * 1e12,
        f32_flops=teraflops * 1e12,
        memory_bandwidth=memory * 1e9,
        link_bandwidth=links * 1e9 / (8 if is_flat else 12),
        network_bandwidth=0,
        source=f"docs.cloud.google.com/tpu/docs/{name}",
        shapes=("1x1", "2x2", "16x16") if is_flat else ("2x2x1", "2x2x2", "4x4x4"),
        ring=16 if is_flat else 4,
        target="default" if is_flat else "megacore",
    )


def _gpu_target(name: str, **different: Any) -> str:
    """Return XLA's description of a GPU, from the fields that differ between GPUs."""
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        **different,
    }
    info = " ".join(f"{field}: {value}" for field, value in fields.items())
    return (
        f'gpu_device_info {{ {info} }} platform_name: "CUDA" '
        "dnn_version_info { major: 9 minor: 8 patch: 0 } "
        f'device_description_str: "{name}"'
    )


_H100_TARGET = _gpu_target(
    "NVIDIA H100 80GB HBM3",
    shared_memory_per_core=233472,
    core_count=132,
    fpus_per_core=128,
    memory_bandwidth=3352320000000,
    l2_cache_size=52428800,
    clock_rate_ghz=1.98,
    device_memory_size=84942979072,
    shared_memory_per_block_optin=232448,
    cuda_compute_capability="{ major: 9 }",
)
_A100_TARGET = _gpu_target(
    "NVIDIA A100-SXM4-80GB",
    shared_memory_per_core=167936,
    core_count=108,
    fpus_per_core=64,
    memory_bandwidth=2039000000000,
    l2_cache_size=41943040,
    clock_rate_ghz=1.41,
    device_memory_size=85100000000,
    shared_memory_per_block_optin=166912,
    cuda_compute_capability="{ major: 8 }",
)
_CARD = "one network card per GPU"

CHIPS = {
    # The links of a v4 by the all-reduce bandwidth of a pod, 1.1 PB/s over 4,096 chips.
    "v4": _tpu("v4", 34.4, 275, 1200, 540),
    "v5e": _tpu("v5e", 16, 197, 819, 400),
    "v5p": _tpu("v5p", 95, 459, 2765, 1200),
    "v6e": _tpu("v6e", 32, 918, 1638, 800),
    "h100": Chip(
        memory=84942979072,
        bf16_flops=989.4e12,
        f32_flops=494.7e12,
        memory_bandwidth=3.352e12,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        source=f"NVIDIA's data sheet (SXM5); in a DGX H100 {_CARD}, of 400 Gbit/s",
        shapes=("1", "8", "2x8"),
        ring=1,
        target=_H100_TARGET,
    ),
    "a100": Chip(
        memory=85100000000,
        bf16_flops=312e12,
        f32_flops=156e12,
        memory_bandwidth=2.039e12,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
        source=f"NVIDIA's data sheet (SXM4 80 GB); in a DGX A100 {_CARD}, of 200 Gbit/s",
        shapes=("1", "8", "2x8"),
        ring=1,
        target=_A100_TARGET,
    ),
}


def parse(flag: str, text: str) -> Slice:
    """Return the slice of a name.

    Args:
      flag: the flag that it was given by, for messages.
      text: "v5e:16x16", "h100:8", "h100:2x8", or a chip alone.

    Raises:
      BadRequest: for an unknown chip, or a shape that is no slice of it.
    """
    kind, colon, shape = text.partition(":")
    if kind not in CHIPS:
        said = nearest(kind, tuple(CHIPS))
        raise BadRequest(f"{flag} {text}: there is no chip {kind!r} here; {said}")
    shapes = CHIPS[kind].shapes
    shape = shape if colon else shapes[0]
    sizes = tuple(map(int, shape.split("x"))) if _SHAPE.fullmatch(shape) else ()
    if len(sizes) not in {example.count("x") + 1 for example in shapes}:
        such = ", ".join(f"{kind}:{example}" for example in shapes)
        raise BadRequest(f"{flag} {text}: {kind} has no such slice; there are {such}, ...")
    if math.prod(sizes) > _MOST_CHIPS:
        raise BadRequest(f"{flag} {text}: a slice has at most {_MOST_CHIPS:,} chips here")
    return Slice(f"{kind}:{shape}", kind, (1, *sizes) if len(sizes) == 1 else sizes)


def use_no_devices() -> None:
    """Let JAX start its CPU backend alone, and ask no server which TPU this machine is.

    Variables of the environment that are set stay as they are. Call this before JAX's
    first use of a device.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # No TPU can be in use.
    # Without these the TPU library warns that it does not know the machine.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def abstract_devices(flag: str, slice_: Slice) -> list[Any]:
    """Return devices of a slice that programs can be compiled for, but not run on.

    Args:
      flag: the flag that the slice was given by, for messages.
      slice_: of which the devices are; one for each chip.

    Raises:
      BadRequest: if the compiler for it is not installed, or does not know such a slice.
    """
    shape = "x".join(map(str, slice_.shape))
    try:
        if slice_.is_tpu:
            per_host = (1, 1, 1) if slice_.num_chips == 1 else (2, 2, 1)
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{slice_.kind}:{shape}",
                chips_per_host_bounds=per_host,
                chip_config_name=slice_.chip.target,
            )
        else:
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name=slice_.kind,
                target_config=slice_.chip.target,
                topology=f"1x{shape}",
            )
    except jax.errors.JaxRuntimeError as error:
        raise BadRequest(f"{flag} {slice_.name}: {reason(error)}") from error
    except (NotImplementedError, RuntimeError, ImportError) as error:
        extra = "tpu" if slice_.is_tpu else "cuda"
        raise BadRequest(
            f"{flag} {slice_.name} needs the compiler for it, which is not installed here; "
            f'install it in an environment of its own: pip install -e ".[{extra}]" (no '
            f"{'TPU' if slice_.is_tpu else 'GPU and no driver'} is needed)"
        ) from error
    devices = list(found.devices)
    if len(devices) != slice_.num_chips:
        raise BadRequest(
            f"{flag} {slice_.name}: the compiler sees {len(devices)} devices in it, not "
            f"{slice_.num_chips}"
        )
    return devices
