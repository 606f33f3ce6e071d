"""Settings that make a CPU fast: the compiler's options, and memory that stays."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import signal

from diffusion_jax.runtime import cpu
from helpers import ROOT

FAULTS = """
import resource
import sys
import jax
from diffusion_jax.runtime import cpu

if sys.argv[1] == "keep":
    cpu.keep_memory()
x = jax.numpy.ones((3072, 3072))
program = jax.jit(lambda x: x[:, :8] @ x[:8] @ x[:, :8]).lower(x).compile()
for _ in range(5):
    program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def forget():
    cpu.compiler_options.cache_clear()
    yield
    cpu.compiler_options.cache_clear()


def test_a_convolution_is_the_same_with_the_options():
    assert cpu.compiler_options()
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 8, 8, 3)), rng.standard_normal((3, 3, 3, 32))

    def convolution(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    program = jax.jit(convolution, compiler_options=cpu.compiler_options())
    found = program(jnp.float32(x), jnp.float32(kernel))
    for b, k in ((0, 0), (1, 31)):
        expected = sum(
            signal.correlate2d(x[b, :, :, c], kernel[:, :, c, k], mode="same")
            for c in range(3)
        )
        np.testing.assert_allclose(found[b, :, :, k], expected, rtol=1e-5, atol=1e-5)


def test_a_compiler_without_the_option_gets_none(monkeypatch):
    monkeypatch.setattr(cpu, "_LIBRARY", "xla_cpu_no_such_option")
    assert cpu.compiler_options() == {}


def test_other_devices_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cpu.compiler_options() == {}


@pytest.mark.skipif(not cpu.is_all_there_is(), reason="for machines without a GPU")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc")
def test_memory_that_stays_costs_no_page_faults():
    """Page faults of products of 36 MiB, more than malloc ever keeps by itself."""

    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < faults("give back") / 4
