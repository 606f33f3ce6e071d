"""report.py as a user runs it, and the report that train.py writes at its end."""

import json
import shlex
import shutil

import pytest

from diffusion_jax.config import from_json
from diffusion_jax.jobs import report
from diffusion_jax.jobs.command_line import load_config
from diffusion_jax.runs import events
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.report import facts
from helpers import ROOT
from report_runs import Page, make_run

FEW = (
    "--config.training.num_steps=4",
    "--config.training.eval_every=0",
    "--config.training.sample_every=0",
    "--config.ema.snapshots=0",
)


def test_train_writes_a_report_with_its_very_command(command, tmp_path):
    workdir = tmp_path / "a b"
    args = ("train.py", "--config=configs/swiss_roll.py", f"--workdir={workdir}", *FEW)
    result = command(*args, check=0)
    assert f"the report of the run: {workdir}/report.html\n" in result.stdout
    started = events.read(workdir)[0]
    assert shlex.split(started.text) == ["python", *args]
    page = Page((workdir / "report.html").read_text())
    assert started.text in page.text
    (chart,) = (chart for chart in page.data["charts"] if chart["title"] == "Loss")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    wanted = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    curve = chart["curves"][0]
    assert list(zip(curve["x"], curve["y"], strict=True)) == wanted and wanted
    assert "Training points" in page.text and (workdir / "data.png").exists()


def test_a_comparison_is_written_beside_the_first_run(command, tmp_path):
    make_run(tmp_path / "runs/a"), make_run(tmp_path / "runs/b")
    result = command("report.py", "runs/a", "runs/b", cwd=tmp_path, check=0)
    (said,) = result.stdout.splitlines()
    path = tmp_path / "runs/comparison.html"
    assert said == f"wrote {path}"
    assert Page(path.read_text()).data["runs"] == ["a", "b"]
    result = command("report.py", "runs/a", "--out", "x.html", cwd=tmp_path, check=0)
    assert Page((tmp_path / "x.html").read_text()).data["runs"] == ["runs/a"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "there is no run with a checkpoint under runs/"),
        (("--workdir=nowhere",), "there is no run in nowhere"),
        (("mine",), "there is no run in mine"),
        (("a", "--workdir=a"), "name the runs in one way"),
        (("a", "a"), "given twice"),
        (("a", "other"), "no metric in common"),
        (("empty",), "has no metrics to report"),
        (("a", "--out=mine/thesis.html"), "is not a report of diffusion_jax"),
        (("a", "--out=https://x/y.html"), "is a URL"),
        (("a", "--out=a/run.json"), "must end in .html"),
        (("a", "--overwrite"), "--overwrite: there is no such flag"),
    ],
)
def test_a_bad_request_is_one_line_and_writes_nothing(command, tmp_path, args, said):
    make_run(tmp_path / "a")
    make_run(tmp_path / "other", [{"step": 1, "accuracy": 1.0}])
    make_run(tmp_path / "empty", [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.html").write_text("a thesis")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = command("report.py", *args, cwd=tmp_path, check=2)
    assert said in result.stderr and result.stderr.count("\n") == 1 and not result.stdout
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_command_made_from_a_config_gives_that_config(command, tmp_path):
    workdir = make_run(tmp_path / "run")
    config = load_config("digits")
    config.name = "digits"
    config.optimizer.learning_rate = 2.5e-4
    config.ema.more_decays = (0.9, 0.99)
    config.ema.warmup = False
    config.data.random_flip = True
    run_folder.write_config(workdir, config)
    (made,) = report.train_command(facts.read(workdir, "run", 2))
    python, script, *args = shlex.split(made)
    shutil.rmtree(workdir)  # A new run, not one that goes on.
    result = command(script, *args, "--dry_run", cwd=ROOT, check=0)
    printed = result.stdout[result.stdout.index("{") :]
    assert (python, from_json(printed)) == ("python", config)
