"""Shards of sampling and of evaluation: done alone, and put together to the same bytes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from diffusion_jax.jobs import likelihood, sample
from diffusion_jax.jobs.shards import Shard
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import pictures_config


@pytest.mark.parametrize("num", [0, 1, 7, 16, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_every_batch_is_in_one_shard(num, count):
    """The shards of any number of batches, of which none has two more than another."""
    parts = [list(Shard(k, count).batches(num)) for k in range(1, count + 1)]
    assert sum(parts, []) == list(range(num))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of pictures, of which seven batches are sampled, and five evaluated."""
    folder = tmp_path_factory.mktemp("shards")
    training = {"num_steps": 2, "checkpoint_every": 1, "eval_every": 0}
    config = pictures_config(folder, 1, 4, 0.5, **training)
    config.sampling.batch_size = 4
    config.sampling.steps = 5
    train.train(config, folder / "run")
    return folder / "run"


def draw(run, out, **request):
    config = run_folder.read_config(run)
    wanted = sample.Request(**{"num": 26, "show_chain": True, **request})
    sample.generate(run, config, wanted, out=out)


def bound(run, out, **request):
    config = run_folder.read_config(run)
    wanted = likelihood.Request(num_timesteps_sampled=3, **request)
    for job in likelihood.prepare(run, config, wanted, bound=out):
        job()


def flow(run, out, **request):
    config = run_folder.read_config(run)
    wanted = likelihood.Request(ode_steps=2, **request)
    for job in likelihood.prepare(run, config, wanted, flow=out):
        job()


def files_of(folder, out):
    files = (p for p in folder.glob(f"{out}*") if p.is_file())
    return {p.name.removeprefix(out): p.read_bytes() for p in files}


@pytest.mark.parametrize("job", [draw, bound, pytest.param(flow, marks=pytest.mark.slow)])
def test_shards_put_together_are_the_same_bytes(job, run, tmp_path):
    """Shards in any order, one done twice; their folders are deleted by the merge."""
    job(run, tmp_path / "whole")
    for part in (2, 3, 1, 3):
        job(run, tmp_path / "parts", shard=Shard(part, 3))
    assert not files_of(tmp_path, "parts")
    job(run, tmp_path / "parts", merge=True)
    whole, parts = files_of(tmp_path, "whole"), files_of(tmp_path, "parts")
    assert whole and whole == parts
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_shards_without_a_batch_go_with_the_others(run, tmp_path):
    """Three shards of two batches: one has none, and its folder is deleted as well."""
    for part in (1, 2, 3):
        draw(run, tmp_path / "p", num=8, show_chain=False, shard=Shard(part, 3))
    draw(run, tmp_path / "p", num=8, show_chain=False, merge=True)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def drawn(run, tmp_path_factory):
    """Three shards, from which a test takes something away."""
    folder = tmp_path_factory.mktemp("drawn")
    for part in (1, 2, 3):
        draw(run, folder / "p", shard=Shard(part, 3), show_chain=False)
    return folder


def lose_a_shard(folder):
    shutil.rmtree(folder / "p.shard_2_of_3")


def lose_a_batch(folder):
    (folder / "p.shard_3_of_3/000005.npy").unlink()


def tear_a_batch(folder):
    path = folder / "p.shard_1_of_3/000001.npy"
    path.write_bytes(path.read_bytes()[:100])


def hold_a_batch_twice(folder):
    shutil.copy(folder / "p.shard_1_of_3/000000.npy", folder / "p.shard_2_of_3/000000.npy")


def have_two_sets(folder):
    shutil.copytree(folder / "p.shard_1_of_3", folder / "p.shard_1_of_4")


def change(name, value):
    def apply(folder):
        note = folder / "p.shard_2_of_3/request.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), name: value}))

    return apply


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lose_a_shard, "no part 2/3 of .*p is there"),
        (
            lose_a_batch,
            "shard_3_of_3 lacks 1 of 3 files .000005.npy.; run --shard 3/3 again",
        ),
        (tear_a_batch, "shard_1_of_3 lacks 1 of 2 files"),
        (hold_a_batch_twice, "000000.npy is of another part than 2/3"),
        (have_two_sets, "parts of 3 and of 4"),
        (change("process_sha256", "0"), "its process_sha256 is '0'"),
        (change("seed", 1), "shard_2_of_3 is of another request: its seed is 1"),
        (change("checkpoint_step", 1), "its checkpoint_step is 1, and here it is 2"),
        (lambda folder: [shutil.rmtree(p) for p in folder.iterdir()], "there are no parts"),
    ],
)
def test_shards_that_are_not_the_whole_are_refused(run, drawn, tmp_path, fault, said):
    """A refusal names the shard at fault, and no file is written or deleted."""
    folder = tmp_path / "copy"
    shutil.copytree(drawn, folder)
    fault(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(BadRequest, match=said):
        draw(run, folder / "p", merge=True, show_chain=False)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("tear", [False, True])
def test_missing_frames_are_refused(run, tmp_path, tear):
    for part in (1, 2):
        draw(run, tmp_path / "p", num=8, shard=Shard(part, 2))
    chain = tmp_path / "p.shard_1_of_2/chain.npy"
    whole = chain.read_bytes()
    chain.unlink()
    if tear:
        chain.write_bytes(whole[:100])
    with pytest.raises(BadRequest, match=r"lacks 1 of 2 files \(chain.npy\)"):
        draw(run, tmp_path / "p", num=8, merge=True)
    assert not list(tmp_path.glob("p*.png"))
    chain.write_bytes(whole)
    draw(run, tmp_path / "p", num=8, merge=True)


def test_of_two_evaluations_neither_is_claimed_before_both_are_whole(run, tmp_path):
    """A merge of both needs the shards of both, except of one that has its result."""

    def both(**request):
        config = run_folder.read_config(run)
        wanted = likelihood.Request(num_timesteps_sampled=3, ode_steps=2, **request)
        out = {"bound": tmp_path / "bound", "flow": tmp_path / "flow"}
        for job in likelihood.prepare(run, config, wanted, **out):
            job()

    both(shard=Shard(1, 2))
    bound(run, tmp_path / "bound", shard=Shard(2, 2))
    with pytest.raises(BadRequest, match="no part 2/2 of .*flow"):
        both(merge=True)
    assert not list(tmp_path.glob("*.partial"))
    bound(run, tmp_path / "bound", merge=True)
    flow(run, tmp_path / "flow", shard=Shard(2, 2))
    both(merge=True)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["bound.json", "flow.json"]


def test_shards_made_elsewhere_and_at_other_times_are_put_together(run, drawn, tmp_path):
    """Shards of other devices, or from before the run was trained on: the same weights."""
    folder = tmp_path / "copy"
    shutil.copytree(drawn, folder)
    for name, value in (("devices", "1 x gpu"), ("config_sha256", "0"), ("run", "/x")):
        change(name, value)(folder)
    draw(run, folder / "p", merge=True, show_chain=False)
    with np.load(folder / "p.npz") as file:
        assert len(file["arr_0"]) == 26


def test_timesteps_chosen_by_the_run_are_refused(run, tmp_path):
    """Only one process may choose timesteps for a run."""
    config = run_folder.read_config(run)
    config.sampling = dataclasses.replace(config.sampling, spacing="auto")
    request = sample.Request(num=8, shard=Shard(1, 2))
    with pytest.raises(BadRequest, match="--timesteps in place"):
        sample.generate(run, config, request, out=tmp_path / "p")
    with pytest.raises(BadRequest, match="auto"):
        bound(run, tmp_path / "p", steps=3, spacing="auto", merge=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shard=3"], "--shard 3 must be K/N, such as 3/16"),
        (["--shard=0/4"], "--shard 0/4: K must be in 1 .. N"),
        (["--shard=5/4"], "--shard 5/4: K must be in 1 .. N"),
        (["--shard=1/0"], "--shard 1/0"),
        (["--shard=1/2", "--merge"], "--shard 1/2 and --merge: give one of them"),
    ],
)
@pytest.mark.parametrize("name", [["sample.py"], ["evaluate.py", "--likelihood"]])
def test_shards_that_cannot_be_are_refused(command, tmp_path, name, flags, said):
    result = command(*name, f"--workdir={tmp_path}", *flags, check=2)
    assert said in result.stderr


def test_the_flags_reach_the_job(run, command, tmp_path):
    args = ("sample.py", f"--workdir={run}", "--num=8", f"--out={tmp_path / 'p'}")
    for part in ("1/2", "2/2"):
        said = command(*args, f"--shard={part}", check=0).stdout
        assert f"part {part} is done" in said
    command(*args, "--merge", check=0)
    with np.load(tmp_path / "p.npz") as file:
        assert len(file["arr_0"]) == 8
