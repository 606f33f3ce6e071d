"""Set before JAX starts: four CPU devices, no silent rank promotion, a compile cache."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is the suite's cost, and the commands run here compile the same programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="diffusion_jax_tests_")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Half the time that a U-Net takes to compile; `make test-slow` compiles as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

from diffusion_jax.runtime import cpu
from helpers import ROOT

cpu.keep_memory()  # As the commands do.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def command():
    """Runs `python train.py ...` or sample.py as a user does, and returns the result."""

    def run(*args, cwd=ROOT, check=None, **options):
        result = subprocess.run(
            [sys.executable, str(ROOT / args[0]), *map(str, args[1:])],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            **options,
        )
        if check is not None:
            assert result.returncode == check, result.stdout + result.stderr
        return result

    return run


# Rooms whose tests have a marker of their own.
MARKERS = {"diffusion": "maths", "samplers": "maths", "processes": "process"}


def pytest_collection_modifyitems(items):
    for item in items:
        marker = MARKERS.get(item.path.parent.name)
        if marker:
            item.add_marker(marker)
