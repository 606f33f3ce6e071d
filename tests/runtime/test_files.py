"""runtime.files: what is read, written and deleted is what was meant, and nothing else."""

import ast
import os
import pathlib
import re
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import Config, UNetConfig
from diffusion_jax.jobs.resumable import Partial
from diffusion_jax.runs import events, pictures, weight_files
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runs.metrics_log import MetricLog
from diffusion_jax.runs.record import Record, read_record, write_record
from diffusion_jax.runtime import files, locks
from diffusion_jax.runtime.errors import BadRequest
from helpers import ODD_NAMES, ROOT, interrupted_after


@pytest.fixture(autouse=True)
def no_hanging():
    """Interrupt a test that waits for a named pipe."""
    with interrupted_after(20, TimeoutError("it waits for a named pipe")):
        yield


def specials(folder):
    """A named pipe, a socket, a folder, and links to a pipe and to a device."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    (folder / "folder").mkdir()
    (folder / "to_pipe").symlink_to("pipe")
    (folder / "to_device").symlink_to("/dev/zero")
    return [folder / name for name in ("pipe", "socket", "folder", "to_pipe", "to_device")]


def test_only_regular_files_are_opened(tmp_path):
    for path in specials(tmp_path):
        for function in (files.open_regular, files.check_regular, files.read_text):
            with pytest.raises(files.NotRegular, match="not a regular file"):
                function(path)
    (tmp_path / "file").write_bytes(b"\x00\xff")
    (tmp_path / "link").symlink_to("file")
    assert files.read_bytes(tmp_path / "link") == b"\x00\xff"


def test_no_reader_of_a_run_waits_for_a_named_pipe(tmp_path):
    """Each file of a run, as a named pipe, by the function that reads it."""
    for name in (
        "config.json",
        "run.json",
        "metrics.jsonl",
        "events.jsonl",
        "weights.npz",
        "w.safetensors",
    ):
        os.mkfifo(tmp_path / name)
    with pytest.raises((BadRequest, OSError)):
        run_folder.read_config(tmp_path)
    with pytest.raises(files.NotRegular):
        read_record(tmp_path)
    with pytest.raises(files.NotRegular):
        MetricLog(tmp_path, 0)
    with pytest.raises(files.NotRegular):
        events.read(tmp_path)
    for name in ("weights.npz", "w.safetensors"):
        with pytest.raises(weight_files.NotWeights, match="named pipe"):
            weight_files.read(tmp_path / name)
    part = Partial(tmp_path / "out", {"seed": 1})
    part.folder.mkdir()
    os.mkfifo(part.folder / "000000.npy")
    os.mkfifo(part.folder / "request.json")
    assert part.missing(3) == range(3) and part._read(part.folder / "request.json") is None


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_name_can_be_written_read_and_deleted(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    files.write_whole(folder / name, "é\n")
    assert files.read_text(folder / name) == "é\n"
    other = files.plain(folder)
    assert re.fullmatch(r"[\w./ +=@,~-]*", str(other), re.ASCII)
    assert os.path.samefile(other, folder) and files.plain(folder) == other
    assert os.listdir(folder) == [name]
    files.delete([folder])
    assert not folder.exists()


def test_the_links_go_with_the_process(tmp_path):
    code = (
        "import sys, os\n"
        "from diffusion_jax.runtime import files\n"
        "import pathlib\n"
        "link = files.plain(pathlib.Path('[x]'))\n"
        "assert os.readlink(link) == os.path.abspath('[x]')\n"
        "print(link)\n"
        "if len(sys.argv) > 1: files.remove_links(); os._exit(0)\n"
    )
    for arguments in ((), ("hard",)):
        said = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        ).stdout.strip()
        assert said and not os.path.lexists(said) and not pathlib.Path(said).parent.exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["file"] and path.read_bytes() == b"old"
    before = os.umask(0o027)
    try:
        files.write_whole(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError) as error:
        files.write_whole(tmp_path / "no" / "file", "")
    assert str(error.value.filename) == str(tmp_path / "no" / "file")


def writers(folder):
    """Functions that write a file, by the name of the file."""
    image = Image.new("L", (8, 8))
    params = {"a": np.zeros(2, np.float32)}
    record = Record(1, "0", {}, "", {}, 0, "")
    part = Partial(folder / "p", {})
    part.folder.mkdir()
    weights = weight_files.Weights(params, "raw", 0)
    return {
        "config.json": lambda: run_folder.write_config(folder, Config()),
        "run.json": lambda: write_record(folder, record),
        "a.png": lambda: pictures.save_png(folder / "a.png", image),
        "a.gif": lambda: pictures.save_gif(folder / "a.gif", [image]),
        "a.npz": lambda: weight_files.write(folder / "a.npz", weights, Config()),
        "a.safetensors": lambda: weight_files.write(
            folder / "a.safetensors", weights, Config()
        ),
        "metrics.jsonl": lambda: MetricLog(folder, 0).close(),
        "p.partial/000000.npy": lambda: part.save("000000", params["a"]),
    }


def test_no_link_is_written_through(tmp_path):
    """Targets of links at a file's name, or at a name that 0.1 used on the way, stay."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    written = writers(folder)
    on_the_way = (
        "config.tmp",
        "run.tmp",
        ".a.png",
        "metrics.tmp",
        "p.partial/unfinished.npy",
    )
    for name in (*written, *on_the_way):
        (folder / name).symlink_to(precious)
    for name, write in written.items():
        write()
        assert precious.read_text() == "precious", name
        assert not (folder / name).is_symlink(), name
    Image.open(folder / "a.png").load()
    (folder / ".lock").symlink_to(precious)
    with pytest.raises(OSError, match="a link, which is not written through"):
        with locks.locked(folder, "writing to"):
            pass
    assert precious.read_text() == "precious"


def test_what_a_kill_left_goes_and_what_is_being_written_stays(tmp_path):
    left = tmp_path / f".{'0' * 16}.unfinished"
    left.write_bytes(b"half")
    (tmp_path / ".notes.unfinished").write_bytes(b"mine")
    with files.replacing(tmp_path / "file") as file:
        file.write(b"whole")
        files.delete_unfinished(tmp_path)
        assert not left.exists() and len(os.listdir(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == [".notes.unfinished", "file"]
    files.delete_unfinished(tmp_path / "nowhere")


def a_run(workdir):
    workdir.mkdir()
    run_folder.write_config(workdir, Config(model=UNetConfig(attn_resolutions=())))
    for name in ("checkpoints/1", "samples", "tensorboard"):
        (workdir / name).mkdir(parents=True)
        (workdir / name / "file").write_bytes(b"x")
    (workdir / "metrics.jsonl").write_bytes(b"")


def test_of_a_link_the_link_is_deleted_and_the_rest_of_the_run(tmp_path, capsys):
    """A link to checkpoints/ on another disk is deleted, and its target stays."""
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    a_run(workdir)
    (workdir / "checkpoints").rename(elsewhere)
    (workdir / "checkpoints").symlink_to(elsewhere)
    (workdir / "loss.png").symlink_to(tmp_path / "nothing")
    run_folder.delete_run(workdir)
    assert os.listdir(workdir) == ["config.json"]
    assert (elsewhere / "1/file").read_bytes() == b"x"
    assert f"{workdir}/checkpoints was a link: {elsewhere} stays" in capsys.readouterr().out


def test_nothing_is_deleted_where_something_cannot_be(tmp_path, monkeypatch):
    """A run with a part on another file system, or without permission, stays whole."""
    workdir = tmp_path / "run"
    a_run(workdir)
    before = sorted(workdir.rglob("*"))
    mounted = str(workdir / "tensorboard")
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "ismount", lambda path: str(path) == mounted)
        with pytest.raises(OSError, match="another file system"):
            run_folder.delete_run(workdir)
    with monkeypatch.context() as patched:
        real = os.access
        patched.setattr(os, "access", lambda p, m: str(p) != mounted and real(p, m))
        with pytest.raises(PermissionError, match="no permission"):
            run_folder.delete_run(workdir)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("suffix", weight_files.SUFFIXES)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_weights_come_back_from_a_file_of_any_name(tmp_path, name, suffix):
    path = tmp_path / name / f"{name}{suffix}"
    params = {"a": {"b": np.arange(3, dtype=np.float32)}}
    weight_files.write(path, weight_files.Weights(params, "raw", 7), Config())
    found = weight_files.read(path)
    assert (found.kind, found.step) == ("raw", 7)
    np.testing.assert_array_equal(found.params["a.b"], [0, 1, 2])


# Functions that open, write or delete by a name.
BY_NAME = {"write_text", "write_bytes", "read_text", "read_bytes", "rmtree", "fdopen"}
# Files that may call such functions.
ALLOWED = {
    "diffusion_jax/runtime/files.py": BY_NAME | {"open"},
    "diffusion_jax/runtime/lost_process.py": {"fdopen"},  # A pipe.
    "diffusion_jax/data/report.py": {"fdopen"},  # A new file in the temporary folder.
}


def calls_by_name(source):
    """Calls of BY_NAME and of `open`, other than through `files`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id == "open":
                yield node.lineno, "open"
            elif isinstance(function, ast.Attribute) and function.attr in BY_NAME:
                of = function.value
                if not (isinstance(of, ast.Name) and of.id in ("files", "regular")):
                    yield node.lineno, function.attr


def test_nothing_opens_writes_or_deletes_but_runtime_files():
    assert list(calls_by_name("a.write_text(b); open(c); files.read_text(d)")) == [
        (1, "write_text"),
        (1, "open"),
    ]
    found = []
    for path in [*(ROOT / "diffusion_jax").rglob("*.py"), *ROOT.glob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        allowed = ALLOWED.get(name, set())
        found += [
            f"{name}:{line}: {call}"
            for line, call in calls_by_name(path.read_text())
            if call not in allowed
        ]
    assert found == []
