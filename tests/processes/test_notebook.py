"""The notebook of examples/, run from a directory that is not the repository's."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import ROOT

NOTEBOOK = ROOT / "examples" / "your_own_network.ipynb"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def code_cells(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # What is checked below must come from this run, not from the file.
            cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(tmp_path_factory.mktemp("elsewhere"))}},
    ).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_cell_runs(code_cells):
    for cell in code_cells:
        errors = [out for out in cell.outputs if out.output_type == "error"]
        assert not errors, f"{cell.source}\n\n{errors[0].ename}: {errors[0].evalue}"
        assert cell.execution_count is not None, cell.source


def test_cells_are_short(code_cells):
    for cell in code_cells:
        assert len(cell.source.splitlines()) <= 10, cell.source


def test_training_lowers_the_loss(code_cells):
    printed = "".join(
        out.text
        for cell in code_cells
        for out in cell.outputs
        if out.output_type == "stream" and out.name == "stdout"
    )
    (found,) = re.findall(r"^loss (\S+) -> (\S+)$", printed, re.MULTILINE)
    first, last = map(float, found)
    assert last < 0.5 * first, printed
