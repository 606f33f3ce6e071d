"""The README's commands run, and its files exist."""

import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.sound_files import wav_of
from helpers import ROOT

README = (ROOT / "README.md").read_text()
# Pages whose commands are run, in this order.
PAGES = (
    "README.md",
    "docs/commands.md",
    "docs/losses.md",
    "docs/guidance.md",
    "docs/priors.md",
    "docs/pictures.md",
    "docs/samplers.md",
    "docs/likelihood.md",
    "docs/quality.md",
    "docs/training.md",
    "docs/report.md",
)


def commands_of(page):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [
        line.partition("#")[0].strip() for block in blocks for line in block.splitlines()
    ]
    return list(filter(None, lines))


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands_of(page)))
DOCS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "docs").rglob("*.md")
    if "_build" not in path.parts
)
FEWER_STEPS = (
    "--config.training.num_steps=20 --config.training.sample_every=20 "
    "--config.training.checkpoint_every=10"
)
NARROW = "--config.model.base_channels=32 --config.data.batch_size=16"
PICTURES = "python train.py --config configs/folder.py --config.data.path=my_pictures/"
TINY = "--config.model.base_channels=32 --config.data.batch_size=4"
# Long commands and the options that shorten them.
LONG = {
    "python train.py --config configs/sound_folder.py --config.data.path=my_sounds/": (
        f"{FEWER_STEPS} {TINY} --config.data.sound_length=1024"
    ),
    "python train.py --config configs/clip_folder.py --config.data.path=my_clips/": (
        f"{FEWER_STEPS} {TINY} --config.data.num_frames=2"
    ),
    "python train.py --config configs/mnist8.py": f"{FEWER_STEPS} --config.data.path=tfds",
    "python train.py --config configs/mnist8to32.py": (
        f"{FEWER_STEPS} --config.data.path=tfds"
    ),
    "python sample.py --cascade runs/mnist8,runs/mnist8to32": (
        "--num 4 --sampler ddim --steps 4"
    ),
    "python train.py --config configs/digits.py --config.training.epochs=50 "
    "--config.training.sample_every_epochs=10": "--config.training.epochs=1",
    # The set is prepared where the fixture has put it.
    "python train.py --config configs/cifar10.py": (
        f"{FEWER_STEPS} {NARROW} --config.data.path=tfds --config.training.num_held_out=64"
    ),
    "python train.py --config configs/digits.py": FEWER_STEPS,
    "python train.py --config digits": FEWER_STEPS,
    "python train.py --config configs/digits_conditional.py": FEWER_STEPS,
    "python train.py --config digits --config.training.num_steps=500 "
    "--workdir runs/short": FEWER_STEPS,
    "python train.py --config configs/swiss_roll.py": FEWER_STEPS,
    "python train.py --config configs/digits.py --config.optimizer.learning_rate=5e-4 "
    "--workdir runs/slower": FEWER_STEPS,
    "python train.py --config configs/digits.py --config.process.variance=learned "
    "--config.loss.kind=hybrid --workdir runs/learned": FEWER_STEPS,
    PICTURES: f"{FEWER_STEPS} {NARROW}",
    f"{PICTURES} --config.data.image_size=32 --config.model.base_channels=32 "
    "--config.data.batch_size=16 --config.training.num_steps=3000 "
    "--config.optimizer.warmup_steps=100 --workdir runs/small": FEWER_STEPS,
    f"{PICTURES} --smoke": "--config.model.base_channels=64",
    "python train.py --config configs/digits.py --init_from runs/digits "
    "--workdir runs/tuned": FEWER_STEPS,
    "python train.py --config configs/digits.py --init_from digits.safetensors "
    "--workdir runs/again": FEWER_STEPS,
    "python sample.py --num 1024": "--sampler ddim --steps 4",
    "python evaluate.py --workdir runs/digits --quality": "--num 50 --steps 10",
    "python evaluate.py --workdir runs/digits --quality --num 5000 --sampler ddim "
    "--steps 50 --seeds 3": "--num 50",
    "python evaluate.py --workdir runs/digits --quality --sampler ddim --sweep "
    '"steps=10,20,50"': "--num 50",
    "python train.py --config configs/digits.py --config.training.quality_every=500 "
    "--config.training.best_by=fd_pca20_n1000 --workdir runs/by_quality": FEWER_STEPS,
    "python train.py --config configs/digits.py --config.ema.more_decays=0.9,0.999 "
    "--workdir runs/averages": FEWER_STEPS,
}
# Commands that install what the environment of this test has.
INSTALL = {
    "python3 -m venv .venv && . .venv/bin/activate",
    "pip install -r requirements.txt",
}
DEMO = re.findall(
    r"^\t\$\(BIN\)/(python .*runs/digits.*|python .*digits.py)$",
    (ROOT / "Makefile").read_text(),
    re.MULTILINE,
)


def test_every_command_of_the_pages_is_accounted_for():
    python = {c for c in COMMANDS if c.startswith("python ")}
    assert set(COMMANDS) - python == {"make demo"} | INSTALL and len(DEMO) == 2
    assert set(LONG) <= python, "a long command is in no page any more"


def test_the_readme_is_short_and_the_index_leads_to_every_page():
    assert len(README.split()) <= 900
    index = (ROOT / "docs" / "index.md").read_text()
    for page in DOCS:
        assert f"]({page.relative_to('docs')})" in index or page.name == "index.md"


@pytest.mark.parametrize("page", ["README.md", *map(str, DOCS)])
def test_files_that_a_page_links_to_exist(page):
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        there = (ROOT / page).parent / link
        assert link.startswith("https://") or there.exists(), link


@pytest.mark.parametrize("page", map(str, DOCS))
def test_tests_that_a_page_names_exist(page):
    """Names of tests: `test_what_it_shows`, or `test_what_...` for the beginning of one."""
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
        "report.py",
        "evaluate.py",
        "examples",
        "configs",
        "diffusion_jax",
    ):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my_pictures").mkdir()
    for i in range(40):
        image = Image.effect_noise((100, 80), 40 + i).convert("RGB")
        image.save(folder / f"my_pictures/{i}.jpg")
    (folder / "my_sounds").mkdir()
    (folder / "my_clips").mkdir()
    for i in range(8):
        tone = np.sin(np.arange(1024) * (i + 1) / 10)[:, None]
        (folder / f"my_sounds/{i}.wav").write_bytes(wav_of(tone, 16000))
        frames = [Image.effect_noise((64, 64), 40 + i + j) for j in range(2)]
        frames[0].save(
            folder / f"my_clips/{i}.gif", save_all=True, append_images=frames[1:]
        )
    return folder


@pytest.mark.slow
def test_the_commands_run_in_their_order(folder, tfds_sets, command, monkeypatch):
    monkeypatch.chdir(folder)
    exec(python_of("docs/pictures.md"), {})
    shutil.copy("own/0.png", "digit.png")
    (folder / "tfds").symlink_to(tfds_sets)
    for line in (x for c in COMMANDS for x in (DEMO if c == "make demo" else [c])):
        if line.startswith("python "):
            arguments = shlex.split(f"{line} {LONG.get(line, '')}")[1:]
            result = command(*arguments, cwd=folder)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
    assert list((folder / "runs/cifar10/samples").glob("*_num1024.npz"))


def test_short_commands_run(folder, command):
    """Training commands of less than a minute run as they stand."""
    short = [c for c in COMMANDS if c.startswith("python train.py") and c not in LONG]
    assert short
    for line in short:
        command(*shlex.split(line)[1:], cwd=folder, check=0)


def python_of(page):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return code


def test_the_oracle_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(python_of("docs/python.md"), {})
    assert 0 < float(capsys.readouterr().out) < 1  # Below the loss of a silent network.


@pytest.mark.slow
def test_the_python_of_the_readme_learns(tmp_path, monkeypatch):
    """Samples of the README's Python have the quartiles and the spread of the data."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_of("README.md"), names)
    found, data = np.asarray(names["x"]), names["points"]
    assert abs(found.std() / data.std() - 1) < 0.15
    for share in (0.25, 0.5, 0.75):
        assert abs(np.quantile(found, share) - np.quantile(data, share)) < 0.1
    assert (tmp_path / "runs/mine/loss.png").exists()
