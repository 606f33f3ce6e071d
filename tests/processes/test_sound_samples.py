"""Sounds from files to WAV files: a run in a folder, its pictures, its samples."""

import json
import wave

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import DataConfig
from diffusion_jax.data import sources
from diffusion_jax.data.sound_files import wav_of
from diffusion_jax.jobs import sample
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import points_config, tiny_unet

RATE, LENGTH = 8000, 64
PEAK = 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 20 stereo sounds in WAV files, whose loudest value is 1/2."""
    root = tmp_path_factory.mktemp("sounds")
    (root / "data").mkdir()
    for i in range(20):
        x = np.random.default_rng(i).uniform(-PEAK / 2, PEAK / 2, (LENGTH, 2))
        x[i] = PEAK  # Of each, whichever are held out.
        (root / f"data/{i}.wav").write_bytes(wav_of(x, RATE))
    config = points_config(num_steps=4, sample_every=4, num_samples=4, sample_steps=2)
    config.data = DataConfig(
        source="folder",
        path=str(root / "data"),
        image_size=(),
        sound_length=LENGTH,
        sample_rate=RATE,
        channels=0,
        batch_size=8,
    )
    config.model = tiny_unet()
    config.sampling.batch_size, config.sampling.steps = 4, 3
    train.train(config, root / "run")
    return root / "run"


def test_a_run_keeps_the_gain_and_draws_its_sounds(run):
    assert run_folder.read_config(run).data.gain == pytest.approx(1 / PEAK)
    about = json.loads((run / "run.json").read_text())["data"]
    assert about["gain"] == pytest.approx(1 / PEAK) and about["sample_rate"] == RATE
    assert about["shape"] == [LENGTH, 2]
    for name in ("data.png", "forward.png", "reverse.png", "samples/step_000004.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 160
    drawn = run / "samples/step_000004_sounds"
    assert "0000.wav" in {path.name for path in drawn.iterdir()}
    config = run_folder.read_config(run)
    config.data.gain = 0.0  # As the file of the config has it: the run goes on.
    config.training.num_steps = 5
    assert int(train.train(config, run).step) == 5


def generate(run, out, num, **options):
    config = run_folder.read_config(run)
    request = sample.Request(num, show_chain=options.pop("show_chain", False))
    return sample.generate(run, config, request, out=out, **options)


def test_samples_are_wav_files_that_can_be_trained_on(run, tmp_path):
    out = tmp_path / "x"
    generate(run, out, 6, show_chain=True)
    x = np.load(tmp_path / "x.npz")["arr_0"]
    assert x.shape == (6, LENGTH, 2) and x.dtype == np.float32
    assert 0 < np.abs(x).max() < 10 * PEAK
    note = json.loads((tmp_path / "x.json").read_text())
    assert (note["sample_rate"], note["gain"]) == (RATE, pytest.approx(1 / PEAK))
    assert "aug_level" not in note  # Nothing is refined.
    names = sorted(path.name for path in (tmp_path / "x_sounds").iterdir())
    assert names == [f"{i:04d}.wav" for i in range(6)]
    with wave.open(str(tmp_path / "x_sounds/0003.wav")) as file:
        assert file.getparams()[:4] == (2, 2, RATE, LENGTH)
        levels = np.frombuffer(file.readframes(LENGTH), "<i2").reshape(LENGTH, 2)
    np.testing.assert_allclose(levels / 32768, np.clip(x[3], -1, 1), atol=0.51 / 32768)
    for name in ("x.png", "x_chain.png", "x_chain.gif"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 160
    config = run_folder.read_config(run).data
    config.path = str(tmp_path / "x_sounds")
    assert sources.open_data_set(config).shape == (LENGTH, 2)


def test_what_exists_is_replaced_only_if_asked(run, tmp_path):
    out = tmp_path / "x"
    generate(run, out, 3)
    (tmp_path / "x.npz").unlink()
    (tmp_path / "x.json").unlink()
    (tmp_path / "x.png").unlink()
    (tmp_path / "x_sounds/mine.txt").write_text("mine")
    with pytest.raises(BadRequest, match="x_sounds exists already"):
        generate(run, out, 2)
    generate(run, out, 2, overwrite=True)
    names = sorted(path.name for path in (tmp_path / "x_sounds").iterdir())
    assert names == ["0000.wav", "0001.wav", "mine.txt"]
    (tmp_path / "y_sounds").write_text("a file")
    with pytest.raises(BadRequest, match="y_sounds is not a folder"):
        generate(run, tmp_path / "y", 2, overwrite=True)
    assert (tmp_path / "y_sounds").read_text() == "a file"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("y")] == ["y_sounds"]


def test_a_stop_while_sounds_are_written_is_made_up_for(run, tmp_path, monkeypatch):
    from diffusion_jax.data import sounds

    written = sounds.wav_of

    def fails(sound, rate):
        if (tmp_path / "x_sounds/0001.wav").exists():
            raise KeyboardInterrupt
        return written(sound, rate)

    monkeypatch.setattr(sounds, "wav_of", fails)
    with pytest.raises(KeyboardInterrupt):
        generate(run, tmp_path / "x", 4)
    assert not (tmp_path / "x.npz").exists()
    monkeypatch.undo()
    generate(run, tmp_path / "x", 4)
    assert len(list((tmp_path / "x_sounds").iterdir())) == 4
    assert (tmp_path / "x.npz").exists() and not (tmp_path / "x.partial").exists()
