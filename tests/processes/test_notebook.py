"""The notebooks of examples/, run from a directory that is not the repository's."""

import re

import nbformat
import numpy as np
import pytest
import soundfile
from nbclient import NotebookClient

from helpers import ROOT

# Most lines of a code cell of each notebook.
MOST_LINES = {"your_own_network": 10, "chirps": 16}
# Values of the chirps' notebook, and those that make it quick.
QUICK = {
    "base_channels=8": "base_channels=4",
    "channel_mults=(1, 2, 4, 8, 8)": "channel_mults=(1,)",
    "attn_resolutions=(64,)": "attn_resolutions=()",
    "num_groups=8": "num_groups=4",
    "warmup_steps=100": "warmup_steps=1",
    "num_steps=2000": "num_steps=2",
    "eval_every=500": "eval_every=0",
    "timesteps(1000, 20)": "timesteps(1000, 2)",
    "arange(400)": "arange(16)",
}


def code_of(name):
    """Return a notebook, without its outputs, and its code cells."""
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        # What is checked below must come from this run, not from the file.
        cell.outputs, cell.execution_count = [], None
    return notebook, cells


def run(notebook, folder):
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def check_it_ran(cells):
    for cell in cells:
        errors = [out for out in cell.outputs if out.output_type == "error"]
        assert not errors, f"{cell.source}\n\n{errors[0].ename}: {errors[0].evalue}"
        assert cell.execution_count is not None, cell.source


def printed(cells):
    return "".join(
        out.text
        for cell in cells
        for out in cell.outputs
        if out.output_type == "stream" and out.name == "stdout"
    )


@pytest.fixture(scope="module")
def own_network(tmp_path_factory):
    """The code cells of your_own_network.ipynb, which have run."""
    notebook, cells = code_of("your_own_network")
    run(notebook, tmp_path_factory.mktemp("elsewhere"))
    return cells


@pytest.fixture(scope="module")
def chirps(tmp_path_factory):
    """The code cells of chirps.ipynb, which have run with fewer steps, and the folder."""
    notebook, cells = code_of("chirps")
    for value, quick in QUICK.items():
        assert sum(cell.source.count(value) for cell in cells) == 1, value
        for cell in cells:
            cell.source = cell.source.replace(value, quick)
    folder = tmp_path_factory.mktemp("elsewhere")
    run(notebook, folder)
    return cells, folder


@pytest.mark.parametrize("name", MOST_LINES)
def test_cells_are_short(name):
    for cell in code_of(name)[1]:
        assert len(cell.source.splitlines()) <= MOST_LINES[name], cell.source


@pytest.mark.slow
def test_every_cell_of_the_own_network_runs(own_network):
    check_it_ran(own_network)


@pytest.mark.slow
def test_training_lowers_the_loss(own_network):
    found = re.findall(r"^loss (\S+) -> (\S+)$", printed(own_network), re.MULTILINE)
    ((first, last),) = found
    assert float(last) < 0.5 * float(first), found


def test_every_cell_of_the_chirps_runs_and_there_are_ten(chirps):
    cells, folder = chirps
    check_it_ran(cells)
    assert len(cells) == 10
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["short_chirps"]


def test_the_chirps_are_saved_as_they_were_drawn(chirps):
    """WAV files have the rate of the data, and the least and largest value as printed."""
    cells, folder = chirps
    paths = sorted((folder / "runs" / "short_chirps" / "sounds").glob("*.wav"))
    assert [path.stem for path in paths] == [f"{i:04d}" for i in range(16)]
    read = [soundfile.read(path) for path in paths]
    assert {(sound.shape, rate) for sound, rate in read} == {((1024,), 8000)}
    sounds = np.array([sound for sound, _ in read])
    assert np.isfinite(sounds).all() and sounds.std(axis=1).min() > 0
    ((low, high),) = re.findall(r"16 samples, values from (\S+) to (\S+)", printed(cells))
    assert [sounds.min(), sounds.max()] == pytest.approx(
        [float(low), float(high)], abs=1e-4
    )


def test_the_pitch_of_chirps_and_of_white_noise_is_the_known_one(chirps):
    """Quartiles are those of a uniform log f; white noise is uniform from 0 to 4,000 Hz.

    The shares below f of the two differ most at 1,000 / ln 2 Hz. In 1,000 draws of 400
    held-out sounds one is further than 0.102 from the 4,000 others.
    """
    text = printed(chirps[0])
    (quartiles,) = re.findall(r"quartiles in Hz: (.*)", text)
    found = np.log2([float(x) for x in quartiles.split()])
    assert np.abs(found - np.log2([400, 800, 1600])).max() < 0.14  # 5 standard deviations.
    distances = dict(re.findall(r"KS distance of (.*): (\S+)", text))
    assert set(distances) == {"held out", "samples", "white noise"}
    f = 1000 / np.log(2)
    furthest = np.log2(f / 200) / 4 - f / 4000
    assert abs(float(distances["white noise"]) - furthest) < 0.08
    assert float(distances["held out"]) < 0.102
