"""The site of the docs: what ends its build is named."""

import shutil
import subprocess
import sys

import pytest

from helpers import ROOT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A whole page: $`x_t = \\alpha x_0`$.", None),
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](index.md#nowhere)", "nowhere"),
        ("A formula, $`\\frac{1}{2`$.", "does not render"),
        ("A formula, $`\\nosuchthing x`$.", "nosuchthing"),
    ],
)
def test_a_broken_link_or_formula_ends_the_build_by_name(text, said, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "diffusion_jax").mkdir()
    (tmp_path / "diffusion_jax/__init__.py").write_text('"""A package."""\n')
    shutil.copy(ROOT / "docs/conf.py", tmp_path / "docs")
    (tmp_path / "docs/index.md").write_text(f"# Index\n\n{text}\n")
    build = ["sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", "site"]
    result = subprocess.run(
        [sys.executable, "-m", *build], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode == 0) == (said is None), result.stderr
    if said is not None:
        assert said in result.stderr and "Traceback" not in result.stderr
    else:
        assert "<math" in (tmp_path / "site/docs/index.html").read_text()
