"""Contents of the installed package, and the cost of importing it."""

import os
import re
import subprocess
import sys
import tomllib

import pytest

from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(path):
    lines = (ROOT / path).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_txt_is_the_core_and_the_data_extra():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["data"]
    assert sorted(requirements("requirements.txt")) == sorted(wanted)


def test_every_range_has_two_ends():
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    # The extra `dev` takes in others.
    ours = f"{PROJECT['name']}[clips,data,quality,sound]"
    for requirement in PROJECT["dependencies"] + [r for r in extras if r != ours]:
        assert ">=" in requirement and "<" in requirement.partition(";")[0], requirement


def test_constraints_hold_every_requirement_exactly():
    pins = {re.split("==", line)[0].lower() for line in requirements("constraints.txt")}
    extras = PROJECT["optional-dependencies"]
    names = ("clips", "data", "dev", "quality", "sound")
    for requirement in PROJECT["dependencies"] + [r for n in names for r in extras[n]]:
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        assert name in pins or name == PROJECT["name"], name
    assert all("==" in line for line in requirements("constraints.txt"))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("diffusion_jax.training.train", {"tensorflow", "matplotlib"}),
        (
            "diffusion_jax",
            {"tensorflow", "flax", "grain", "orbax", "optax", "matplotlib", "sklearn"},
        ),
    ],
)
def test_importing_does_not_import_what_is_not_needed(module, absent):
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not absent & set(result.stdout.split())


def installed_command(folder, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "diffusion_jax", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        **options,
    )


def test_the_commands_are_found_from_any_folder_and_configs_by_name(tmp_path):
    result = installed_command(tmp_path, "train", "--config=digits", "--dry_run")
    assert result.returncode == 0 and '"source": "digits"' in result.stdout, result.stderr
    for arguments, said in (
        (("trian",), "did you mean train?"),
        (("sample",), "diffusion-jax train --config digits"),
        (("train", "--config=digts"), "did you mean digits?"),
        (("train", "--config=nowhere"), "there are cars64, "),
    ):
        result = installed_command(tmp_path, *arguments)
        assert result.returncode == 2 and said in result.stderr
        assert result.stderr.count("\n") == 1
    (tmp_path / "digits").mkdir()
    result = installed_command(tmp_path, "train", "--config=digits", "--dry_run")
    assert result.returncode == 2 and "or ./digits" in result.stderr


@pytest.mark.slow
def test_an_installed_wheel_trains_and_samples(tmp_path):
    """A wheel has the commands and the configs in it, and does not need this folder."""
    site, work = tmp_path / "site", tmp_path / "work"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(ROOT)], check=True)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    few = ("--config.training.num_steps=2", "--config.model.base_channels=32")
    for arguments in (
        ("train", "--config=digits", *few),
        ("sample", "--num=2", "--sampler=ddim", "--steps=2"),
        ("export", "--out=x.npz"),
        ("report", "--out=x.html"),
        ("evaluate", "--likelihood", "--max_examples=1", "--num_timesteps_sampled=2"),
    ):
        result = installed_command(work, *arguments, env=environment)
        assert result.returncode == 0, result.stderr
    assert (
        "diffusion-jax sample --workdir runs/digits"
        in installed_command(
            work, "train", "--config=digits", "--overwrite", *few, env=environment
        ).stdout
    )
    where = "import diffusion_jax as d; print(d.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=work, env=environment, capture_output=True
    )
    assert str(site).encode() in found.stdout
