"""evaluate.py as a user runs it: real runs, real files, real interruptions."""

import csv
import json
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import sources
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.diffusion.batch import Batch
from diffusion_jax.diffusion.forward_process import q_sample
from diffusion_jax.diffusion.variational_bound import prior_term, variational_terms
from diffusion_jax.evaluation.ode_likelihood import Flow
from diffusion_jax.evaluation.optimal_timesteps import Statistics
from diffusion_jax.experiment import build
from diffusion_jax.jobs import auto_timesteps
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.weights import load_from_run
from diffusion_jax.runtime import devices
from helpers import ROOT, train_arguments, wait_for

NUM = 48  # Images: three batches of 16.


@pytest.fixture(scope="module")
def run(tmp_path_factory, command):
    """A run of forty steps, which has learned little, but has a bound."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    options = (
        "--config.training.num_steps=40",
        "--config.training.likelihood_every=20",
        "--config.training.likelihood_timesteps=12",
        "--config.training.best_by=bits_per_dim",
        "--config.training.eval_every=20",
    )
    command(*train_arguments(workdir, *options), check=0)
    return workdir


def evaluate(command, run, out, *more, what="--likelihood", check=0):
    arguments = (f"--workdir={run}", what, f"--out={out}", *more)
    return command("evaluate.py", *arguments, check=check)


@pytest.fixture(scope="module")
def whole(run, command, tmp_path_factory):
    """The evaluation of NUM held-out images with every timestep: (path, printed text)."""
    out = tmp_path_factory.mktemp("evaluation") / "whole"
    result = evaluate(command, run, out, f"--max_examples={NUM}")
    return out, result.stdout


def figures(out):
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.statistical
def test_the_figure_is_that_of_the_terms_drawn_otherwise(run, whole):
    """The bound of all 200 images, t by t, in a plain loop with noise of its own."""
    found = figures(whole[0])
    config = run_folder.read_config(run)
    model = build.make_model(config)
    params = load_from_run(run, config, "ema").params
    images = sources.open_data_set(config.data).held_out
    x0 = PICTURES.to_network(jnp.asarray(images))

    @jax.jit
    def term(t):
        times = jnp.full(len(x0), t)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), t), x0.shape)
        x_t = q_sample(model.process, x0, times, noise)
        prediction = model.predict(params, x_t, times)
        return variational_terms(prediction, x0, jnp.clip(prediction.x0, -1, 1))

    terms = [np.asarray(term(t)) for t in range(config.process.num_timesteps)]
    bits = np.sum(terms, axis=0) + np.asarray(prior_term(model.process, x0))
    error = found["standard_error"] + bits.std() / np.sqrt(len(bits))
    assert abs(bits.mean() - found["bits_per_dim"]) < 4 * error


def test_what_is_printed_and_written_says_the_same(whole):
    out, said = whole
    found = figures(out)
    assert f"bits/dim {found['bits_per_dim']:.4f}" in said
    assert found["num_examples"] == NUM and found["checkpoint_step"] == 40
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [int(row["t_first"]) for row in rows] == list(range(49, -1, -1))
    terms = [float(row["bits_per_dim"]) for row in rows]
    assert sum(terms) + found["prior_L_T"] == pytest.approx(found["bits_per_dim"], rel=1e-5)
    assert terms[-1] == pytest.approx(found["distortion_L_0"])
    rates = [float(row["rate_before"]) for row in rows]
    assert rates == sorted(rates) and rates[0] == pytest.approx(found["prior_L_T"])
    width, height = Image.open(out.with_suffix(".png")).size
    assert width > 800 and height > 200
    again = sorted(p.name for p in out.parent.iterdir())
    assert again == ["whole.csv", "whole.json", "whole.png"]


def test_a_part_of_the_timesteps_agrees_within_its_standard_error(
    run, whole, command, tmp_path
):
    evaluate(command, run, tmp_path / "part", "--num_timesteps_sampled=12")
    part, all_of_them = figures(tmp_path / "part"), figures(whole[0])
    assert part["num_examples"] == 200 and part["num_timesteps_sampled"] == 12
    error = part["standard_error"] + all_of_them["standard_error"]
    assert abs(part["bits_per_dim"] - all_of_them["bits_per_dim"]) < 4 * error
    # In training, the same images had the same timesteps and noise.
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if "bits_per_dim" in line)
    assert (first["step"], last["step"]) == (20, 40)
    assert last["bits_per_dim"] == pytest.approx(part["bits_per_dim"], rel=1e-5)
    error = last["bits_per_dim_standard_error"]
    assert error == pytest.approx(part["standard_error"], rel=1e-4)
    terms = last["bits_per_dim_by_t"]
    assert len(terms) == 12 and list(terms)[0] == "0" and list(terms)[-1].endswith("-49")
    assert sum(terms.values()) + last["prior_L_T"] == pytest.approx(last["bits_per_dim"])
    assert Image.open(run / "evaluations" / "training_000040.png").width > 800


def test_the_loss_by_quarter_of_t_has_the_mean_of_all(run):
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    (line,) = (x for x in lines if "held_out_loss" in x and x["step"] == 40)
    quarters = line["held_out_loss_by_t"]
    assert list(quarters) == ["0-11", "12-24", "25-36", "37-49"]
    # 200 images run evenly through 50 timesteps: four of each, nearly.
    mean = np.average(list(quarters.values()), weights=[12, 13, 12, 13])
    assert line["held_out_loss"] == pytest.approx(mean, rel=0.05)
    assert quarters["0-11"] > quarters["37-49"]


@pytest.mark.slow
def test_the_ode_is_that_of_the_run(run, command, tmp_path):
    """Bits per dimension of `Flow`, on the run's images with its average."""
    more = ("--ode_steps=7", f"--max_examples={NUM}")
    result = evaluate(command, run, tmp_path / "ode", *more, what="--ode")
    found = figures(tmp_path / "ode")
    assert f"bits/dim {found['bits_per_dim']:.4f}" in result.stdout
    config = run_folder.read_config(run)
    flow = Flow(build.make_model(config), devices.make_mesh(), 7, dequantize=True)
    images = sources.open_data_set(config.data).held_out
    chosen = np.sort(sources.fixed_choice(len(images), NUM))
    x0 = np.asarray(PICTURES.to_network(jnp.asarray(images[chosen])))
    bits = flow.bits(load_from_run(run, config, "ema").params, Batch(x0), chosen, NUM)
    assert found["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-4)
    assert found["standard_error"] == pytest.approx(bits.std(ddof=1) / NUM**0.5, rel=1e-3)


@pytest.mark.slow
def test_timesteps_are_chosen_once_for_a_checkpoint(run, command, tmp_path):
    """Timesteps that sample.py has chosen are found by evaluate.py."""
    sampling = (f"--workdir={run}", "--num=4", "--batch_size=4", "--steps=6")
    result = command(
        "sample.py", *sampling, "--spacing=auto", f"--out={tmp_path}/s", check=0
    )
    assert "choosing timesteps" in result.stdout
    chosen = json.loads((tmp_path / "s.json").read_text())["timesteps"]
    assert len(chosen) == 6 and sorted(chosen, reverse=True) == chosen
    (kept,) = (run / "auto_timesteps").iterdir()
    result = evaluate(command, run, tmp_path / "auto", "--steps=6", "--spacing=auto")
    assert "choosing timesteps" not in result.stdout
    assert figures(tmp_path / "auto")["timesteps"] == chosen
    # A damaged file is not used, and is made again.
    kept.write_bytes(b"")
    result = command(
        "sample.py", *sampling, "--spacing=auto", f"--out={tmp_path}/r", check=0
    )
    assert "choosing timesteps" in result.stdout
    samples = [np.load(tmp_path / name)["arr_0"] for name in ("s.npz", "r.npz")]
    np.testing.assert_array_equal(*samples)


@pytest.mark.slow
def test_no_other_chain_is_as_good_as_the_chosen_one(run, command, tmp_path):
    bits = {}
    for spacing in ("auto", "linspace", "uniform", "ddim_quadratic"):
        evaluate(command, run, tmp_path / spacing, "--steps=6", f"--spacing={spacing}")
        bits[spacing] = figures(tmp_path / spacing)["bits_per_dim"]
    assert bits.pop("auto") < min(bits.values())


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_files(
    run, whole, command, tmp_path
):
    """An evaluation with kill -9 after the first of three batches, then Ctrl-C."""
    out, log = tmp_path / "cut", tmp_path / "log"
    arguments = [
        *(sys.executable, str(ROOT / "evaluate.py"), f"--workdir={run}", "--likelihood"),
        *(f"--out={out}", f"--max_examples={NUM}"),
    ]
    for number in (signal.SIGKILL, signal.SIGINT):
        before = len(list((tmp_path / "cut.partial").glob("0*.npy")))
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        if number == signal.SIGKILL:
            wait_for(
                lambda: len(list((tmp_path / "cut.partial").glob("0*.npy"))) > before  # noqa: B023
            )
        else:
            wait_for(lambda: "compiling" in log.read_text())
        process.send_signal(number)
        assert process.wait(60) in (-signal.SIGKILL, 130)
    assert "goes on from there" in log.read_text() and "Traceback" not in log.read_text()
    evaluate(command, run, out, f"--max_examples={NUM}")
    for suffix in (".json", ".csv", ".png"):
        expected = whole[0].with_suffix(suffix).read_bytes()
        assert out.with_suffix(suffix).read_bytes() == expected
    assert not (tmp_path / "cut.partial").exists()
    written = out.with_suffix(".json").read_bytes()
    result = evaluate(command, run, out, f"--max_examples={NUM}")
    assert "has the result of this request already" in result.stdout
    result = evaluate(command, run, out, "--max_examples=5", check=2)
    assert "exists already" in result.stderr
    assert out.with_suffix(".json").read_bytes() == written


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--max_examples=0",), "--max_examples 0 must be at least 1"),
        (("--num_timesteps_sampled=0",), "--num_timesteps_sampled 0 must be at least 1"),
        (("--num_timesteps_sampled=51",), "--num_timesteps_sampled 51 must be in 1 .. 50"),
        (("--split=test",), "--split ('test') is unknown"),
        (("--weights=0.3",), "holds ema"),
        (("--variance=learned",), "has not learned"),
        (("--nolikelihood",), "give --likelihood"),
        (("--steps=1",), "--steps 1 must be in 2 .. 50"),
        (("--steps=51",), "--steps 51 must be in 2 .. 50"),
        (("--spacing=auto",), "--spacing auto needs --steps"),
        (("--steps=5", "--spacing=best"), "--spacing ('best') is unknown"),
        (("--steps=5", "--spacing=log_snr"), "has times between"),
        (("--steps=5", "--num_timesteps_sampled=6"), "must be in 1 .. 5"),
        (("--ode",), "give --likelihood or --ode alone"),
        (("--ode_steps=0",), "ode_steps"),
        (("--ode_steps=1000000",), "ode_steps"),
        (("--out=~nobody_here/x",), "--out ~nobody_here/x"),
        (("--workdir=~nobody_here/x",), "--workdir ~nobody_here/x"),
        (("--out=RUN/checkpoints/x",), "belongs to the run"),
    ],
)
def test_bad_input_gets_one_line(run, command, tmp_path, flags, said):
    flags = [flag.replace("RUN", str(run)) for flag in flags]
    result = evaluate(command, run, tmp_path / "out", *flags, check=2)
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_points_have_no_such_likelihood(command, tmp_path):
    """Points are refused where levels are needed, but have a density under the flow."""
    workdir = tmp_path / "run"
    shutil.copytree(ROOT / "tests/fixtures/run_0.1.0", workdir)
    result = evaluate(command, workdir, tmp_path / "out", check=2)
    assert "of points; --ode" in result.stderr and result.stderr.count("\n") == 1
    sampling = (f"--workdir={workdir}", "--spacing=auto", "--steps=5")
    result = command("sample.py", *sampling, f"--out={tmp_path}/s", check=2)
    assert "--spacing ('auto')" in result.stderr and result.stderr.count("\n") == 1
    result = evaluate(command, workdir, tmp_path / "out", "--max_examples=50", what="--ode")
    assert "ode: 50 points, " in result.stdout and "images" not in result.stdout
    assert figures(tmp_path / "out")["likelihood_of"] == "x at t = 0"


@pytest.mark.slow
def test_both_are_checked_before_the_first_and_what_is_finished_is_not_done_again(
    run, command, tmp_path
):
    """A file in the way of the ODE stops both jobs; a finished bound is not done again."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    arguments = ("evaluate.py", f"--workdir={workdir}", "--likelihood", "--max_examples=4")
    folder = workdir / "evaluations"
    (folder / "ode_held_out_steps1_num4.json").write_text("of somebody else")
    result = command(*arguments, "--ode", "--ode_steps=1", check=2)
    assert "exists already" in result.stderr and result.stderr.count("\n") == 1
    assert not list(folder.glob("likelihood_held_out*.json"))
    command(*arguments, check=0)
    result = command(*arguments, "--ode", "--ode_steps=2", check=0)
    assert "has the result of this request already" in result.stdout
    assert (folder / "ode_held_out_steps2_num4.json").exists()


def test_damaged_statistics_are_measured_anew(tmp_path):
    """A flipped bit anywhere in a file of statistics is refused, or has no effect."""
    found = Statistics(np.ones((4, 21)), np.ones((4, 1)), np.full((4, 1), 0.5), 0.25)
    path, about = tmp_path / "kept.npz", {"weights": "ema"}
    said = {"about": json.dumps(about), "sha256": auto_timesteps._digest(found)}
    np.savez(path, **said, **found._asdict())
    whole = path.read_bytes()
    assert auto_timesteps._read(path, {"weights": "raw"}) is None
    refused = 0
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        again = auto_timesteps._read(path, about)
        refused += again is None
        for mine, theirs in zip(again or found, found, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert refused > 100
    path.write_bytes(whole)
    assert auto_timesteps._read(path, about) is not None
