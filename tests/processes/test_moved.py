"""Runs and data that were moved; runs that cannot be written."""

import errno
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import Config, DataConfig
from diffusion_jax.experiment import build
from diffusion_jax.experiment.setup import load_data, make_plan
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.record import check_data_there, check_same_data, new_record
from diffusion_jax.runs.weights import Weights, save_to_file
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import ROOT, train_arguments


def a_folder(folder, count=12):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i:02}.png")
    return folder


def plan_of(path, **options):
    config = Config(name="folder")
    config.data = DataConfig(source="folder", path=str(path), batch_size=4, **options)
    config.model.base_channels, config.model.num_groups = 4, 4
    config.model.channel_mults, config.model.attn_resolutions = (1,), ()
    return load_data(make_plan(config))


def test_data_that_were_moved_are_found_again_and_others_refused(
    tmp_path, monkeypatch, capsys
):
    workdir, old, new = tmp_path / "run", a_folder(tmp_path / "old"), tmp_path / "new [1]"
    workdir.mkdir()
    plan = plan_of(old)
    run_folder.write_config(workdir, plan.config)
    new_record(plan.config, plan.data, workdir, None, 0)
    before = (workdir / "config.json").read_bytes()
    check_same_data(workdir, plan.config, plan.data)
    assert (workdir / "config.json").read_bytes() == before
    old.rename(new)
    with pytest.raises(BadRequest, match="is not there; .* its new place with --data_path"):
        check_data_there(workdir, plan.config)

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "write_config", refuse)
        check_same_data(workdir, *plan_of(new)[:2])
    assert "cannot be kept in" in capsys.readouterr().out
    check_same_data(workdir, *plan_of(new)[:2])
    assert run_folder.read_config(workdir).data.path == str(new)
    assert "new place of the data is kept" in capsys.readouterr().out
    shutil.copytree(new, tmp_path / "other")
    pixel = Image.open(new / "03.png")
    pixel.putpixel((0, 0), 255 - pixel.getpixel((0, 0)))
    pixel.save(tmp_path / "other/03.png")
    with pytest.raises(BadRequest, match=r"started with \(fingerprint \w+ -> \w+, whole"):
        check_same_data(workdir, *plan_of(tmp_path / "other")[:2])
    assert run_folder.read_config(workdir).data.path == str(new)


def test_a_label_file_that_was_moved_is_found_again_and_other_labels_refused(tmp_path):
    workdir, old, new = tmp_path / "run", tmp_path / "old.csv", tmp_path / "new.csv"
    workdir.mkdir()
    pictures = a_folder(tmp_path / "pictures")
    rows = [f"{i:02}.png,{i % 3}\n" for i in range(12)]
    old.write_text("".join(rows))
    plan = plan_of(pictures, labels=True, label_file=str(old))
    run_folder.write_config(workdir, plan.config)
    new_record(plan.config, plan.data, workdir, None, 0)
    old.rename(new)
    with pytest.raises(BadRequest, match="its new place with --data_label_file"):
        check_data_there(workdir, plan.config)
    moved = plan_of(pictures, labels=True, label_file=str(new))
    check_data_there(workdir, moved.config)
    check_same_data(workdir, moved.config, moved.data)
    assert run_folder.read_config(workdir).data.label_file == str(new)
    new.write_text("".join(["00.png,1\n", *rows[1:]]))
    other = plan_of(pictures, labels=True, label_file=str(new))
    with pytest.raises(BadRequest, match=r"started with \(fingerprint \w+ -> \w+"):
        check_same_data(workdir, other.config, other.data)


def test_overwrite_spares_what_the_new_run_needs(tmp_path):
    """Pictures and weights among the samples of a run that is to be deleted are spared."""
    workdir = tmp_path / "run"
    (workdir / "samples").mkdir(parents=True)
    pictures = a_folder(workdir / "samples" / "pictures")
    config = plan_of(pictures).config
    run_folder.write_config(workdir, config)
    with pytest.raises(BadRequest, match=r"would delete .*samples, and with it data.path"):
        train.prepare(config, workdir, None, train.Request(overwrite=True))
    with pytest.raises(BadRequest, match="would delete .*, and with it --init_from"):
        source = workdir / "samples" / "w.npz"
        save_to_file(source, weights_of(config), config)
        config.data = DataConfig()
        request = train.Request(overwrite=True, init_from=source)
        train.prepare(config, workdir, None, request)


def weights_of(config):
    init_fn, _ = build.make_network(config)
    return Weights(init_fn(jax.random.key(0)), "raw", 0)


def test_a_run_does_not_lie_in_its_own_data(tmp_path):
    """A run in its data's folder is refused: its samples would be among its examples."""
    pictures = a_folder(tmp_path / "pictures")
    for workdir in (pictures, pictures / "runs" / "a"):
        with pytest.raises(BadRequest, match=r"lies in data.path|holds \d+.png"):
            train.prepare(plan_of(pictures).config, workdir)


@pytest.mark.slow
def test_a_run_on_read_only_storage_keeps_its_statistics_beside_the_results(
    tmp_path, command
):
    """Statistics of a read-only run are measured once, and found the next time."""
    workdir = tmp_path / "run"
    command(*train_arguments(workdir, "--config.training.num_steps=3"), check=0)
    bind = f"mount --bind {workdir} {workdir} && mount -o remount,ro,bind {workdir}"
    sample = (
        *(sys.executable, ROOT / "sample.py", "--workdir", workdir, "--spacing=auto"),
        *("--steps=4", "--num=1", "--batch_size=4"),
    )
    first, second = (
        shlex.join(map(str, (*sample, "--out", tmp_path / "out" / name))) for name in "ab"
    )
    result = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{bind} && {first} && echo -- && {second}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "mount" in result.stderr or "unshare" in result.stderr:
        pytest.skip(f"no file system can be mounted here: {result.stderr}")
    assert result.returncode == 0, result.stderr
    one, two = result.stdout.split("--\n")
    assert "choosing timesteps" in one and "choosing timesteps" not in two
    assert len(list((tmp_path / "out/auto_timesteps").iterdir())) == 1
    assert not (workdir / "auto_timesteps").exists()
