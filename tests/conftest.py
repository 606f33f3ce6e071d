"""Set before JAX starts: four CPU devices, and no silent rank promotion."""

import os
import pathlib
import subprocess
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).parent.parent


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
