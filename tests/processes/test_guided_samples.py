"""Samples of a run with labels: by class, guided, and in the file."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.config import (
    Config,
    DataConfig,
    ProcessConfig,
    SamplingConfig,
    to_json,
)
from diffusion_jax.data.kinds import kind_of
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.jobs import guiding, labels, sample
from diffusion_jax.jobs.shards import Shard
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import class_counts
from diffusion_jax.runs.weights import load_from_run
from diffusion_jax.runtime import devices
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.samplers import chain
from diffusion_jax.training import train
from helpers import pictures_config

COUNTS = [20, 12, 8]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on pictures of three classes: dark, grey and bright ones."""
    folder = tmp_path_factory.mktemp("labels")
    training = {"num_steps": 300, "checkpoint_every": 150, "eval_every": 0}
    training |= {"steps_per_dispatch": 50, "log_every": 100}
    config = pictures_config(folder, 1, 4, 0.1, **training)
    classes = np.repeat(np.arange(3), COUNTS).astype(np.int32)
    noise = np.random.default_rng(0).integers(0, 20, (40, 4, 4, 1))
    images = (20 + 100 * classes[:, None, None, None] + noise).astype(np.uint8)
    np.savez(folder / "x.npz", arr_0=images, arr_1=classes)
    config.data.labels = True
    config.model.num_groups = 1  # A group of one channel would take the label out.
    config.sampling.batch_size = 4
    config.sampling.steps = 3
    train.train(config, folder / "run")
    return folder / "run"


def drawn(run, out, guidance=1.0, **request):
    config = run_folder.read_config(run)
    config.sampling.guidance = guidance
    wanted = sample.Request(**{"num": 12, **request})
    sample.generate(run, config, wanted, out=out)
    if not wanted.shard:
        return dict(np.load(out.with_name(out.name + ".npz")))


def test_the_config_of_a_run_has_its_classes(run):
    config = run_folder.read_config(run)
    assert config.data.labels and config.data.num_classes == 3
    assert 30 < sum(class_counts(run)) < 40  # Without those held out.


def test_a_sample_of_a_class_is_the_same_whatever_the_others_are(run, tmp_path):
    """Sample i of labels 0, 2 in turn is that of label 0, or 2, alone; they differ."""
    turns = drawn(run, tmp_path / "turns", label=(0, 2))
    np.testing.assert_array_equal(turns["arr_1"], [0, 2] * 6)
    alone = [drawn(run, tmp_path / f"of{c}", label=(c,))["arr_0"] for c in (0, 2)]
    np.testing.assert_array_equal(turns["arr_0"][::2], alone[0][::2])
    np.testing.assert_array_equal(turns["arr_0"][1::2], alone[1][1::2])
    dark, bright = (x.mean() for x in alone)
    assert dark < 90 < 160 < bright


def test_without_labels_all_samples_are_of_one_model(run, tmp_path):
    """--guidance 0 is the same for every label, and no class is written."""
    found = [drawn(run, tmp_path / f"{c}", 0.0, label=(c,)) for c in (0, 2)]
    np.testing.assert_array_equal(found[0]["arr_0"], found[1]["arr_0"])
    assert "arr_1" not in found[0]


def test_shards_of_guided_samples_are_put_together(run, tmp_path):
    whole = drawn(run, tmp_path / "whole", 2.0)
    for k in (2, 1):
        drawn(run, tmp_path / "parts", 2.0, shard=Shard(k, 2))
    parts = drawn(run, tmp_path / "parts", 2.0, merge=True)
    for name in ("arr_0", "arr_1"):
        np.testing.assert_array_equal(whole[name], parts[name])
    other = drawn(run, tmp_path / "other", 4.0)
    np.testing.assert_array_equal(whole["arr_1"], other["arr_1"])
    assert (whole["arr_0"] != other["arr_0"]).any()
    note = json.loads((tmp_path / "whole.json").read_text())
    assert note["guidance"] == 2.0 and note["label"] == []


def test_classes_are_drawn_as_often_as_the_data_have_them():
    """20,000 draws within 5 standard deviations, each by its index alone."""
    indices = np.arange(20_000)
    found = labels.of_samples((), [1, 3, 0], 5, indices)
    assert abs((found == 1).mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 20_000)
    assert set(found) == {0, 1}
    np.testing.assert_array_equal(
        labels.of_samples((), [1, 3, 0], 5, indices[70:90]), found[70:90]
    )
    assert (labels.of_samples((), [1, 3, 0], 6, indices) != found).any()


def test_labels_are_numbers_names_or_all():
    config = Config(data=DataConfig(labels=True, num_classes=3))
    names = ["cat", "dog", "2"]
    assert labels.parse("all", config, names) == (0, 1, 2)
    assert labels.parse("dog,cat, 1", config, names) == (1, 0, 1)
    assert labels.parse("2", config, names) == (2,)  # Its name as well.
    assert labels.parse(None, config, names) == ()
    for wrong, said in (
        ("3", "must be in 0 .. 2"),
        ("dgo", "did you mean dog?"),
        ("cat,", "must be in"),
        ("-1", "must be in"),
    ):
        with pytest.raises(BadRequest, match=said):
            labels.parse(wrong, config, names)
    with pytest.raises(BadRequest, match="trained without labels"):
        labels.parse("1", Config(), [])


def chain_of(run, label, guidance_scale):
    """Samples of a chain that is asked for as a program, without the job around it."""
    config = run_folder.read_config(run)
    config.sampling.guidance = guidance_scale
    model, mesh = build.make_model(config), devices.make_mesh()
    table = build_sampler.make_table(model, config.sampling)
    sampler = build_sampler.make_sampler(config, model, mesh)
    params = load_from_run(run, config, "ema", devices.replicated(mesh)).params
    samples = chain.Samples(jax.random.key(0), np.arange(4, dtype=np.int32))
    cond = {"label": np.full(4, label, np.int32)}
    found = sampler(params, table, samples, cond)[0]
    return kind_of(config.data).from_network(np.asarray(found))


def test_scales_1_and_0_are_the_bits_of_the_chain_with_labels_and_without(run, tmp_path):
    """No 2B forward is needed: the program is that of one prediction."""
    for scale, label in ((1.0, 1), (0.0, 3)):
        found = drawn(run, tmp_path / f"s{scale}", scale, num=4, label=(1,))["arr_0"]
        np.testing.assert_array_equal(found, chain_of(run, label, scale))


def test_a_run_that_guides_itself_changes_nothing(run, tmp_path):
    """D + (s - 1) (D - D) is D, and an earlier checkpoint is another guide."""
    plain = drawn(run, tmp_path / "plain", num=4)["arr_0"]
    same = drawn(run, tmp_path / "same", 3.0, num=4, guide=guiding.Guide(run))["arr_0"]
    assert np.abs(plain.astype(int) - same).max() <= 1
    note = json.loads((tmp_path / "same.json").read_text())
    assert note["guide"]["checkpoint_step"] == 300
    earlier = guiding.Guide(run, 150)
    other = drawn(run, tmp_path / "other", 3.0, num=4, guide=earlier)["arr_0"]
    assert (plain != other).any()


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        ("data", {"image_size": (8,)}, "its examples have the shape .8, 8, 1."),
        ("process", {"num_timesteps": 10}, "another process"),
        ("process", {"prediction": "x0"}, "another process"),
        ("data", {"num_classes": 4}, "it has 4 classes, and the run 3"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused(run, tmp_path, section, fields, said):
    config = run_folder.read_config(run)
    for name, value in fields.items():
        setattr(getattr(config, section), name, value)
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "config.json").write_text(to_json(config))
    with pytest.raises(BadRequest, match=said):
        drawn(run, tmp_path / "p", 2.0, guide=guiding.Guide(tmp_path / "guide"))
    assert [path.name for path in tmp_path.iterdir()] == ["guide"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--guide=runs/none"], "--guide runs/none needs --guidance other than 0 and 1"),
        (["--guide=runs/none", "--guidance=2"], "there is no run in runs/none"),
        (["--guide_step=5"], "--guide_step 5 needs --guide"),
        (["--label=3"], "--label 3: must be in 0 .. 2"),
        (["--label=1", "--guidance=0"], "--label 1: --guidance 0 draws without the label"),
        (["--guidance=2", "--guidance_interval=5,1"], "two numbers that rise"),
        (["--prior_scale=2"], "--prior_scale 2 needs --prior"),
        (["--prior=x.py", "--prior_scale=nan"], "--prior_scale nan must be a number"),
    ],
)
def test_flags_of_guidance_that_cannot_be_are_refused(run, command, tmp_path, flags, said):
    out = tmp_path / "p"
    result = command("sample.py", f"--workdir={run}", f"--out={out}", *flags, check=2)
    assert said in result.stderr and not list(tmp_path.iterdir())


def test_a_value_that_is_called_help_asks_for_none(run, command, tmp_path):
    args = ("sample.py", f"--workdir={run}", "--num=1", "--batch_size=4")
    command(*args, "--out", "h", cwd=tmp_path, check=0)
    assert (tmp_path / "h.npz").is_file()


def test_an_interval_without_a_step_is_warned_of():
    sampling = SamplingConfig(guidance=2.0, guidance_interval=(1e5, 2e5))
    with pytest.warns(UserWarning, match="none is guided"):
        build_sampler.make_table(build.without_network(ProcessConfig()), sampling)


def test_the_flags_of_guidance_reach_the_chain(run, command, tmp_path):
    """A command line with many of them, and its name, note and grid."""
    flags = "--guidance=3 --guidance_interval=0.1,9 --apg_parallel=0 --apg_momentum=-0.5"
    more = "--guidance_rescale=0.3 --label=all --num=6 --sampler=ddim"
    args = ("sample.py", f"--workdir={run}", *flags.split(), *more.split())
    said = command(*args, check=0).stdout
    name = "ddim_3_guidance3_interval0.1-9_rescale0.3_parallel0_momentum-0.5_seed0"
    assert f"{name}_label_all_num6.png" in said
    note = json.loads((run / "samples" / f"{name}_label_all_num6.json").read_text())
    assert note["guidance_interval"] == [0.1, 9.0] and note["apg_momentum"] == -0.5
