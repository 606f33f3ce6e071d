"""Settings that a CPU needs to be fast, and no other device."""

import ctypes
import functools
import os
import sys

import jax

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_DOT, _REDUCE = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # Parameters of mallopt, in malloc.h.
_NEVER = 2**31 - 1


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Return the options for `jax.jit(compiler_options=)` of programs with a network.

    For matrix products, sums and convolutions XLA calls a library, YNNPACK, which leaves
    all but wide convolutions to a single core. Here it has the first two only, and XLA's
    own way with convolutions, Eigen, shares each out among the cores. A program with
    options cannot be called inside another `jax.jit`, nor inside a `scan` or a gradient.

    Args:
      platform: of the devices of the program; if None, JAX's default backend.

    Returns:
      {} for other devices, and for an XLA that does not have the option.
    """
    options = {_LIBRARY: f"{_DOT},{_REDUCE}"}
    if (platform or jax.default_backend()) != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def is_all_there_is() -> bool:
    """Return whether this machine seems to have no GPU or TPU; nothing is started."""
    return not any(map(os.path.exists, ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")))


def keep_memory() -> None:
    """Keep the memory that this process frees, for its next step.

    XLA takes the temporary memory of a program again at each dispatch, and the system
    hands it out in pages of 4 KiB, with a fault and a page of zeros for each. Large
    blocks stay only in the heap of the main thread, so a dispatch has to run there: call
    this function before JAX's first one. It acts on Linux with glibc; otherwise, and where
    there is a GPU or TPU, nothing changes.
    """
    if not (sys.platform.startswith("linux") and is_all_there_is()):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
        jax.config.update("jax_cpu_enable_async_dispatch", False)
