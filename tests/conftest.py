"""Settings before JAX starts: four CPU devices, no silent rank promotion, a cache."""

import atexit
import fcntl
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is the suite's cost, and the commands run here compile the same programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="diffusion_jax_tests_")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# A U-Net compiles in half the time or less; `make test-slow` compiles as users do.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jax").startswith(("0.10.", "0.11.")):  # Later: unknown.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax
import pytest

from diffusion_jax.runtime import cpu
from helpers import ROOT, SHARED

cpu.keep_memory()  # As the commands do.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def command(fork):
    """Run `python train.py ...` or sample.py as a user does, and return the result.

    It runs in a fork, which has imported most modules, unless it has `options`.
    """

    def run(*args, cwd=ROOT, check=None, **options):
        line = [str(ROOT / args[0]), *map(str, args[1:])]
        if not options:
            result = fork(line, cwd)
        else:
            result = subprocess.run(
                [sys.executable, *line],
                cwd=cwd,
                capture_output=True,
                text=True,
                timeout=600,
                **options,
            )
        if check is not None:
            assert result.returncode == check, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """Run a command in a fork, by forks.py."""
    folder = tmp_path_factory.mktemp("forks")
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "forks.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    def run(line, cwd):
        said = [folder / "stdout", folder / "stderr"]
        for path in said:
            path.write_bytes(b"")
        request = {"args": line, "cwd": str(cwd), "said": list(map(str, said))}
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(line, status, *(p.read_text() for p in said))

    yield run
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def tfds_mnist(tmp_path_factory, worker_id):
    """A data_dir with the real MNIST, from the files that TFDS downloads."""
    return tfds_folder(tmp_path_factory, worker_id, "mnist")


@pytest.fixture(scope="session")
def tfds_sets(tmp_path_factory, worker_id):
    """A data_dir with the real CIFAR-10 and MNIST, from the files that TFDS downloads."""
    return tfds_folder(tmp_path_factory, worker_id, "cifar10", "mnist")


def tfds_folder(tmp_path_factory, worker_id, *names):
    """A folder for all workers, in which the first that needs a set prepares it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data in ../shared/data")
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent
    folder = root / "tfds"
    folder.mkdir(exist_ok=True)
    with (root / "tfds.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            if (root / f"{name}.done").exists():
                continue
            for command in (
                [SHARED / "tools/prepare_tfds.py", folder, name],
                ["-m", "diffusion_jax.data.prepare", name, folder],
            ):
                subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
            (root / f"{name}.done").touch()
    return folder


# Rooms whose tests have a marker of their own.
MARKERS = {"diffusion": "maths", "samplers": "maths", "processes": "process"}


def pytest_collection_modifyitems(items):
    # The longest files first, so that no worker is left alone with one at the end.
    items.sort(key=lambda item: item.path.parent.name not in ("processes", "training"))
    for item in items:
        marker = MARKERS.get(item.path.parent.name)
        if marker:
            item.add_marker(marker)
