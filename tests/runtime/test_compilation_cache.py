"""Compiled programs kept on disk: where, whether they are used, and how to do without."""

import os
import subprocess
import sys
import warnings

import jax
import pytest

from diffusion_jax.runtime import compilation_cache
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT

# Compiles one chain, with progress as sample.py has it, and counts what the cache gave.
CHAIN = """
import jax, numpy as np, sys
from diffusion_jax.experiment import build, build_sampler
from diffusion_jax.runtime import compilation_cache, devices
from diffusion_jax.config import Config, DataConfig, MLPConfig, SamplingConfig
from diffusion_jax.samplers.chain import Samples
compilation_cache.use(sys.argv[1] if len(sys.argv) > 1 else None)
assert jax.config.jax_persistent_cache_min_compile_time_secs <= 0.5
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
seen = {"cache_hits": 0, "compile_requests_use_cache": 0}
def count(name, **_):
    if (kind := name.split("/")[-1]) in seen:
        seen[kind] += 1
jax.monitoring.register_event_listener(count)
config = Config(data=DataConfig(image_size=(), channels=2), model=MLPConfig(),
                sampling=SamplingConfig(sampler="unipc", steps=40))
init_fn, _ = build.make_network(config)
model = build.make_model(config)
sampler = build_sampler.make_sampler(
    config, model, devices.make_mesh(), on_progress=lambda done: None
)
table = build_sampler.make_table(model, config.sampling)
params = jax.jit(init_fn)(jax.random.key(0))
seen.update(cache_hits=0, compile_requests_use_cache=0)
x, _ = sampler(params, table, Samples(jax.random.key(0), np.arange(8)), {})
print(*seen.values())
print("sum", float(np.asarray(x, np.float64).sum()))
"""


def run(*args, **variables):
    environment = {**os.environ, **{k: str(v) for k, v in variables.items()}}
    for name in ("JAX_COMPILATION_CACHE_DIR", *(k for k, v in variables.items() if not v)):
        if name not in variables or not variables[name]:
            environment.pop(name, None)
    command = [sys.executable, "-c", CHAIN, *map(str, args)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines(), result.stderr


def test_a_second_process_takes_the_chain_from_the_cache_and_gets_the_same_bits(tmp_path):
    """A chain that tells its progress, cached by default in the user's cache folder."""
    first, _ = run(XDG_CACHE_HOME=tmp_path)
    second, _ = run(XDG_CACHE_HOME=tmp_path)
    folder = tmp_path / "diffusion_jax/compiled"
    assert first[0].startswith(f"compilation cache: {folder} (0 MiB of 2,048)")
    assert list(folder.iterdir())
    (none, wanted), (found, wanted_again) = map(str.split, (first[1], second[1]))
    assert none == "0" and found == wanted == wanted_again != "0"
    assert first[2] == second[2]


def test_the_cache_is_bounded_and_what_was_used_last_stays(tmp_path):
    names = [f"jit_f-{i}{'a' * 63}-cache" for i in range(5)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(100))
        # Used in the order 0, 3, 1, 4, 2; what counts is the later of the two times.
        os.utime(tmp_path / name, (1 + 2 * i % 5, 0))
    (tmp_path / "notes-cache").write_bytes(bytes(1000))  # Not what jax writes.
    (tmp_path / f"jit_g-{'b' * 64}-cache").symlink_to("notes-cache")
    assert compilation_cache.bounded(tmp_path, None) == 500
    assert compilation_cache.bounded(tmp_path, 350) == 300
    left = {names[1], names[2], names[4], "notes-cache", f"jit_g-{'b' * 64}-cache"}
    assert set(os.listdir(tmp_path)) == left
    assert compilation_cache.bounded(tmp_path / "nowhere", 0) == 0


@pytest.mark.slow
def test_off_writes_nothing(tmp_path):
    for word in ("off", "OFF"):
        said, _ = run(word, JAX_COMPILATION_CACHE_DIR=tmp_path)
        assert said[0] == "compilation cache: off" and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_if_it_was_named(monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    with pytest.raises(BadRequest, match="/dev/null/x cannot be written .*; name another"):
        compilation_cache.use("/dev/null/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.warns(UserWarning, match="every run compiles again"):
        compilation_cache.use(None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/dev/null/y")
    with pytest.raises(BadRequest, match="/dev/null/y"), warnings.catch_warnings():
        compilation_cache.use(None)
    assert jax.config.jax_compilation_cache_dir == before and not capsys.readouterr().out
