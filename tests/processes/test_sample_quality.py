"""evaluate.py --quality: real runs, real archives, parts, interruptions, and refusals."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation import quality as metrics
from diffusion_jax.evaluation.frechet_distance import frechet_distance
from diffusion_jax.evaluation.moments import moments_of
from diffusion_jax.jobs import quality, sample
from diffusion_jax.jobs.shards import Shard
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import read_metrics
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import ROOT, points_config, wait_for

NUM = 150  # Samples: three batches of 64.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of points that logs the quality of its samples, and is best by it."""
    folder = tmp_path_factory.mktemp("quality") / "run"
    points = np.random.default_rng(0).normal(size=(600, 2)) * [1.0, 0.3]
    np.savez(folder.parent / "x.npz", arr_0=points.astype(np.float32))
    config = points_config(
        quality_every=15, quality_samples=100, best_by="fd_pca2_n100", keep_checkpoints=1
    )
    config.data.source, config.data.path = "npz", str(folder.parent / "x.npz")
    config.data.held_out_fraction = 0.2
    config.sampling.batch_size = 64
    config.sampling.steps = 5
    train.train(config, folder)
    return folder


def evaluate(run, out, overwrite=False, num_seeds=1, **request):
    config = run_folder.read_config(run)
    drawn = {k: request.pop(k) for k in ("shard", "merge", "seed") if k in request}
    wanted = quality.Request(
        num_seeds=num_seeds, drawn=sample.Request(NUM, **drawn), **request
    )
    folder = run_folder.evaluations_path(run) / "features"
    comparison = quality.prepare(run, config, wanted, folder=folder)
    return quality.compare(comparison, config, wanted, out=out, overwrite=overwrite)()


def draw(run, out, num=NUM):
    sample.generate(run, run_folder.read_config(run), sample.Request(num), out=out)
    return np.load(out.with_suffix(".npz"))["arr_0"]


def figures(note):
    return {name: figure["value"] for name, figure in note["figures"].items()}


def test_the_figures_are_those_of_the_samples_that_sample_py_draws(run, tmp_path):
    """Points keep their distances when they are turned: FD of the points, in NumPy."""
    note = evaluate(run, tmp_path / "q")
    samples = draw(run, tmp_path / "s").astype(float)
    data = train.make_plan(run_folder.read_config(run)).data.train.astype(float)
    scale = data.var(axis=0, ddof=1).mean()
    wanted = frechet_distance(moments_of(samples), moments_of(data)) / scale
    assert note["figures"]["FD-pca2"]["value"] == pytest.approx(wanted, rel=1e-4)
    assert note == json.loads((tmp_path / "q.json").read_text())
    told = {
        "sampler": "ddpm",
        "steps": 5,
        "seeds": [0],
        "network": "pca2",
        "reference": "train",
        "num_reference": len(data),
        "num_samples": NUM,
    }
    assert told.items() <= note.items() and len(note["network_sha256"]) == 64
    assert Image.open(tmp_path / "q.png").size[0] > 100


def test_shards_give_the_figure_of_one_run(run, tmp_path):
    whole = evaluate(run, tmp_path / "whole")
    for part in (2, 1):
        assert evaluate(run, tmp_path / "parts", shard=Shard(part, 2)) == {}
    assert not (tmp_path / "parts.json").exists()
    parts = evaluate(run, tmp_path / "parts", merge=True)
    assert parts["figures"] == whole["figures"]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_several_seeds_give_the_mean_and_its_error(run, tmp_path):
    each = [
        figures(evaluate(run, tmp_path / f"q{seed}", seed=seed))["KID-pca2"]
        for seed in (0, 1)
    ]
    both = evaluate(run, tmp_path / "both", num_seeds=2)
    found = both["figures"]["KID-pca2"]
    assert found["value"] == pytest.approx(np.mean(each))
    assert found["standard_error"] == pytest.approx(abs(each[0] - each[1]) / 2)
    assert [one["KID-pca2"] for one in both["figures_by_seed"]] == pytest.approx(each)


def test_a_result_is_not_computed_twice_and_nothing_is_overwritten(run, tmp_path, capsys):
    first = evaluate(run, tmp_path / "q")
    before = (tmp_path / "q.json").stat().st_mtime_ns
    assert evaluate(run, tmp_path / "q") == first
    assert "has the result of this request already" in capsys.readouterr().out
    assert (tmp_path / "q.json").stat().st_mtime_ns == before
    with pytest.raises(BadRequest, match="exists already"):
        evaluate(run, tmp_path / "q", seed=1)
    assert evaluate(run, tmp_path / "q", overwrite=True, seed=1) != first


def test_an_archive_of_the_samples_has_the_same_figures(run, tmp_path):
    drawn = evaluate(run, tmp_path / "q")
    draw(run, tmp_path / "s")
    read = evaluate(run, tmp_path / "r", samples=str(tmp_path / "s.npz"))
    for name, value in figures(drawn).items():
        # An archive is taken in a mixed order, of which parts and halves are made.
        assert figures(read)[name] == pytest.approx(value, rel=1e-5), name


def test_features_of_the_reference_are_kept_and_checked(run, tmp_path, monkeypatch):
    evaluate(run, tmp_path / "q")
    (folder,) = (run / "evaluations/features").glob("*_train_*.features")
    monkeypatch.setattr(metrics.FeatureSet, "groups", None)  # Moments are not needed.
    kept = quality.prepare(
        run,
        run_folder.read_config(run),
        quality.Request(),
        folder=folder.parent,
    ).caches[0]
    assert kept.kept("moments").shape == (3, 2)
    note = json.loads((folder / "request.json").read_text())
    changed = folder.with_name("mine") / folder.name
    shutil.copytree(folder, changed)
    (changed / "request.json").write_text(json.dumps({**note, "fingerprint": "0" * 16}))
    with pytest.raises(BadRequest, match="another fingerprint"):
        quality.prepare(
            run, run_folder.read_config(run), quality.Request(), folder=changed.parent
        )


def test_training_logs_the_quality_and_is_best_by_it(run):
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "fd_pca2_n100" in line]
    assert [line["step"] for line in lines] == [15, 30]
    best = min(lines, key=lambda line: line["fd_pca2_n100"])["step"]
    kept = run_folder.saved_steps(run)
    assert {best, 30} >= set(kept) and all(np.isfinite(x["kid_pca2_n100"]) for x in lines)


def test_two_archives_are_compared_without_a_run(command, tmp_path):
    """FD of two Gaussians with a known shift, in units of the reference's variance."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3000, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", arr_0=a)
    np.savez(tmp_path / "b.npz", arr_0=a + np.float32([1, 0]))
    arguments = ("--samples=a.npz", "--reference=b.npz", "--features=pca2")
    result = command("evaluate.py", "--quality", *arguments, cwd=tmp_path, check=0)
    note = json.loads((tmp_path / "quality_a_pca2_to_b.json").read_text())
    scale = a.var(axis=0, ddof=1).mean()
    assert figures(note)["FD-pca2"] == pytest.approx(1 / scale, rel=1e-4)
    assert "FD-pca2" in result.stdout and "n 3,000 against 3,000" in result.stdout
    assert "SHA-256" in result.stdout and "samples: a.npz" in result.stdout


def test_a_function_of_the_users_own_is_a_network(command, tmp_path):
    """Mean and spread of grey images: a shift of all levels by 10 moves the mean alone."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\n"
        "def features(images):\n"
        "    flat = images.reshape(len(images), -1).astype(jnp.float32)\n"
        "    return jnp.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1)\n"
    )
    images = np.random.default_rng(0).integers(0, 240, (100, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images)
    np.savez(tmp_path / "b.npz", arr_0=images + np.uint8(10))
    arguments = ("--samples=a.npz", "--reference=b.npz", "--features=mine.py", "--out=q")
    command("evaluate.py", "--quality", *arguments, cwd=tmp_path, check=0)
    note = json.loads((tmp_path / "q.json").read_text())
    assert figures(note)["FD-mine"] == pytest.approx(100, rel=1e-5)


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(run, tmp_path):
    """Ctrl-C after a batch; the second start keeps it, and gives the figures of one go."""
    out = tmp_path / "q"
    steps = ("--num=640", "--steps=20", "--sampler=ddpm")
    line = [sys.executable, "evaluate.py", "--quality", f"--workdir={run}", *steps]
    process = subprocess.Popen(
        [*line, f"--out={out}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    partial = tmp_path / "q.partial"
    wait_for(lambda: (partial / "000001.npy").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 130 and not (tmp_path / "q.json").exists()
    subprocess.run([*line, f"--out={out}"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run([*line, f"--out={out}2"], cwd=ROOT, check=True, capture_output=True)
    notes = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("q", "q2")]
    assert notes[0]["figures"] == notes[1]["figures"]


def test_a_sweep_gives_a_result_for_each_setting(run, command, tmp_path):
    out = tmp_path / "sweep"
    arguments = (f"--workdir={run}", f"--out={out}", "--num=40", "--sampler=ddim")
    command("evaluate.py", "--quality", *arguments, "--sweep=steps=2,4", check=0)
    notes = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    assert sorted(note["steps"] for note in notes) == [2, 4]


def write_network(folder, name, expression):
    (folder / f"{name}.py").write_text(
        "import pathlib, numpy\n"
        "import jax.numpy as jnp\n"
        "def features(x):\n"
        f"    return {expression}\n"
    )
    return f"--features={name}.py"


@pytest.mark.parametrize(
    ("name", "expression", "said"),
    [
        ("inception", "x", "is the name of another network"),
        ("pca20", "x", "is the name of another network"),
        ("nan", "x * jnp.nan", "NaN or infinite"),
        ("same", "x * 0", "are the same"),
        ("none", "x[:, :0]", "must give [2, D]"),
        ("numpy", "numpy.sort(x)", "jax.numpy"),
        ("error", "x / undefined", "line 4 raised NameError"),
    ],
)
def test_a_network_that_is_none_is_refused(command, tmp_path, name, expression, said):
    points = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", arr_0=points)
    flag = write_network(tmp_path, name, expression)
    line = ("--quality", "--samples=a.npz", "--reference=a.npz", flag)
    result = command("evaluate.py", *line, cwd=tmp_path, check=2)
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.json"))


def test_a_network_that_has_changed_does_not_meet_its_old_features(tmp_path, monkeypatch):
    """A function that reads a file: the kept features of the reference are made again."""
    monkeypatch.chdir(tmp_path)
    points = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    np.savez("a.npz", arr_0=points)
    expression = "x * float(pathlib.Path('scale').read_text())"
    network = write_network(tmp_path, "scaled", expression).removeprefix("--features=")
    request = quality.Request(features=network, samples="a.npz", reference="a.npz")
    for scale in ("1", "3"):
        (tmp_path / "scale").write_text(scale)
        comparison = quality.prepare(None, None, request, folder=tmp_path / "features")
        note = quality.compare(comparison, None, request, out=tmp_path / scale)()
        assert figures(note)["FD-scaled"] == pytest.approx(0, abs=1e-9)


def test_sets_of_other_sizes_are_kept_side_by_side(run, tmp_path):
    for most in (0, 100):
        evaluate(run, tmp_path / f"q{most}", max_examples=most)
    names = {path.name for path in (run / "evaluations/features").glob("*train*")}
    assert names >= {"pca2_train_480.features", "pca2_train_100.features"}


def damage_shape(path):
    np.save(path, np.zeros((3, 1), np.float32))


def damage_bytes(path):
    path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (damage_shape, "moments.npy"),
        (damage_shape, "000000.npy"),
        (damage_bytes, "000001.npy"),
    ],
)
def test_kept_features_that_are_damaged_are_made_again(run, tmp_path, damage, file):
    before = figures(evaluate(run, tmp_path / "a"))
    damage(run / "evaluations/features/pca2_train_480.features" / file)
    assert figures(evaluate(run, tmp_path / "b")) == before


REFUSED = [
    (("--num=2",), "more than that many"),
    (("--max_examples=2",), "take a larger --max_examples or fewer features"),
    (("--features=pca3",), "an example has 2 numbers"),
    (("--seed=2147483647", "--seeds=2"), "--seeds 2"),
    (("--samples=pictures.npz", "--weights=raw"), "--weights and --samples"),
    (("--features=resnet",), "--features 'resnet' is unknown"),
    (("--features=inception",), "needs --inception"),
    (("--features=efficientnet-lite0",), "is for images"),
    (("--features=none.py",), "none.py"),
    (("--samples=none.npz",), "none.npz"),
    (("--samples=pictures.npz",), "has examples of the shape"),
    (("--samples=pictures.npz", "--num=3"), "--num and --samples"),
    (("--samples=pictures.npz", "--sampler=ddim"), "--sampler and --samples"),
    (("--reference=pictures.npz", "--split=train"), "--split train and --reference"),
    (("--seeds=0",), "--seeds 0 must be in 1"),
    (("--likelihood",), "--quality and --likelihood"),
    (("--split=test",), "--split"),
    (("--guidance=2",), "--guidance 2: the run was trained without labels"),
    (("--spacing=auto",), "--spacing"),
    (("--merge",), "there are no parts"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(
    run, command, tmp_path, arguments, said
):
    np.savez(tmp_path / "pictures.npz", arr_0=np.zeros((9, 4, 4, 1), np.uint8))
    before = sorted(run.rglob("*"))
    result = command(
        "evaluate.py",
        "--quality",
        f"--workdir={run}",
        f"--out={tmp_path}/q",
        *arguments,
        cwd=tmp_path,
        check=2,
    )
    assert said in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(run.rglob("*")) == before and not list(tmp_path.glob("q*"))


def test_flags_of_quality_need_it(run, command):
    result = command("evaluate.py", f"--workdir={run}", "--likelihood", "--num=3", check=2)
    assert "--num 3 needs --quality" in result.stderr


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"best_by": "fd_pca2_n100"}, "needs training.quality_every"),
        ({"best_by": "fd_pca3_n100", "quality_every": 5}, "training.best_by"),
        ({"quality_every": 5, "quality_features": "vgg"}, "training.quality_features"),
        ({"quality_every": 5, "quality_samples": 4, "quality_features": "pca1"}, None),
        ({"quality_every": 5, "quality_features": "pca9"}, "an example has 2 numbers"),
        (
            {"quality_every": 5, "quality_features": "efficientnet-lite0"},
            "is for images",
        ),
    ],
)
def test_fields_of_quality_are_checked(tmp_path, change, match):
    config = points_config(**{"quality_samples": 100, **change})
    if match is None:
        train.prepare(config, tmp_path / "r", None, train.Request(), dry_run=True)
        return
    with pytest.raises(BadRequest, match=match):
        train.prepare(config, tmp_path / "r", None, train.Request(), dry_run=True)
