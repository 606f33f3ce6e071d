"""Cascades of tiny runs, 2x2 to 4x4 to 8x8: what they draw, resuming, and refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import sources
from diffusion_jax.data.kinds import PICTURES
from diffusion_jax.data.low_res import reduced
from diffusion_jax.experiment import build_sampler
from diffusion_jax.jobs import cascade, likelihood, origins, quality, sample, sweep
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import ROOT, pictures_config

NAMES = ("small", "middle", "large")
REQUEST = sample.Request(num=6)  # Two batches of 4, of which the second is not full.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three short runs on 8x8 pictures of three classes: dark, grey and bright ones."""
    folder = tmp_path_factory.mktemp("cascade")
    classes = np.arange(40, dtype=np.int32) % 3
    noise = np.random.default_rng(0).integers(0, 20, (40, 8, 8, 1))
    images = (20 + 100 * classes[:, None, None, None] + noise).astype(np.uint8)
    for name, size, low_res in zip(NAMES, (2, 4, 8), ((), (2,), (4,)), strict=True):
        train.train(config_of(folder, images, classes, size, low_res), folder / name)
    return folder


def config_of(folder, images, classes, size, low_res):
    training = {"num_steps": 300, "checkpoint_every": 300, "eval_every": 0}
    config = pictures_config(folder, 1, 8, 0.1, steps_per_dispatch=50, **training)
    np.savez(folder / "x.npz", arr_0=images, arr_1=classes)
    config.data.image_size, config.data.low_res = (size,), low_res
    config.data.reduced_from = (8,) if size < 8 else ()
    config.data.labels = True
    config.model.num_groups = 1  # A group of one channel would take the label out.
    config.sampling.batch_size, config.sampling.steps = 4, 5
    return config


def paths(runs, *names):
    return ",".join(str(runs / name) for name in names)


def drawn(runs, out, names=NAMES, request=REQUEST, **given):
    stages = cascade.parse(paths(runs, *names), given, "newest")
    cascade.draw(stages, request, out=out)
    return archive(out)


def archive(out):
    return np.load(out.with_name(out.name + ".npz"))["arr_0"]


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}


@pytest.mark.parametrize("names", [NAMES[:2], NAMES])
def test_every_stage_refines_the_samples_of_the_one_before(runs, tmp_path, names):
    """Dark pictures stay dark and bright ones bright, and each file says its run."""
    request = sample.Request(num=6, label=(0, 2))
    last = drawn(runs, tmp_path / "x", names, request).astype(float)
    assert last.shape == (6, 2 ** len(names), 2 ** len(names), 1)
    found = [last]
    for i in range(1, len(names)):
        found.append(archive(tmp_path / f"x_stage{i}").astype(float))
        assert found[i].shape == (6, 2**i, 2**i, 1)
    for images in found:
        brightness = images.mean(axis=(1, 2, 3))
        assert brightness[::2].max() + 30 < brightness[1::2].min()
    notes = [tmp_path / f"x_stage{i}.json" for i in range(1, len(names))]
    for name, path in zip(names, [*notes, tmp_path / "x.json"], strict=True):
        note = json.loads(path.read_text())
        assert (note["run"], note["checkpoint_step"]) == (str(runs / name), 300)


def test_a_sample_does_not_depend_on_its_batch_or_the_number(runs, tmp_path):
    whole = drawn(runs, tmp_path / "a").astype(int)
    few = drawn(runs, tmp_path / "b", request=sample.Request(num=3)).astype(int)
    np.testing.assert_array_equal(few, whole[:3])
    larger = drawn(runs, tmp_path / "c", batch_size=8).astype(int)
    assert np.abs(larger - whole).max() <= 1
    other = drawn(runs, tmp_path / "d", request=sample.Request(num=6, seed=1)).astype(int)
    assert np.abs(other - whole).max() > 10


def test_stages_of_one_seed_have_noise_of_their_own(runs):
    keys = [sample.Request(num=1, stage=i).key for i in range(3)]
    assert len({str(key) for key in keys}) == 3
    other = sample.Request(num=1, seed=1).key
    assert str(other) not in {str(key) for key in keys}


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_an_interrupted_cascade_goes_on(runs, tmp_path, monkeypatch, stopped):
    """Ctrl-C in one of four batches: the same request gives the same files."""
    drawn(runs, tmp_path / "whole" / "x", NAMES[:2])
    draw_batch, count = sample.draw_batch, iter(range(100))

    def interrupted(*arguments):
        if next(count) == stopped:
            os.kill(os.getpid(), signal.SIGINT)
        return draw_batch(*arguments)

    monkeypatch.setattr(sample, "draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drawn(runs, tmp_path / "again" / "x", NAMES[:2])
    assert not (tmp_path / "again" / "x.npz").exists()
    drawn(runs, tmp_path / "again" / "x", NAMES[:2])
    assert next(count) == 4  # No batch was drawn twice.
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def test_a_finished_cascade_is_not_replaced(runs, tmp_path):
    drawn(runs, tmp_path / "x")
    before = files_of(tmp_path)
    with pytest.raises(BadRequest, match="exists already; give another --out"):
        drawn(runs, tmp_path / "x")
    assert files_of(tmp_path) == before


def test_a_run_may_have_values_of_its_own(runs):
    text = f"{runs / 'small'} steps=3 guidance=2,{runs / 'middle'} aug_level=0.25"
    given = {"steps": 4, "aug_level": 0.5}
    first, second = cascade.parse(text, given, "newest")
    assert (first.config.sampling.steps, first.config.sampling.guidance) == (3, 2)
    assert (second.config.sampling.steps, second.config.sampling.guidance) == (4, 1)
    assert second.config.sampling.aug_level == 0.25


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["small"], "give two runs or more"),
        (["middle", "large"], "the first run refines smaller images"),
        (["small", "small"], "was trained without data.low_res"),
        (
            ["small", "large"],
            "draws images of 2x2 and 1 channel, but .* refines images of 4x4",
        ),
        (["small", "middle", "middle"], "draws images of 4x4 .* refines images of 2x2"),
        (["small", "nothing"], "nothing"),
        (["small", "middle", "steps=2"], "steps=2': must be a run, or a run and"),
        (["small aug_level=0.1", "middle"], "--aug_level .0.1. is for runs that refine"),
        (["small", "middle steps=x"], "steps=x: must be a whole number"),
        (["small", "middle num=3"], "'num' cannot be given here"),
        (["small", "middle aug_level=1.5"], "aug_level .1.5. must be in 0 .. 1"),
        (["small", "middle aug_level=0.6"], "must be at most loss.aug_level .0.5."),
    ],
)
def test_stages_that_do_not_meet_are_refused(runs, names, said):
    with pytest.raises(BadRequest, match=said):
        cascade.parse(paths(runs, *names), {}, "newest")


@pytest.mark.parametrize("text", ["", ",", "runs/a,"])
def test_a_run_without_a_name_is_refused(text):
    with pytest.raises(BadRequest, match=f"--cascade '{text}': give two runs or more"):
        cascade.parse(text, {}, "newest")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": 3}, "draws images of 2x2 and 3 channels"),
        ({"labels": False, "num_classes": 0}, "has classes, and .* draws images of none"),
    ],
)
def test_channels_and_classes_that_do_not_meet_are_refused(runs, monkeypatch, change, said):
    read_config = run_folder.read_config

    def changed(workdir):
        config = read_config(workdir)
        if workdir.name == "small":
            for field, value in change.items():
                setattr(config.data, field, value)
        return config

    monkeypatch.setattr(run_folder, "read_config", changed)
    with pytest.raises(BadRequest, match=said):
        cascade.parse(paths(runs, "small", "middle"), {}, "newest")


def upscale_of(runs, pictures):
    return origins.Upscale("upscale", "given", pictures)


def test_a_run_that_refines_needs_something_to_refine(runs, tmp_path):
    config = run_folder.read_config(runs / "middle")
    with pytest.raises(BadRequest, match="give these with --upscale, or the run"):
        sample.generate(runs / "middle", config, REQUEST, out=tmp_path / "x")
    encode = origins.Encode("encode", "given", np.zeros((1, 4, 4, 1), np.uint8))
    request = dataclasses.replace(REQUEST, origin=encode)
    with pytest.raises(BadRequest, match="^--encode: the run makes 4x4 images"):
        sample.generate(runs / "middle", config, request, out=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_levels_draws_what_plain_calls_draw(runs, tmp_path):
    """Levels are data of one program, and change the samples."""
    pictures = np.array([20, 230], np.uint8).repeat(4).reshape(2, 2, 2, 1)
    config = run_folder.read_config(runs / "middle")
    request = sample.Request(num=4, origin=upscale_of(runs, pictures))
    settings = sweep.parse("aug_level=0,0.2,0.5", config, {})
    sweep.draw(runs / "middle", settings, request, out=tmp_path / "sweep")
    found = []
    for setting in settings:
        own = setting.config
        sample.generate(runs / "middle", own, request, out=tmp_path / setting.name)
        swept = archive(tmp_path / "sweep" / setting.name).astype(int)
        assert np.abs(swept - archive(tmp_path / setting.name)).max() <= 1
        found.append(swept)
    assert np.abs(found[0] - found[2]).max() > 10
    assert found[0][::2].mean() + 50 < found[0][1::2].mean()


@pytest.mark.parametrize("level", [-0.1, 1.5, 0.6])
def test_a_level_that_was_not_trained_is_refused(runs, level):
    config = run_folder.read_config(runs / "middle")
    with pytest.raises(BadRequest, match=f"--aug_level .{level}. must be"):
        build_sampler.change(config, {"aug_level": level})


def test_the_bound_is_that_given_the_low_resolution(runs, tmp_path, monkeypatch):
    """The negative of each low-resolution image, in its place, costs bits."""
    config = run_folder.read_config(runs / "middle")
    request = likelihood.Request(max_examples=4, num_timesteps_sampled=20)

    def bits(name):
        jobs = likelihood.prepare(runs / "middle", config, request, bound=tmp_path / name)
        return jobs[0]()["bits_per_dim"]

    found = bits("x")
    monkeypatch.setattr(sources, "reduced", lambda x, size: 255 - reduced(x, size))
    monkeypatch.setattr(likelihood, "check_same_data", lambda *arguments: None)
    assert 0 < found < bits("y")


def test_quality_needs_samples_of_a_cascade(runs, tmp_path):
    config = run_folder.read_config(runs / "large")
    with pytest.raises(BadRequest, match="--samples"):
        quality.prepare(runs / "large", config, quality.Request(), folder=tmp_path)


def command(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.process
def test_the_command_draws_a_cascade_and_refines_a_picture(runs, tmp_path):
    done = command(
        *("--cascade", paths(runs, "small", "middle"), "--num", 3, "--steps", 4),
        *("--aug_level", 0.2, "--label", "0,2", "--out", tmp_path / "x"),
    )
    assert done.returncode == 0, done.stderr
    written = {p.name for p in tmp_path.iterdir()}
    assert {"x.npz", "x.png", "x.json", "x_stage1.npz"} <= written
    assert not [name for name in written if "partial" in name]
    stored = np.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(stored["arr_1"], [0, 2, 0])
    assert json.loads((tmp_path / "x.json").read_text())["aug_level"] == 0.2
    Image.fromarray(np.full((8, 8), 220, np.uint8)).save(tmp_path / "bright.png")
    done = command(
        *("--workdir", runs / "middle", "--upscale", tmp_path / "bright.png"),
        *("--label", 2, "--out", tmp_path / "up"),
    )
    assert done.returncode == 0, done.stderr
    assert archive(tmp_path / "up").shape == (1, 4, 4, 1)
    assert archive(tmp_path / "up").mean() > 180


@pytest.mark.process
def test_a_refused_command_is_one_line_and_writes_nothing(runs, tmp_path):
    before = sorted(runs.rglob("*"))
    for arguments, said in (
        (("--cascade", paths(runs, "small", "large")), "refines images of 4x4"),
        (("--cascade", paths(runs, "small", "middle"), "--shard", "1/2"), "--shard"),
        (("--workdir", runs / "small", "--upscale", "x.png"), "data.low_res"),
        (("--workdir", runs / "small", "--aug_level", "0.1"), "without data.low_res"),
    ):
        done = command(*arguments, "--out", tmp_path / "x")
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert not list(tmp_path.iterdir()) and sorted(runs.rglob("*")) == before


def test_a_sweep_without_pictures_is_refused(runs, tmp_path):
    config = run_folder.read_config(runs / "middle")
    settings = sweep.parse("steps=2,3", config, {})
    with pytest.raises(BadRequest, match="--upscale"):
        sweep.draw(runs / "middle", settings, REQUEST, out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_images_refined_once_each_lie_in_a_grid_as_what_they_refine():
    small, large = np.zeros((9, 2, 2, 1), np.uint8), np.zeros((9, 4, 4, 1), np.uint8)
    picture = origins.Upscale("upscale", "x", small).draw(PICTURES, large, 0)
    side = 3 * 50 + 2  # Three cells of 48 pixels, with gaps.
    assert picture.size == (2 * side + 8, side + 16)
