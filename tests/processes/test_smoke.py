"""A smoke run: everything in small with the config's own network, and its estimate."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from diffusion_jax.jobs import likelihood, sample
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import read_metrics
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import smoke, train
from helpers import ROOT, SHARED, TINY, pictures_config, points_config

COMMANDS = {"sample.py": sample.try_out, "evaluate.py": likelihood.try_out}


def picture_config(tmp_path):
    """Config of a run on tiny pictures that asks for everything."""
    training = {"num_steps": 9000, "sample_every": 3000, "likelihood_every": 3000}
    return pictures_config(tmp_path, 3, 8, 0.2, **training, eval_every=300)


def test_a_smoke_run_does_all_that_the_config_asks_for(tmp_path, capsys):
    """A smoke run with the config's network and data, twice in the same folder."""
    config, workdir = picture_config(tmp_path), tmp_path / "run"
    said = []
    for _ in range(2):
        smoke.run(config, workdir, train.Request(), COMMANDS)
        said.append(capsys.readouterr().out)
    there = run_folder.read_config(workdir)
    assert there.model == config.model and there.data == config.data
    last = there.training.num_steps
    assert run_folder.saved_steps(workdir)[-1] == last and last >= 4
    lines = read_metrics(workdir / "metrics.jsonl")
    for name in ("held_out_loss", "bits_per_dim"):
        assert [x["step"] for x in lines if name in x] == [last - 1, last]
    grids = sorted(p.name for p in (workdir / "samples").glob("step_*.png"))
    assert grids == [f"step_{step:06d}.png" for step in (last - 1, last)]
    with np.load(workdir / "samples/smoke.npz") as file:
        assert file["arr_0"].shape[1:] == (4, 4, 3)
    assert json.loads((workdir / "evaluations/smoke.json").read_text())["bits_per_dim"] > 0
    for output in said:
        assert f"resuming {workdir} at step 2" in output
        assert not re.search("warning|goes on from|each sample grid has", output)
        for words in ("first start", "second start", "sample.py", "evaluate.py"):
            assert re.search(rf"^  {words} +[\d.]+ s$", output, re.MULTILINE), words
        assert "for 9,000 train steps of 8 images" in output
        for words in ("9,000", "held-out loss .* 30", "bits/dim .* 3", "sample grid .* 3"):
            assert re.search(f"^  .*{words} times$", output, re.MULTILINE), words


def test_a_smoke_run_leaves_another_run_alone(tmp_path):
    config = dataclasses.replace(picture_config(tmp_path), name="mine")
    for name in ("mine", "other.smoke"):  # No smoke run by its name, or by its length.
        run_folder.write_config(tmp_path, dataclasses.replace(config, name=name))
        with pytest.raises(BadRequest, match="not a smoke run; .* to take runs/smoke/mine"):
            smoke.run(config, tmp_path, train.Request(), COMMANDS)
    assert run_folder.read_config(tmp_path).name == "other.smoke"


def test_no_other_run_goes_on_with_a_smoke_run(tmp_path):
    """A smoke run is not resumed by another run, nor taken as the newest run."""
    runs, config = tmp_path / "runs", points_config(num_steps=2, checkpoint_every=1)
    train.train(config, runs / "real")
    train.train(dataclasses.replace(config, name="mine.smoke"), runs / "smoke_run")
    assert run_folder.newest_run(runs) == runs / "real"
    config.training.num_steps = 4
    with pytest.raises(BadRequest, match="holds a smoke run"):
        train.train(config, runs / "smoke_run")
    assert run_folder.saved_steps(runs / "smoke_run")[-1] == 2


@pytest.mark.slow
def test_ctrl_c_while_it_samples_ends_a_smoke_run(tmp_path, monkeypatch):
    """Ctrl-C while the only batch is drawn, which `sample.py` finishes."""
    config, done = picture_config(tmp_path), []
    make_sampler = sample.build_sampler.make_sampler

    def interrupted(*arguments, **options):
        sampler = make_sampler(*arguments, **options)

        def press(*inputs):
            os.kill(os.getpid(), signal.SIGINT)
            return sampler(*inputs)

        return press

    def try_out(*arguments):
        monkeypatch.setattr(sample.build_sampler, "make_sampler", interrupted)
        return sample.try_out(*arguments)

    commands = {"sample.py": try_out, "evaluate.py": lambda *_: done.append(1)}
    with pytest.raises(KeyboardInterrupt):
        smoke.run(config, tmp_path / "run", train.Request(), commands)
    assert not done


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--overwrite"], "--smoke and --overwrite: give one of them"),
        (["--dry_run"], "--smoke and --dry_run"),
        (["--change_learning_rate"], "--smoke and --change_learning_rate"),
        (["--config.data.source=folder", "--config.data.path=no_such"], "no_such"),
        (["--config.data.source=npz", "--config.data.path=no.npz"], "no.npz"),
    ],
)
def test_a_smoke_run_that_cannot_be_is_refused(command, tmp_path, flags, said):
    result = command(
        "train.py", *TINY, "--smoke", f"--workdir={tmp_path / 'run'}", *flags, check=2
    )
    assert said in result.stderr and not (tmp_path / "run").exists()


PHOTOGRAPHS = SHARED / "data/stanford_cars_train_128x96.zip"
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_smoke_run_of_every_config(name, command, tmp_path, request):
    data = []
    if name == "fashion_mnist":
        pytest.skip("its data are not in ../shared/data")
    if name.startswith(("cifar", "mnist")):
        data = [f"--config.data.path={request.getfixturevalue('tfds_sets')}"]
    if name.startswith("folder"):
        if not PHOTOGRAPHS.exists():
            pytest.skip("needs the real data in ../shared/data")
        data = [f"--config.data.path={PHOTOGRAPHS}"]
    began = time.monotonic()
    result = command("train.py", f"--config={name}", "--smoke", *data, cwd=tmp_path)
    took = time.monotonic() - began
    assert result.returncode == 0, result.stdout + result.stderr
    assert "everything worked" in result.stdout
    run_folder.read_config(tmp_path / "runs/smoke" / name)
    with np.load(tmp_path / f"runs/smoke/{name}/samples/smoke.npz") as file:
        assert len(file["arr_0"])
    shutil.rmtree(tmp_path / "runs")  # Gigabytes.
    if name == "cifar10":
        assert took < 180
