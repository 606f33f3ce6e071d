"""Settings of the environment are checked first, and named; no checkpoint is blamed."""

import os
import subprocess
import sys

import jax
import pytest

from diffusion_jax.runtime import environment
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_transfer_guard", "disallow"),
    ],
)
def test_a_setting_that_changes_what_is_computed_is_named(option, value, monkeypatch):
    environment.check()
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        with pytest.raises(BadRequest, match=rf"{option} \({value}\) cannot be used"):
            environment.check()
        monkeypatch.setenv(option.upper(), "1")
        with pytest.raises(BadRequest, match=f"{option.upper()}=1 cannot be used"):
            environment.check()
    finally:
        jax.config.update(option, before)


@pytest.mark.parametrize(
    "setting",
    [
        "JAX_ENABLE_X64=1",
        "JAX_ENABLE_X64=maybe",
        "JAX_PLATFORMS=cuda",
        "JAX_NUM_CPU_DEVICES=x",
    ],
)
def test_commands_say_so_in_one_line_and_write_nothing(setting, tmp_path):
    """Settings that jax refuses, such as JAX_PLATFORMS=cuda where there is no GPU."""
    name, _, value = setting.partition("=")
    workdir = tmp_path / "run"
    for args in (
        ("train.py", "--config=configs/digits.py", f"--workdir={workdir}"),
        ("sample.py", f"--workdir={tmp_path}"),
    )[: 2 if value == "1" else 1]:
        (tmp_path / "config.json").write_text("{}")
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", name: value}
        if name != "JAX_PLATFORMS" or not os.path.exists("/dev/nvidia0"):
            result = subprocess.run(
                [sys.executable, *args],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 2, result.stderr
            assert result.stderr.count("\n") == 1 and name in result.stderr.upper()
            assert "can be read" not in result.stderr and not workdir.exists()
