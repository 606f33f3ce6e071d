"""The priors of examples/, in small, and files of --prior that are refused."""

import contextlib
import importlib
import io
import os
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data.embedded import labelled_digits
from diffusion_jax.diffusion.noise_level import noise_level
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.jobs import guiding, sample
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.training import train
from helpers import ROOT, points_config, tiny_unet

EXAMPLES = ROOT / "examples"
NUM = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the digits, without labels."""
    folder = tmp_path_factory.mktemp("priors")
    config = points_config(
        num_steps=40, steps_per_dispatch=20, checkpoint_every=40, eval_every=0
    )
    config.data = DataConfig(source="digits", image_size=(8,), channels=1, batch_size=16)
    config.model = tiny_unet()
    config.ema.snapshots = 0
    config.process.num_timesteps = config.sampling.steps = 20
    config.sampling.batch_size = NUM
    train.train(config, folder / "run")
    return folder / "run"


def drawn(run, out, prior=None, scale=1.0, **process):
    """Samples in [-1, 1]."""
    config = run_folder.read_config(run)
    for field, value in process.items():
        setattr(config.process, field, value)
    file = None if prior is None else guiding.PriorFile(prior, scale)
    sample.generate(run, config, sample.Request(NUM, prior=file), out=out / "x")
    return np.load(out / "x.npz")["arr_0"] / 127.5 - 1


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The classifier of the examples, after 200 train steps, and what it printed."""
    file = tmp_path_factory.mktemp("classifier") / "params.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLASSIFIER", str(file))
        patch.setenv("DIGIT", "3")
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(sys, "argv", ["", "--steps=200"])
        module = importlib.import_module("digit_classifier")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            module.main()
        yield module, said.getvalue(), dict(np.load(file))
    del sys.modules["digit_classifier"]


def test_the_classifier_tells_held_out_digits_and_less_the_more_noise_there_is(classifier):
    """Its table, its params, and probabilities that sum to 1."""
    module, said, params = classifier
    table = {
        int(t): float(s) for t, s in re.findall(r"^\| (\d+) \|.*\| (\S+) %", said, re.M)
    }
    assert list(table) == list(module.SHOWN)
    assert table[0] > 90 > table[500] > table[800] > 15 and table[999] < 20
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    log_p = module.log_probabilities(params, x, noise_level(0.6, 0.8))
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-5)


def test_a_run_without_labels_draws_the_digit_that_the_classifier_is_asked_for(
    run, classifier, tmp_path
):
    """Mean log p(3 | x) of the samples, with the prior and without."""
    module, _, params = classifier
    found = []
    for name, prior in (("without", None), ("with", EXAMPLES / "classifier_prior.py")):
        x = drawn(run, tmp_path / name, prior, 4.0)
        log_p = module.log_probabilities(params, jnp.float32(x), noise_level(1.0, 0.01))
        found.append(float(log_p[:, 3].mean()))
    assert found[0] < -2 and found[1] > -0.7


def test_structural_priors_do_what_they_say(run, tmp_path):
    """Distances from the mirror image and from the known means, with and without."""
    plain = drawn(run, tmp_path / "plain")
    symmetric = drawn(run, tmp_path / "symmetric", EXAMPLES / "symmetry_prior.py")
    known = drawn(run, tmp_path / "known", EXAMPLES / "low_resolution_prior.py")

    def asymmetry(x):
        return np.abs(x - x[:, :, ::-1]).mean()

    def error(x):
        means = [
            y.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
            for y in (x, labelled_digits()[0][-1:] / 127.5 - 1)
        ]
        return np.abs(means[0] - means[1]).mean()

    assert asymmetry(symmetric) < asymmetry(plain) / 3
    assert error(known) < error(plain) / 3


def test_the_file_that_the_docs_show_is_the_example():
    text = (EXAMPLES / "symmetry_prior.py").read_text()
    assert text in (ROOT / "docs" / "priors.md").read_text()
    assert len(text.splitlines()) <= 12


X0 = "def log_p_of_x0(x0, level, cond):\n    "
BAD = {
    "missing": (None, ": No such file or directory"),
    "none": ("def log_p(x):\n    return x\n", "and it defines none"),
    "both": (f"{X0}return 0\nlog_p_of_x_t = log_p_of_x0\n", "and it defines both"),
    "loading": ("\n1 / 0\n", "prior.py, line 2 raised ZeroDivisionError"),
    "raises": (f"\n\n{X0}return x0[level]\n", "prior.py, line 4 raised"),
    "scalar": (f"{X0}return x0.sum()\n", f"number per example, [{NUM}], and returns []"),
    "shape": (f"{X0}return x0.sum(axis=1)\n", f"[{NUM}], and returns [{NUM}, 8, 1]"),
    "first": (
        f"{X0}return (0 * x0).sum(axis=(1, 2, 3)) ** 0.5\n",
        "its gradient is not finite at step 1 (timestep 19)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_written(
    name, run, tmp_path
):
    text, said = BAD[name]
    file = tmp_path / "prior.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadRequest) as error:
        drawn(run, tmp_path / "out", file)
    assert said in str(error.value) and f"--prior {file}" in str(error.value)
    assert "\n" not in str(error.value)
    assert set(os.listdir(tmp_path)) <= {"prior.py", "__pycache__"}


@pytest.mark.parametrize("of", ["x0", "x_t"])
def test_a_gradient_that_is_not_finite_later_is_refused_with_its_step(of, run, tmp_path):
    """From the first row whose noise level is below 0.5 on."""
    config = run_folder.read_config(run)
    model = build.make_model(config)
    table = build_sampler.make_table(model, config.sampling)
    row = int(np.argmax(table.level.sigma_squared < 0.5))
    assert 0 < row < 19
    file = tmp_path / "prior.py"
    file.write_text(
        "import jax.numpy as jnp\n"
        f"def log_p_of_{of}(x, level, cond):\n"
        "    bad = jnp.where(level.sigma_squared < 0.5, jnp.nan, 0.0)\n"
        "    return bad * x.sum(axis=(1, 2, 3))\n"
    )
    with pytest.raises(BadRequest) as error:
        drawn(run, tmp_path / "out", file)
    said = f"no longer finite at step {row + 1} of 20 (timestep {table.t[row]:g})"
    assert said in str(error.value) and str(file) in str(error.value)
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_a_process_that_ends_without_any_signal_takes_no_prior(run, tmp_path):
    file = EXAMPLES / "symmetry_prior.py"
    with pytest.raises(BadRequest, match="ratio is zero, as at the end of this run's"):
        drawn(run, tmp_path, file, zero_terminal_snr=True, prediction="v")
