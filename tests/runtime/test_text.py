"""runtime.text: what comes from outside is shown, not executed."""

import shlex
import subprocess
import sys

import pytest

from diffusion_jax.runtime.progress import ProgressBar, amount
from diffusion_jax.runtime.text import quoted, reason, say, shown
from helpers import ODD_NAMES, ROOT


def test_no_character_that_moves_a_cursor_or_begins_a_line_is_left():
    everything = "".join(map(chr, range(0x3000)))
    said = shown(everything)
    assert not [c for c in said if ord(c) < 32 or 127 <= ord(c) < 160]
    assert not set("\u2028\u2029\u202a\u202e\u2066\u2069") & set(said)
    assert len(said.splitlines()) == 1
    assert shown("a\nERROR: b\x1b[2J\x07\udcff") == r"a\nERROR: b\x1b[2J\x07\udcff"
    assert shown("naïve 写真 \U0001f600") == "naïve 写真 \U0001f600"


def test_each_way_to_print_prints_one_line(capsys):
    foreign = "x\nERROR: forged\x1b]0;title\x07\r"
    say("read", foreign)
    bar = ProgressBar("training", 10, "steps")
    bar.say(f"read {foreign}")
    bar.close()
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3 and all(
        "\x1b" not in line and "\r" not in line for line in lines
    )
    assert lines[0] == lines[1] == r"read x\nERROR: forged\x1b]0;title\x07\r"


@pytest.mark.parametrize("where", ["closed pipe", "/dev/full", "closed"])
def test_what_cannot_be_printed_ends_nothing(where, tmp_path):
    """Output to a reader that has left, to a full disk or to nothing ends no program."""
    code = (
        "from diffusion_jax.runtime.progress import ProgressBar\n"
        "from diffusion_jax.runtime.text import say\n"
        "import sys, pathlib\n"
        "bar = ProgressBar('training', 10, 'steps')\n"
        "for i in range(3): say('line'); bar.say('line'); bar.report(i)\n"
        "bar.close()\n"
        "pathlib.Path(sys.argv[1]).write_text('done')\n"
    )
    redirection = {"closed pipe": "| true", "/dev/full": "> /dev/full", "closed": ">&-"}
    arguments = [sys.executable, "-c", f"import time; time.sleep(0.2)\n{code}"]
    line = f"{shlex.join([*arguments, str(tmp_path / 'end')])} {redirection[where]}"
    result = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "end").read_text() == "done"
    assert "Error" not in result.stderr


def test_reason_is_one_line():
    assert (
        reason(ValueError("a\n  b")) == "a b"
        and reason(AssertionError()) == "AssertionError"
    )


@pytest.mark.parametrize("name", [*ODD_NAMES, "'\n\\", "\udcff'\\\n"])
def test_what_is_meant_to_be_copied_means_the_same_to_a_shell(name):
    said = quoted(name)
    assert len(said.splitlines()) == 1 and shown(said) == said
    result = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True)
    assert result.stdout == name.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("rate", "said"), [(1239.6, "1,240"), (99.94, "99.9"), (1.25, "1.2"), (0.0543, "0.054")]
)
def test_a_rate_has_the_digits_that_can_be_trusted(rate, said):
    assert amount(rate) == said
