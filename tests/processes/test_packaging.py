"""What is installed, and what importing costs."""

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
    ours = f"{PROJECT['name']}[data]"  # The extra `dev` takes in the extra `data`.
    for requirement in PROJECT["dependencies"] + [r for r in extras if r != ours]:
        assert ">=" in requirement and "<" in requirement.partition(";")[0], requirement


def test_constraints_hold_every_requirement_exactly():
    pins = {re.split("==", line)[0].lower() for line in requirements("constraints.txt")}
    extras = PROJECT["optional-dependencies"]
    for requirement in PROJECT["dependencies"] + extras["dev"] + extras["data"]:
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
