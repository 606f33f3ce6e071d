"""The README's commands run, and its files exist."""

import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from helpers import ROOT, SHARED

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.partition("#")[0].strip()
]
DOCS = sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))
FEWER_STEPS = (
    "--config.training.num_steps=20 --config.training.sample_every=20 "
    "--config.training.checkpoint_every=10"
)
# Long commands run with fewer steps; those of `make` are what runs this very test, or
# are made of commands that are run here.
NARROW = "--config.model.base_channels=32 --config.data.batch_size=16"
PICTURES = "python train.py --config configs/folder.py --config.data.path=my_pictures/"
LONG = {
    # The set is prepared where the fixture has put it.
    "python train.py --config configs/cifar10.py": (
        f"{FEWER_STEPS} {NARROW} --config.data.path=tfds --config.training.num_held_out=64"
    ),
    "python train.py --config configs/digits.py": FEWER_STEPS,
    "python train.py --config configs/swiss_roll.py": FEWER_STEPS,
    "python train.py --config configs/digits.py --config.optimizer.learning_rate=5e-4 "
    "--workdir runs/slower": FEWER_STEPS,
    "python train.py --config configs/digits.py --config.process.variance=learned "
    "--config.loss.kind=hybrid --workdir runs/learned": FEWER_STEPS,
    PICTURES: f"{FEWER_STEPS} {NARROW}",
    f"{PICTURES} --config.training.num_steps=20 --config.data.batch_size=4 "
    "--config.model.base_channels=32 --workdir runs/smoke": "",
    "python train.py --config configs/digits.py --init_from runs/digits "
    "--workdir runs/tuned": FEWER_STEPS,
    "python train.py --config configs/digits.py --init_from digits.safetensors "
    "--workdir runs/again": FEWER_STEPS,
    "python sample.py --num 1024": "--sampler ddim --steps 4",
}
NOT_RUN = {"make demo", "make test", "make test-slow", "make lint", "make bench"}
INSTALL = {"pip install -r requirements.txt"}  # The environment of this test has it.


def test_every_command_of_the_readme_is_accounted_for():
    python = {c for c in COMMANDS if c.startswith("python ")}
    assert python and set(COMMANDS) == python | (NOT_RUN | INSTALL) & set(COMMANDS)
    assert set(LONG) <= python, "a long command is no longer in the README"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in NOT_RUN & set(COMMANDS):
        assert line.split()[1] in targets


@pytest.mark.parametrize("page", ["README.md", *map(str, DOCS)])
def test_files_that_a_page_links_to_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        there = (ROOT / page).parent / link
        assert link.startswith("https://") or there.exists(), link


@pytest.mark.parametrize("page", map(str, DOCS))
def test_tests_that_a_page_names_exist(page):
    """`test_what_it_shows`, or `test_what_...` for the beginning of one."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name, more in re.findall(r"`(test_\w+?)_?(\.\.\.)?`", (ROOT / page).read_text()):
        assert re.search(rf"def {name}{'' if more else '[(]'}", tests), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with the project's commands and configs, so that runs/ is new."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "train.py",
        "sample.py",
        "export.py",
        "evaluate.py",
        "configs",
        "diffusion_jax",
    ):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_pictures").mkdir()
    for i in range(40):
        image = Image.effect_noise((100, 80), 40 + i).convert("RGB")
        image.save(folder / f"my_pictures/{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def prepared(folder):
    """The real CIFAR-10 in the folder's tfds/, from the files that TFDS downloads."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data in ../shared/data")
    for command in (
        [SHARED / "tools/prepare_tfds.py", folder / "tfds", "cifar10"],
        ["-m", "diffusion_jax.data.prepare", "cifar10", folder / "tfds"],
    ):
        subprocess.run([sys.executable, *command], check=True, cwd=folder)


@pytest.mark.slow
def test_the_commands_run_in_their_order(folder, prepared, command):
    for line in COMMANDS:
        if line.startswith("python "):
            arguments = shlex.split(f"{line} {LONG.get(line, '')}")[1:]
            result = command(*arguments, cwd=folder)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
    assert list((folder / "runs/cifar10/samples").glob("*_num1024.npz"))


def test_short_commands_run(folder, command):
    """Those under a minute, as they stand; sampling needs the run of the slow test."""
    short = [c for c in COMMANDS if c.startswith("python train.py") and c not in LONG]
    assert short
    for line in short:
        command(*shlex.split(line)[1:], cwd=folder, check=0)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    of_the_oracle, of_a_run = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(of_the_oracle, {})
    assert 0 < float(capsys.readouterr().out) < 1  # Below the loss of a silent network.
    names: dict = {}
    exec(of_a_run.replace("num_steps=200", "num_steps=20"), names)
    assert int(names["state"].step) == 20 and (tmp_path / "runs/mine/loss.png").exists()
