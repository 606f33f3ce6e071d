"""Samples of a run, drawn as sample.py draws them."""

import dataclasses
import pathlib
import tempfile

import numpy as np
from record import ROOT

from diffusion_jax.jobs import sample
from diffusion_jax.runs import folder as run_folder


def drawn(run: str, request: sample.Request, **sampling) -> np.ndarray:
    """Return the samples that a request asks for, as files have them, [N, ...].

    Args:
      run: name of its folder under runs/.
      request: which samples.
      sampling: fields of the run's sampling that differ.
    """
    workdir = ROOT / "runs" / run
    config = run_folder.read_config(workdir)
    config.sampling = dataclasses.replace(config.sampling, **sampling)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "x"
        sample.generate(workdir, config, request, out=out)
        return np.load(out.with_suffix(".npz"))["arr_0"]
