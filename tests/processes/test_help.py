"""The fields of a config in --help, and in warnings at the start of a run."""

import dataclasses
import shutil
import warnings

import pytest

from diffusion_jax.config import SamplingConfig
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.fields import leaves_of
from diffusion_jax.training import train
from helpers import ROOT, points_config

FIXTURE = ROOT / "tests" / "fixtures" / "run_0.1.0"


def test_help_with_a_config_lists_its_fields_and_without_one_says_so(command):
    plain = command("train.py", "--help", check=0).stdout
    assert "--workdir: The run's folder" in plain and "--config.data" not in plain
    assert "--config FILE --help lists every field" in plain
    config = run_folder.read_config(FIXTURE)  # The same config, with other values.
    for args in (
        ("--config", "configs/swiss_roll.py", "--help"),
        ("-h", "--config=configs/swiss_roll.py"),
    ):
        said = command("train.py", *args, check=0).stdout
        assert "--workdir: The run's folder" in said
        for leaf in leaves_of(config):
            assert f"  --config.{leaf.path}=" in said
        assert "--config.process.num_timesteps=100 (default 1000)" in said


def test_help_with_a_config_that_is_not_there_is_refused(command):
    result = command("train.py", "--config=configs/digts.py", "--help", check=2)
    assert result.stderr.count("\n") == 1
    assert "did you mean configs/digits.py?" in result.stderr


def test_help_of_sample_has_a_flag_for_every_field(command):
    said = " ".join(command("sample.py", "--help", check=0).stdout.split())
    said = said.replace("--[no]", "--")
    for leaf in leaves_of(SamplingConfig()):
        assert f" --{leaf.path}: {leaf.about.help}" in said
    assert "Only with --sampler ddim, dpmpp_2m, dpmpp_3m. (a number)" in said
    assert "sampling." not in said.replace("about sampling.", "")


def test_a_field_without_effect_is_told_of_when_a_run_is_started_alone(tmp_path):
    config = points_config()
    config.loss.min_snr_gamma = 3.0
    with pytest.warns(UserWarning, match="loss.min_snr_gamma .3.0. has no effect"):
        train.prepare(config, tmp_path / "new")
    workdir = tmp_path / "old"
    shutil.copytree(FIXTURE, workdir)
    config = run_folder.read_config(FIXTURE)
    loss = dataclasses.replace(config.loss, min_snr_gamma=3.0)
    config = dataclasses.replace(config, loss=loss)
    run_folder.write_config(workdir, config)
    (workdir / "run.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.prepare(config, workdir)
