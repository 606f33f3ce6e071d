"""A sweep of settings: one program, the samples of plain calls, files, and refusals."""

import contextlib
import csv
import dataclasses
import itertools
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.experiment import build
from diffusion_jax.jobs import sample, sweep
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.runtime.interrupts import Stop
from diffusion_jax.training import train
from helpers import pictures_config, points_config

NUM = 6  # Samples of a setting: two batches of 4, of which the second is not full.
MANY = "sampler=ddpm,dpmpp_3m,heun steps=3,5 guidance=0,1,2"
REQUEST = sample.Request(num=NUM, label=(0, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on pictures of three classes."""
    folder = tmp_path_factory.mktemp("sweep")
    training = {"num_steps": 300, "checkpoint_every": 300, "eval_every": 300}
    config = pictures_config(folder, 1, 4, 0.1, **training)
    classes = np.arange(40, dtype=np.int32) % 3
    images = (20 + 100 * classes[:, None, None, None] + np.zeros((40, 4, 4, 1))).astype(
        "u1"
    )
    np.savez(folder / "x.npz", arr_0=images, arr_1=classes)
    config.data.labels = True
    config.model.num_groups = 1
    config.sampling.batch_size = 4
    train.train(config, folder / "run")
    return folder / "run"


@pytest.fixture
def network(monkeypatch):
    """The `traces` of the network and its `calls`: the batch of each."""
    asked, make_model = types.SimpleNamespace(traces=[], calls=[]), build.make_model

    def counted(config):
        model = make_model(config)

        def apply_fn(params, x_t, *arguments, **options):
            asked.traces.append(len(x_t))
            jax.debug.callback(lambda _: asked.calls.append(len(x_t)), x_t[0, 0, 0, 0])
            return model.apply_fn(params, x_t, *arguments, **options)

        return dataclasses.replace(model, apply_fn=apply_fn)

    monkeypatch.setattr(build, "make_model", counted)
    return asked


def settings_of(run, text, **given):
    return sweep.parse(text, run_folder.read_config(run), given)


def samples_of(path):
    return np.load(path.with_name(path.name + ".npz"))["arr_0"].astype(int)


@pytest.mark.filterwarnings("ignore:heun multiplies", "ignore:dpmpp_3m multiplies")
def test_one_program_draws_what_plain_calls_draw(run, network, tmp_path, monkeypatch):
    """18 settings of three methods: one trace, live rows alone, and the same samples.

    A row of a guided setting asks for twice as many, and of scale 0 or 1 for the batch.
    """
    settings, traces, batches = settings_of(run, MANY), [], []
    draw_batch = sample.draw_batch

    def told(job, sampler, i):
        drawn = jax.block_until_ready(draw_batch(job, sampler, i))
        jax.effects_barrier()
        traces.append(len(network.traces))
        batches.append(list(network.calls))
        network.calls.clear()
        return drawn

    monkeypatch.setattr(sample, "draw_batch", told)
    sweep.draw(run, settings, REQUEST, out=tmp_path)
    assert len(traces) == 1 + 2 * len(settings)  # The first compiles, and calls nothing.
    assert len(set(traces)) == 1 and not batches[0]
    for i, setting in enumerate(settings):
        steps, scale = setting.values["steps"], setting.values["guidance"]
        calls = 2 * steps - 1 if setting.values["sampler"] == "heun" else steps
        for found in batches[1 + 2 * i : 3 + 2 * i]:
            assert found == [8 if scale == 2 else 4] * calls
    monkeypatch.setattr(sample, "draw_batch", draw_batch)
    for setting in settings[::4]:
        name = setting.name
        sample.generate(run, setting.config, REQUEST, out=tmp_path / "plain" / name)
        plain = samples_of(tmp_path / "plain" / name)
        assert np.abs(samples_of(tmp_path / name) - plain).max() <= 1
        assert len({x.tobytes() for x in plain}) == NUM
    of_scales = [samples_of(tmp_path / setting.name) for setting in settings[:3]]
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(of_scales)) > 20


def test_the_sheet_and_the_table_compare_the_settings(run, tmp_path, capfd):
    settings = settings_of(run, "steps=2,5 guidance=0,1,2", sampler="ddim")
    sweep.draw(run, settings, REQUEST, out=tmp_path)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(r["steps"], r["guidance"]) for r in rows] == [
        (steps, scale) for steps in "25" for scale in "012"
    ]
    assert [int(r["calls_per_sample"]) for r in rows] == [2, 2, 4, 5, 5, 10]
    for row in rows:
        note = json.loads((tmp_path / f"{row['name']}.json").read_text())
        assert float(row["seconds"]) == pytest.approx(note["seconds"], rel=0.01) != 0
        assert note["network_calls"] == int(row["steps"])
        assert (tmp_path / f"{row['name']}.png").is_file()
    printed = capfd.readouterr().out
    assert "steps  guidance  calls per sample  seconds  name" in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    width, height = 6 * 50 + 2 + 8, 16 + 52 + 8  # Six samples of 48 pixels in each cell.
    assert sheet.shape == (2 * height - 8, 3 * width - 8)
    for i, row in enumerate(rows):
        top, left = i // 3 * height + 16 + 2, i % 3 * width + 2
        first = samples_of(tmp_path / row["name"])[0, :, :, 0]
        np.testing.assert_array_equal(
            sheet[top : top + 48 : 12, left : left + 48 : 12], first
        )


def test_a_sweep_goes_on_where_it_was_stopped(run, network, tmp_path, monkeypatch):
    """Stopped after three of eight batches; what is done is not drawn again."""
    settings = settings_of(run, "steps=2,3 guidance=1,2")
    sweep.draw(run, settings, REQUEST, out=tmp_path / "whole")
    stop = Stop()
    monkeypatch.setattr(
        sweep, "stop_on_interrupt", lambda *_, **__: contextlib.nullcontext(stop)
    )
    save_batch, saved = sample.save_batch, []

    def stopping(*arguments):
        save_batch(*arguments)
        saved.append(1)
        if len(saved) == 3:
            stop.ask(2)

    monkeypatch.setattr(sample, "save_batch", stopping)
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        sweep.draw(run, settings, REQUEST, out=out)
    assert len(saved) == 3 and [p.name for p in out.glob("*.npz")] == ["ddpm_2.npz"]
    before = (out / "ddpm_2.npz").stat().st_mtime_ns
    stop.wanted = False
    jax.effects_barrier()
    network.calls.clear()
    sweep.draw(run, settings, REQUEST, out=out)
    jax.effects_barrier()
    # The second batch of (2, guided), and both of (3, not guided) and of (3, guided).
    assert sorted(network.calls) == [4] * 3 * 2 + [8] * (2 + 3 * 2)
    assert (out / "ddpm_2.npz").stat().st_mtime_ns == before
    assert not list(out.glob("*.partial"))
    for setting in settings:
        names = [folder / f"{setting.name}.npz" for folder in (tmp_path / "whole", out)]
        assert names[0].read_bytes() == names[1].read_bytes()
    sweep.draw(run, settings, REQUEST, out=out)
    assert len(saved) == 8


def test_files_of_others_are_not_replaced(run, tmp_path):
    """Refused before anything is written: another's sheet, and samples of another seed."""
    (tmp_path / "sheet.png").write_text("mine")
    settings = settings_of(run, "steps=2,3")
    with pytest.raises(BadRequest, match="sheet.png exists already"):
        sweep.draw(run, settings, REQUEST, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    out = tmp_path / "sweep"
    sample.generate(run, settings[1].config, REQUEST, out=out / "ddpm_3")
    other = dataclasses.replace(REQUEST, seed=1)
    files = sorted(out.iterdir())
    with pytest.raises(BadRequest, match="steps=3: .*ddpm_3.png exists already"):
        sweep.draw(run, settings, other, out=out)
    assert sorted(out.iterdir()) == files
    sweep.draw(run, settings, other, out=out, overwrite=True)
    assert json.loads((out / "ddpm_3.json").read_text())["seed"] == 1


def test_a_sweep_is_the_product_in_the_order_written():
    config = points_config()
    config.data.labels, config.sampling.steps = True, 20
    found = sweep.parse("guidance=1,2.5 --steps=10,15", config, {"sampler": "dpmpp_2m"})
    assert [s.title for s in found] == [
        f"guidance={scale} steps={steps}" for scale in ("1", "2.5") for steps in (10, 15)
    ]
    assert {s.config.sampling.sampler for s in found} == {"dpmpp_2m"}
    assert sweep.folder_name(found, {"sampler": "dpmpp_2m", "batch_size": 8}) == (
        "sweep_dpmpp_2m_guidance1-2.5_steps10-15"
    )
    assert config.sampling.steps == 20
    found = sweep.parse("steps=5,6 guidance=0,1,2 eta=1", config, {})
    assert sweep.columns_of(found) == 3
    # Where the run alone says ddpm, eta is that of ddim.
    found = sweep.parse("eta=0,1", config, {})
    assert [s.name for s in found] == ["ddim_20", "ddim_20_eta1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz=10", "'stepz' cannot be swept; did you mean steps"),
        ("threshold=none", "'threshold' cannot be swept; give --threshold beside"),
        ("steps", "must be fields with values"),
        ("steps=10,", "must be a whole number"),
        ("eta=a", "must be a number"),
        ("steps=1 steps=2", "steps is given twice"),
        ("steps=5,6,5", "setting steps=5 is given twice"),
        ("guidance=1,nan", "setting guidance=nan: --guidance"),
        ("sampler=ddim,heun eta=0", "setting sampler=heun eta=0: --eta .* not for"),
        ("steps=5,2000", "setting steps=2000: --steps .2000. must be at most"),
        ("spacing=karras,auto", "setting spacing=auto: --spacing .* chooses"),
        ("steps=" + ",".join(map(str, range(1, 102))), "101 settings, and 100"),
        ("seed=1", "'seed' cannot be swept; it can be"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(text, said):
    with pytest.raises(BadRequest, match=said):
        sweep.parse(text, points_config(), {})


def test_a_flag_that_a_sweep_does_not_go_with_is_refused(run, tmp_path, command):
    """One line, status 2, and nothing is written."""
    for flags, said in (
        (["--steps=5"], "--steps and --sweep steps=...: give one of them"),
        (["--show_chain"], "--show_chain and --sweep"),
        (["--shard=1/2"], "--shard and --sweep"),
        (["--timesteps=9,5"], "--steps and --timesteps: give one of them"),
        (["--spacing=auto"], "setting steps=2: --spacing auto"),
        ([f"--guide={run}"], "setting steps=2: --guide"),
        ([f"--out={run}/config.json"], "must be a folder"),
    ):
        line = [f"--workdir={run}", "--sweep=steps=2,3", f"--out={tmp_path}/x", *flags]
        result = command("sample.py", *line, check=2)
        assert result.stderr.count("\n") == 1 and said in result.stderr, result.stderr
    assert not list(tmp_path.iterdir())
