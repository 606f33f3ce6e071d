"""Runs of earlier versions, which are read as long as they can be.

fixtures/run_0.1.0 is a run of these commands, by the version of its name, without files
that a later version does not need:

    python train.py --config configs/swiss_roll.py --workdir run_0.1.0 \
        --config.model.width=8 --config.model.num_blocks=1 \
        --config.ema.more_decays=0.9, --config.ema.snapshots=2 \
        --config.training.num_steps=20 --config.training.keep_checkpoints=1 \
        --config.training.eval_every=0 --config.training.sample_every=0
    python export.py --workdir run_0.1.0 --weights WEIGHTS \
        --out run_0.1.0/WEIGHTS.safetensors

with WEIGHTS raw, ema, 0.9 and std:0.1.
"""

import shutil

import numpy as np
import pytest

from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs import weight_files
from diffusion_jax.runs.weights import load_from_run
from diffusion_jax.training import train
from helpers import ROOT, lines_of

FIXTURE = ROOT / "tests" / "fixtures" / "run_0.1.0"


@pytest.mark.parametrize("kind", ["raw", "ema", "0.9", "std:0.1"])
def test_the_run_of_version_0_1_has_its_weights(kind):
    """Weights of a run of version 0.1 are those that this version exported itself."""
    found = load_from_run(FIXTURE, run_folder.read_config(FIXTURE), kind)
    expected = weight_files.read(FIXTURE / f"{kind.replace(':', '')}.safetensors")
    assert (found.kind, found.step) == (expected.kind, expected.step) == (kind, 20)
    arrays = weight_files.named(found.params)
    assert arrays.keys() == expected.params.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected.params[name])


def test_the_run_of_version_0_1_can_be_sampled_and_goes_on(tmp_path, command):
    workdir = tmp_path / "run"
    shutil.copytree(FIXTURE, workdir)
    for weights in ("ema", "std:0.07"):
        out = f"--out={tmp_path / weights.replace(':', '')}"
        arguments = (f"--workdir={workdir}", "--num=2", f"--weights={weights}", out)
        command("sample.py", *arguments, check=0)
    config = run_folder.read_config(workdir)
    config.training.num_steps = 23
    state = train.train(config, workdir)
    assert int(state.step) == 23
    assert [line["step"] for line in lines_of(workdir) if "loss" in line] == [20, 23]
