"""A run on clips of one's own, as a user does: real processes, GIF files in and out."""

import json

import numpy as np
from PIL import Image

from helpers import ROOT

# A network that compiles in seconds, for clips of 3 frames of 8 by 8.
TINY = (
    f"--config={ROOT / 'configs/clip_folder.py'}",
    "--config.data.image_size=(8,)",
    "--config.data.num_frames=3",
    "--config.data.batch_size=4",
    "--config.model.base_channels=8",
    "--config.model.channel_mults=(1,)",
    "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=()",
    "--config.model.num_heads=1",
    "--config.model.num_groups=4",
    "--config.model.dtype=float32",
    "--config.model.remat=False",
    "--config.process.num_timesteps=20",
    "--config.sampling.steps=4",
    "--config.training.sample_steps=4",
    "--config.training.num_samples=4",
    "--config.training.num_steps=4",
    "--config.training.steps_per_dispatch=2",
)


def frames_of(path):
    with Image.open(path) as gif:
        return gif.n_frames, gif.size


def test_a_folder_of_clips_is_trained_on_and_sampled(tmp_path, command):
    folder, workdir, out = tmp_path / "clips", tmp_path / "run", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        clip = rng.integers(0, 256, (5, 10, 12, 3), np.uint8)
        first, *others = map(Image.fromarray, clip)
        first.save(folder / f"{i:02}.gif", save_all=True, append_images=others)
    args = (*TINY, f"--config.data.path={folder}", f"--workdir={workdir}")
    result = command("train.py", *args, check=0)
    assert "11 examples to train on, 1 held out" in result.stdout
    # Four clips as a square, each of 8 pixels enlarged 6 times.
    assert frames_of(workdir / "samples/step_000004.gif") == (3, (102, 102))
    assert (workdir / "samples/step_000004.png").exists()
    request = (f"--workdir={workdir}", f"--out={out}", "--num=5")
    command("sample.py", *request, check=0)
    samples = np.load(f"{out}.npz")["arr_0"]
    assert samples.shape == (5, 3, 8, 8, 3) and samples.dtype == np.uint8
    assert frames_of(f"{out}.gif") == (3, (152, 102))
    assert json.loads(out.with_suffix(".json").read_text())["num"] == 5
    # What is there is not written over.
    (tmp_path / "out.npz").unlink()
    said = command("sample.py", *request, check=2).stderr
    assert "out" in said and "--overwrite" in said

    short = command(
        "train.py",
        *args[:-1],
        f"--workdir={tmp_path}/x",
        "--config.data.num_frames=6",
        check=2,
    )
    assert "12 of 12 clips cannot be read: 00.gif: it has 5 frames" in short.stderr
    assert len(short.stderr.strip().splitlines()) == 1 and not (tmp_path / "x").exists()
